"""The registry of released models: one JSON file, checked when it is read, replaced whole when it is written."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.registry.entry import Entry, Registry
from zoo.system.errors import IntegrityError, NothingMatches, UnknownModel, UsageError, nearest
from zoo.system.files import cache_root, locked, write_atomic
from zoo.system.units import parse_count
from zoo.version import __version__

if TYPE_CHECKING:
    from zoo.evaluation.protocols import Protocol

PACKAGED = Path(__file__).parents[1] / "registry.json"


def registry_path(path: Path | str | None = None) -> Path:
    """``path``, else ``ZOO_REGISTRY``, else the packaged file."""
    return Path(path or os.environ.get("ZOO_REGISTRY") or PACKAGED)


def load_registry(path: Path | str | None = None) -> Registry:
    """The registry at ``path``, else at ``ZOO_REGISTRY``, else the packaged one; read anew only if it changed.

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
    """The registry at ``path``, which is in this ``state``."""
    text = _read(path)
    _check_once(text, path)
    data = json.loads(text)
    models = {name: Entry.from_dict(name, model) for name, model in data["models"].items()}
    return Registry(protocols=data["protocols"], datasets=data["datasets"], models=models)


def info(name: str, *, registry: Registry | None = None) -> Entry:
    """The registry's entry of this name or alias; ``SUPERNET@BUDGET`` is its best released sub-net within so many MACs.

    >>> info("rnascl-s7-wrt34").name
    'rnascl-s7-wrt34-2-trades'
    >>> info("proard-tiny@12.5M").name
    'proard-tiny@12M'

    Raises:
        UnknownModel: there is none; the message names the nearest.
        UsageError, NothingMatches: the budget is not one or is above all sub-nets, or is below; tells their range.
    """
    registry = registry or load_registry()
    named = registry.named
    if name in named:
        return named[name]
    supernet, at, budget = name.partition("@")
    if at and supernet in named and named[supernet].supernet:
        return _within(budget, named[supernet].name, registry.models)
    hint = nearest(name, named) or ("" if named else ": the registry is empty")
    raise UnknownModel(f"no model is called '{name}'{hint}" + (" (see 'zoo list')" if named else ""))


def _within(budget: str, supernet: str, models: Mapping[str, Entry]) -> Entry:
    """The sub-net of ``supernet`` with the best PGD-20 accuracy among those within ``budget``."""
    macs = parse_count(budget)
    subnets = [entry for entry in models.values() if entry.subnet and entry.subnet.of == supernet]
    if not subnets:
        raise UnknownModel(f"no sub-net of '{supernet}' is released: `zoo search {supernet}` finds some")
    low, high = min(entry.macs for entry in subnets), models[supernet].macs
    if not low <= macs <= high:
        told = f"no sub-net of '{supernet}' for {macs:,} MACs is released: those that are go from {low:,} to {high:,}"
        if macs > high:
            raise UsageError(told)
        raise NothingMatches(f"{told}; `zoo search {supernet} --flops {budget}` looks for others")
    within = [entry for entry in subnets if entry.macs <= macs]
    return max(within, key=lambda entry: (entry.accuracy("pgd20") or 0.0, -entry.macs))


def write_model(
    name: str,
    model: Mapping[str, Any],
    *,
    datasets: Mapping[str, Any] | None = None,
    protocols: Iterable[Protocol] = (),
    path: Path | str | None = None,
) -> None:
    """Add ``model`` to the registry as ``name``, or replace it. All or nothing, one writer at a time.

    With the weights of a dynamic net that are replaced by others go the sub-nets that were cut from them.

    Args:
        model: the entry's JSON form, as :meth:`zoo.registry.entry.Entry.to_dict` gives it.
        datasets: ``{dataset: {"splits": {split: {"n", "sha256"}}}}`` for splits that the results refer to; those that
            the registry has already must be the same.
        protocols: those that the results refer to, besides the named ones.

    Raises:
        IntegrityError: the registry would not be valid, and was left as it was.
    """
    from zoo.evaluation.protocols import PROTOCOLS

    path = registry_path(path).resolve()
    with _rewriting(path) as data:
        for dataset, facts in (datasets or {}).items():
            splits = data["datasets"].setdefault(dataset, {"splits": {}})["splits"]
            for split, stored in facts["splits"].items():
                if splits.setdefault(split, dict(stored)) != dict(stored):
                    raise IntegrityError(f"the registry '{path}' has another {split} split of {dataset} than this one")
        known = PROTOCOLS | {one.name: one for one in protocols}
        for protocol in model.get("results", {}):
            if protocol in known:
                current = known[protocol].model_dump(mode="json")
                if data["protocols"].setdefault(protocol, current) != current:
                    raise IntegrityError(
                        f"the registry '{path}' defines protocol '{protocol}' differently: give the new one a new name"
                    )
        models = {**data["models"], name: dict(model)}
        sha256 = model["weights"]["sha256"]
        stale = [key for key, one in models.items() if _cut_from(one, name) not in (None, sha256)]
        data["models"] = {key: models[key] for key in sorted(models) if key not in stale}


