"""The registry of released models: one JSON file, validated when it is read, replaced atomically when it is written."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.registry.entry import Entry, Hub, Registry
from zoo.registry.index import LAYOUT, index_of, registry_of
from zoo.system.arguments import typed
from zoo.system.errors import IntegrityError, NothingMatches, UnknownModel, UsageError, nearest
from zoo.system.files import cache_root, encoded, kind_of, locked, read_utf8, write_atomic
from zoo.system.units import format_count, parse_count
from zoo.version import __version__

if TYPE_CHECKING:
    from zoo.evaluation.protocols import Protocol


def linked(path: Path) -> Path:
    """``path``, or what it names where git has written a symbolic link as a text file (on Windows)."""
    link = path.read_text(encoding="utf-8") if path.exists() and path.stat().st_size < 100 else ""
    return path.parent / link if link.endswith(f"/{path.name}") else path


LIMIT = 512_000_000  # bytes; 10,000 entries have 100 million
PACKAGED = linked(Path(__file__).parents[1] / "registry.json")


def registry_path(path: Path | str | None = None) -> Path:
    """``path``, else ``ZOO_REGISTRY``, else the packaged file."""
    return Path(path or os.environ.get("ZOO_REGISTRY") or PACKAGED)


def load_registry(path: Path | str | None = None) -> Registry:
    """The registry at ``path``, else at ``ZOO_REGISTRY``, else the packaged one; parsed again only if it changed.

    Raises:
        IntegrityError: the file cannot be read, or is not a valid registry; the message names the first fault.
    """
    path = registry_path(path)
    try:
        state = path.stat()
    except OSError as error:
        raise IntegrityError(f"the registry '{path}' cannot be read: {error.strerror}") from None
    return _parsed(path, state.st_mtime_ns, state.st_size, state.st_ino)


@lru_cache(maxsize=4)
def _parsed(path: Path, *state: int) -> Registry:
    """The registry at ``path``; ``state`` (time, size, inode) is part of the cache key.

    The index of a valid registry is stored, because to validate takes longer than the rest of ``zoo list``. Where it
    cannot be stored, every call validates.
    """
    content = _read(path)
    digest = hashlib.sha256(f"{__version__} {LAYOUT}\0".encode())
    digest.update(content)
    note = cache_root() / "valid-registries" / digest.hexdigest()
    with suppress(OSError, AttributeError, LookupError, TypeError, ValueError):  # there is none, or it is damaged
        return registry_of(note.read_bytes(), content)
    from zoo.registry.schema import check

    check(content, path)
    index = index_of(content)
    with suppress(OSError):
        note.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(note, index)
    return registry_of(index, content)


def make_registry(path: Path | str | None = None) -> None:
    """Write a registry without models where there is none."""
    from zoo.evaluation.protocols import PROTOCOLS, RELEASED

    path = registry_path(path)
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        protocols = {name: PROTOCOLS[name].model_dump(mode="json") for name in RELEASED}
        write_atomic(path, pretty({"schema_version": 1, "protocols": protocols, "datasets": {}, "models": {}}) + "\n")


def info(name: str, *, registry: Registry | None = None) -> Entry:
    """The registry entry of a name or alias; ``SUPERNET@BUDGET`` is the best released sub-net within BUDGET MACs.

    >>> info("rnascl-s7-wrt34").name
    'rnascl-s7-wrt34-2-trades'
    >>> info("proard-tiny@12.5M").name
    'proard-tiny@12M'

    Raises:
        UnknownModel: the name is unknown; the message suggests the nearest.
        UsageError: the name is not a string, or the budget is malformed.
        NothingMatches: the budget is below all released sub-nets.
    """
    if not isinstance(name, str):
        raise UsageError(f"a model's name must be a string, not a value of type {type(name).__name__}")
    typed(registry=(registry, Registry | None))
    registry = registry or load_registry()
    named = registry.named
    if name in named:
        return named[name]
    supernet, at, budget = name.partition("@")
    if at and supernet in named and named[supernet].supernet:
        return _within(budget, named[supernet].name, registry.models)
    hint = nearest(name, named, merit=lambda known: 0.2 * (named[known].accuracy("pgd20") or 0)) or (
        "" if named else ": the registry is empty"
    )
    raise UnknownModel(f"no model is called '{name}'{hint}" + (" (see 'zoo list')" if named else ""))


def entry_called(name: str, *, registry: Registry | None = None) -> Entry | None:
    """What :func:`info` finds; None where it finds nothing."""
    try:
        return info(name, registry=registry)
    except (UnknownModel, UsageError, NothingMatches):
        return None


def _within(budget: str, supernet: str, models: Mapping[str, Entry]) -> Entry:
    """The sub-net of ``supernet`` with the best PGD-20 accuracy among those within ``budget``; one with a flag only
    where all have one."""
    macs = parse_count(budget)
    subnets = [entry for entry in models.values() if entry.subnet and entry.subnet.of == supernet]
    if not subnets:
        raise UnknownModel(f"no sub-net of '{supernet}' is released: find some with `zoo search {supernet}`")
    within = [entry for entry in subnets if entry.macs <= macs]
    if not within:
        low = min(entry.macs for entry in subnets)
        raise NothingMatches(
            f"{macs:,} MACs is below the released sub-nets of '{supernet}', which have {low:,} or more; "
            f"search for smaller ones with `zoo search {supernet} --flops {budget}`"
        )
    return max(within, key=lambda entry: (not entry.flags, entry.accuracy("pgd20") or 0.0, -entry.macs))


def no_limit(name: str, *, registry: Registry | None = None) -> str | None:
    """A sentence if ``name`` is ``SUPERNET@BUDGET`` with a budget that all sub-nets of the dynamic net are within."""
    supernet, at, budget = name.partition("@")
    named = (registry or load_registry()).named if at else {}
    if name in named or supernet not in named or not named[supernet].supernet:
        return None
    if parse_count(budget) <= named[supernet].macs:
        return None
    largest = format_count(named[supernet].macs)
    taken = info(name, registry=registry).name
    return f"{budget} MACs is no limit: the largest sub-net of {supernet} has {largest}; '{taken}' is taken"


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


def check_splits(name: str, model: Mapping[str, Any], datasets: Mapping[str, Any], *, path: Path | None = None) -> None:
    """Raise now what :func:`write_model` would raise of the images: IntegrityError if results of ``model``, or of
    another entry than ``name``, are on other images than those of ``datasets``."""
    path = registry_path(path).resolve()
    data = json.loads(_read(path))
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
def chosen(path: Path | None) -> Iterator[None]:
    """Within the block everything reads the registry ``path``, as if ``ZOO_REGISTRY`` named it; None: no change."""
    before = os.environ.get("ZOO_REGISTRY")
    if path is not None:
        os.environ["ZOO_REGISTRY"] = str(path)
    try:
        yield
    finally:
        if path is not None:
            os.environ.pop("ZOO_REGISTRY")
            os.environ.update({"ZOO_REGISTRY": before} if before is not None else {})


@contextmanager
def _rewriting(path: Path, files: Callable[[], None] = lambda: None) -> Iterator[dict[str, Any]]:
    """The JSON of the registry ``path``, to edit in place: validated before and after, one writer at a time.

    ``files`` is called when all is valid, before the registry is written.
    """
    from zoo.registry.schema import check

    with locked(path.parent):
        text = _read(path)
        check(text, path)
        data = json.loads(text)
        yield data
        text = encoded(pretty(data) + "\n")
        check(text, path)
        files()
        write_atomic(path, text)
    _parsed.cache_clear()


def pretty(data: Any, indent: str = "", width: int = 120) -> str:
    """Readable, stable JSON: a value is on one line if it fits there."""
    line = json.dumps(data, ensure_ascii=False, allow_nan=False)
    if not isinstance(data, dict | list) or not data or (len(indent) + len(line) <= width and indent):
        return line
    deeper = indent + "  "
    if isinstance(data, dict):
        parts = [f"{json.dumps(str(key))}: {pretty(value, deeper, width)}" for key, value in data.items()]
    else:
        parts = [pretty(value, deeper, width) for value in data]
    opening, closing = "{}" if isinstance(data, dict) else "[]"
    return f"{opening}\n{deeper}" + f",\n{deeper}".join(parts) + f"\n{indent}{closing}"


def _read(path: Path) -> bytes:
    if kind := kind_of(path):
        raise IntegrityError(f"the registry '{path}' cannot be read: it is {kind}, not a file")
    try:
        return read_utf8(path, limit=LIMIT)
    except OSError as error:
        raise IntegrityError(f"the registry '{path}' cannot be read: {error.strerror}") from None
