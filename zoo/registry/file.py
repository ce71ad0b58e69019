"""The registry of released models: one JSON file, validated when it is read; ``zoo.registry.write`` changes it."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path

from zoo.registry.entry import Entry, Registry
from zoo.registry.index import LAYOUT, index_of, registry_of
from zoo.system.arguments import typed
from zoo.system.cache import cache_root
from zoo.system.errors import IntegrityError, NothingMatches, UnknownModel, UsageError, nearest
from zoo.system.files import kind_of, read_utf8, write_atomic
from zoo.system.units import format_count, parse_count
from zoo.version import __version__


def linked(path: Path) -> Path:
    """``path``, or what it names where git has written a symbolic link as a text file (on Windows)."""
    link = path.read_text(encoding="utf-8") if path.exists() and path.stat().st_size < 100 else ""
    return path.parent / link if link.endswith(f"/{path.name}") else path


CHECKPOINTS = (".pt", ".pth", ".ckpt")
# What zoo.weights.address takes for something else than a name.
ELSEWHERE = re.compile(r"(local-dir|hf-hub):.+|\w+(\.\w+)*:\w+|.+\.(onnx|pt2)", re.IGNORECASE)
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
    content = read_registry(path)
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


def forget() -> None:
    """Parse the registry again when it is asked for next: this process has changed it."""
    _parsed.cache_clear()


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
    if ELSEWHERE.fullmatch(name):
        raise UnknownModel(f"'{name}' is not in the registry, and only its models are known here (see 'zoo list')")
    hint = nearest(name, named, merit=lambda known: 0.2 * (named[known].accuracy("pgd20") or 0)) or (
        "" if named else ": the registry is empty"
    )
    if Path(supernet).suffix.lower() in CHECKPOINTS:
        hint += "; a checkpoint becomes a model folder by 'zoo convert', and is named local-dir:PATH"
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


def read_registry(path: Path) -> bytes:
    """The content of the registry ``path``, not validated; IntegrityError if it cannot be read."""
    if kind := kind_of(path):
        raise IntegrityError(f"the registry '{path}' cannot be read: it is {kind}, not a file")
    try:
        return read_utf8(path, limit=LIMIT)
    except OSError as error:
        raise IntegrityError(f"the registry '{path}' cannot be read: {error.strerror}") from None
