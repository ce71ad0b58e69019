"""Changes to the registry file: validated before and after, one writer at a time, replaced atomically."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.registry.entry import Hub
from zoo.registry.file import forget, read_registry, registry_path
from zoo.system.errors import IntegrityError, UnknownModel
from zoo.system.files import encoded, locked, pretty, write_atomic

if TYPE_CHECKING:
    from zoo.evaluation.protocols import Protocol


def make_registry() -> None:
    """Write a registry without models where there is none."""
    from zoo.evaluation.protocols import PROTOCOLS, RELEASED

    path = registry_path()
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        protocols = {name: PROTOCOLS[name].model_dump(mode="json") for name in RELEASED}
        write_atomic(path, pretty({"schema_version": 1, "protocols": protocols, "datasets": {}, "models": {}}) + "\n")


def write_model(
    name: str,
    model: Mapping[str, Any],
    *,
    datasets: Mapping[str, Any] | None = None,
    protocols: Iterable[Protocol] = (),
    files: Callable[[], None] = lambda: None,
    path: Path | str | None = None,
) -> None:
    """Add ``model`` to the registry as ``name``, or replace it, atomically and with one writer at a time.

    If new weights replace those of a dynamic net, the sub-nets cut from the old weights are removed.

    Args:
        model: the entry as JSON data; see :meth:`zoo.registry.entry.Entry.to_dict`.
        datasets: ``{dataset: {"splits": {split: {"n", "sha256"}}}}`` for the splits of the results; one that differs
            from the registry's takes its place if no result refers to that any more.
        protocols: the protocols of the results, besides the named ones.
        files: writes the files of the entry; called when the registry is known to stay valid, and before it is written.

    Raises:
        IntegrityError: the registry would become invalid; it was not changed.
    """
    from zoo.evaluation.protocols import PROTOCOLS

    path = registry_path(path).resolve()
    with _rewriting(path, files) as data:
        known = PROTOCOLS | {protocol.name: protocol for protocol in protocols}
        for protocol in model.get("results", {}):
            if protocol in known:
                current = known[protocol].model_dump(mode="json")
                if data["protocols"].setdefault(protocol, current) != current:
                    raise IntegrityError(
                        f"the registry '{path}' defines protocol '{protocol}' differently: give the new one a new name"
                    )
        data["models"] = _with_model(data, name, model)
        _take_splits(data, datasets or {}, path)


def check_splits(name: str, model: Mapping[str, Any], datasets: Mapping[str, Any]) -> None:
    """Raise now what :func:`write_model` would raise of the images: IntegrityError if results of ``model``, or of
    another entry than ``name``, are on other images than those of ``datasets``."""
    path = registry_path().resolve()
    data = json.loads(read_registry(path))
    data["models"] = _with_model(data, name, model)
    _take_splits(data, datasets, path)


def _with_model(data: Mapping[str, Any], name: str, model: Mapping[str, Any]) -> dict[str, Any]:
    """The models of ``data`` with ``model``, by name, but without sub-nets that were cut from other weights of it."""
    models = {**data["models"], name: dict(model)}
    sha256 = model["weights"]["sha256"]
    return {key: models[key] for key in sorted(models) if _cut_from(models[key], name) in (None, sha256)}


def _take_splits(data: dict[str, Any], datasets: Mapping[str, Any], path: Path) -> None:
    """Write the splits of ``datasets`` into ``data``, the contents of the registry ``path``."""
    for dataset, facts in datasets.items():
        splits = data["datasets"].setdefault(dataset, {"splits": {}})["splits"]
        for split, new in facts["splits"].items():
            old = splits.get(split, new)
            users = [
                name
                for name, entry in data["models"].items()
                if any(result["dataset_sha256"] == old["sha256"] for result in entry.get("results", {}).values())
            ]
            if old != new and users:
                raise IntegrityError(
                    f"the registry '{path}' has results of '{users[0]}' on other images in the {split} split of "
                    f"{dataset}: measure on those, or set ZOO_REGISTRY to another file for these"
                )
            splits[split] = dict(new)


def write_aliases(name: str, aliases: Iterable[str], *, path: Path | str | None = None) -> None:
    """Set the aliases of the registry entry ``name``; previous aliases are removed.

    Raises:
        UnknownModel: there is no such entry.
        IntegrityError: an alias is malformed or taken; the registry was not changed.
    """
    path = registry_path(path).resolve()
    with _rewriting(path) as data:
        _entry(data, name, path)["aliases"] = sorted(aliases)


def _entry(data: Mapping[str, Any], name: str, path: Path) -> dict[str, Any]:
    if name not in data["models"]:
        raise UnknownModel(f"the registry '{path}' no longer has a model called '{name}'")
    return data["models"][name]


def _entry_of(data: Mapping[str, Any], name: str, path: Path, *, weights_sha256: str, which: str) -> dict[str, Any]:
    """The entry of these weights; IntegrityError if it has others than those ``which`` are meant."""
    model = _entry(data, name, path)
    if model["weights"]["sha256"] != weights_sha256:
        raise IntegrityError(f"'{name}' has other weights in the registry '{path}' than those {which}")
    return model


def _cut_from(model: Mapping[str, Any], supernet: str) -> str | None:
    """The hash of the weights of ``supernet`` that ``model`` was cut from, else None."""
    subnet = model.get("subnet") or {}
    return subnet["weights_sha256"] if subnet.get("of") == supernet else None


def write_latency(
    name: str,
    weights_sha256: str,
    latency: Mapping[str, Mapping[str, Mapping[str, Any]]],
    *,
    path: Path | str | None = None,
) -> None:
    """Add ``latency``, by device, engine and batch as in an entry, to the registry entry ``name``.

    Measurements with the same device, engine and batch are replaced; the rest of the entry is kept as it is in the file
    at that moment, even if another process has changed it.

    Raises:
        UnknownModel: there is no such entry.
        IntegrityError: the entry has other weights, or the registry would become invalid; it was not changed.
    """
    path = registry_path(path).resolve()
    with _rewriting(path) as data:
        model = _entry_of(data, name, path, weights_sha256=weights_sha256, which="that were timed")
        stored = model.setdefault("latency", {})
        for device, engines in latency.items():
            for engine, batches in engines.items():
                times = stored.setdefault(device, {}).setdefault(engine, {})
                times.update(batches)
                stored[device][engine] = dict(sorted(times.items(), key=lambda item: int(item[0])))


def write_hub(
    name: str, weights_sha256: str, hub: Hub, *, license: str | None = None, path: Path | str | None = None
) -> None:
    """Write where the weights of the registry entry ``name`` are on the Hub, and its ``license`` if that is given; the
    rest of the file is kept as it is.

    Raises:
        UnknownModel: there is no such entry.
        IntegrityError: the entry has other weights, or the registry would become invalid; it was not changed.
    """
    path = registry_path(path).resolve()
    with _rewriting(path) as data:
        model = _entry_of(data, name, path, weights_sha256=weights_sha256, which="on the Hub")
        model["weights"]["hub"] = asdict(hub)
        model["license"] = license or model["license"]


@contextmanager
def _rewriting(path: Path, files: Callable[[], None] = lambda: None) -> Iterator[dict[str, Any]]:
    """The JSON of the registry ``path``, to edit in place: validated before and after, one writer at a time.

    ``files`` is called when all is valid, before the registry is written.
    """
    from zoo.registry.schema import check

    with locked(path.parent):
        text = read_registry(path)
        check(text, path)
        data = json.loads(text)
        yield data
        text = encoded(pretty(data) + "\n")
        check(text, path)
        files()
        write_atomic(path, text)
    forget()