def write_aliases(name: str, aliases: Iterable[str], *, path: Path | str | None = None) -> None:
    """Let the registry's entry called ``name`` be found by ``aliases`` too, and by no others.

    Raises:
        UnknownModel: there is no such entry.
        IntegrityError: an alias is malformed or taken; the registry was left as it was.
    """
    path = registry_path(path).resolve()
    with _rewriting(path) as data:
        _entry(data, name, path)["aliases"] = sorted(aliases)


def rename_model(old: str, new: str, *, path: Path | str | None = None, **identity: str) -> None:
    """Call the registry's entry ``old`` by the name ``new``; the old name becomes an alias.

    Results, hashes and the record of the training stay; sub-nets and the name of the weights file follow.

    Args:
        identity: family, description or paper, where they change too.

    Raises:
        UnknownModel: there is no such entry.
        IntegrityError: the new name is malformed or taken; the registry was left as it was.
    """
    path = registry_path(path).resolve()
    with _rewriting(path) as data:
        models = data["models"]
        model = _entry(data, old, path) | identity
        if new in models:
            raise IntegrityError(f"the registry '{path}' has a model called '{new}' already")
        model["aliases"] = sorted({*model.get("aliases", ()), old} - {new})
        if model["weights"]["file"] == f"{old}.safetensors":
            model["weights"] |= {"file": f"{new}.safetensors"}
        for one in models.values():
            if (one.get("subnet") or {}).get("of") == old:
                one["subnet"]["of"] = new
        del models[old]
        data["models"] = {key: one for key, one in sorted({**models, new: model}.items())}


def _entry(data: Mapping[str, Any], name: str, path: Path) -> dict[str, Any]:
    if name not in data["models"]:
        raise UnknownModel(f"the registry '{path}' has no model called '{name}' any more")
    return data["models"][name]


def _cut_from(model: Mapping[str, Any], supernet: str) -> str | None:
    """The hash of the weights of ``supernet`` that the entry ``model`` was cut from, if it was."""
    subnet = model.get("subnet") or {}
    return subnet["weights_sha256"] if subnet.get("of") == supernet else None


def write_latency(
    name: str,
    weights_sha256: str,
    latency: Mapping[str, Mapping[str, Mapping[str, Any]]],
    *,
    path: Path | str | None = None,
) -> None:
    """Add ``latency``, by device, engine and batch as an entry has it, to the registry's entry called ``name``.

    What was measured on the same device with the same engine and batch is replaced; the rest of the entry stays as it
    is at that moment, whatever else is being measured.

    Raises:
        UnknownModel: there is no such entry.
        IntegrityError: the entry has other weights, or the registry would not be valid, and was left as it was.
    """
    path = registry_path(path).resolve()
    with _rewriting(path) as data:
        model = _entry(data, name, path)
        if model["weights"]["sha256"] != weights_sha256:
            raise IntegrityError(f"'{name}' has other weights in the registry '{path}' than those that were timed")
        stored = model.setdefault("latency", {})
        for device, engines in latency.items():
            for engine, batches in engines.items():
                times = stored.setdefault(device, {}).setdefault(engine, {})
                times.update(batches)
                stored[device][engine] = dict(sorted(times.items(), key=lambda item: int(item[0])))


@contextmanager
def _rewriting(path: Path) -> Iterator[dict[str, Any]]:
    """The JSON of the registry ``path``, to be changed: checked before and after, one writer at a time."""
    from zoo.registry.schema import check

    with locked(path.parent):
        text = _read(path)
        check(text, path)
        data = json.loads(text)
        yield data
        text = (pretty(data) + "\n").encode()
        check(text, path)
        write_atomic(path, text)
    _parsed.cache_clear()


def pretty(data: Any, indent: str = "", width: int = 120) -> str:
    """JSON in which whatever fits on a line stands on one: readable by hand, and stable."""
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
    try:
        return path.read_bytes()
    except OSError as error:
        raise IntegrityError(f"the registry '{path}' cannot be read: {error.strerror}") from None


def _check_once(text: bytes, path: Path) -> None:
    """Check ``text`` unless the cache notes that the very same was valid: checking takes longer than all the rest of
    ``zoo list``. A cache that cannot be written costs this time, and nothing else."""
    digest = hashlib.sha256(__version__.encode() + b"\0" + text).hexdigest()
    note = cache_root() / "valid-registries" / digest
    if note.exists():
        return
    from zoo.registry.schema import check

    check(text, path)
    with suppress(OSError):
        note.parent.mkdir(parents=True, exist_ok=True)
        note.touch()
