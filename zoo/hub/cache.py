"""What the caches hold: files of the Hub that were downloaded here, and the folder of the package's own cache.

The Hub's cache is shared with other programs. Only files that are in the record of downloads (see
:class:`zoo.system.downloads.Download`) are listed and removed; a revision in which others keep files stays.
"""

from __future__ import annotations

import fnmatch
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from zoo.registry.file import load_registry
from zoo.system.cache import MARK, cache_root, intact
from zoo.system.downloads import Download
from zoo.system.errors import IntegrityError, NothingMatches, UsageError, ZooError
from zoo.system.files import check_sha256, stored_json

# Files of the package's cache that are no folder with a record: the folder, its files, and what they are.
LOOSE = (
    ("evaluations", r"[0-9a-f]{64}\.json", "unfinished evaluations"),
    ("remote", r"[0-9a-f]{64}", "artifacts that ran here for other machines"),
    ("latency", r"[^/]+--[^/]+--[^/]+\.json", "latency tables"),
    ("tensorrt", r"[^/]+\.timings", "build timings"),
    ("valid-registries", r"[0-9a-f]{64}", "notes on valid registries"),
)
RECORDED = (
    ("lessons-", "a teacher's answers"),
    ("robust-data-", "robust data"),
    ("page-", "scripts of zoo report"),
    ("", "decoded data set"),
)


@dataclass(frozen=True, kw_only=True)
class Item:
    """One thing in a cache.

    Attributes:
        name: what it is called; ``aliases``: other names that it is found by.
        kind: what it is, in words.
        place: the cache that it is in; ``path``: its folder.
        size: bytes of its files.
        hashed: whether hashes of its files are stored.
        damaged: called for the paths of its files that do not have their hash.
        remove: called to remove it; returns the bytes freed, and raises UsageError if it must stay.
    """

    name: str
    kind: str
    place: Path
    path: Path
    size: int
    hashed: bool
    damaged: Callable[[], list[Path]] = field(repr=False)
    remove: Callable[[], int] = field(repr=False)
    aliases: tuple[str, ...] = ()

    def facts(self) -> dict[str, Any]:
        """As JSON data."""
        return {"name": self.name, "kind": self.kind, "path": str(self.path), "size": self.size, "hashed": self.hashed}


def items() -> list[Item]:
    """All that is in the caches, the files of the Hub first."""
    return [*_from_hub(), *_recorded(), *_loose()]


def chosen(names: Sequence[str], *, everything: bool = False) -> list[Item]:
    """The items with one of ``names``, which may be globs, addresses, or names of the registry; or ``everything``.

    Raises:
        NothingMatches: a name matches none.
    """
    found = items()
    if everything:
        return found
    picked: dict[int, Item] = {}
    for name in names:
        pattern = name.removeprefix("hf-hub:")
        matches = {
            n: item
            for n, item in enumerate(found)
            if any(fnmatch.fnmatchcase(one, pattern) for one in (item.name, *item.aliases))
        }
        if not matches:
            raise NothingMatches(f"nothing in the caches is called '{name}': `zoo cache ls` shows what there is")
        picked |= matches
    return list(picked.values())


# -- files of the Hub ------------------------------------------------------------------------------------------------


def _from_hub() -> Iterator[Item]:
    groups: dict[tuple[Path, str, str, str], list[Download]] = {}
    for one in _downloads():
        groups.setdefault((one.cache, one.repo_type, one.repo_id, one.revision), []).append(one)
    for (cache, repo_type, repo_id, revision), files in sorted(groups.items()):
        models = [name for name, entry in _entries() if entry == (repo_id, revision)]
        names = (repo_id, f"{repo_id}@{revision}", f"{repo_id}@{revision[:12]}")
        name = models[0] if len(models) == 1 else f"{repo_id}@{revision[:12]}"
        paths = {Path(file.path): file.sha256 for file in files}
        yield Item(
            name=name,
            kind="weights" if repo_type == "model" else "data set",
            place=cache,
            path=next(iter(paths)).parent,
            size=sum(file.size for file in files),
            hashed=True,
            damaged=partial(_changed, paths),
            remove=partial(_removed, files),
            aliases=(*names, *models),
        )


def _entries() -> list[tuple[str, tuple[str, str]]]:
    """The names of the registry's entries that are at the Hub, with repository and commit."""
    with suppress(ZooError):  # the caches are shown without a registry, too
        hubs = [(name, entry.weights.hub) for name, entry in load_registry().models.items()]
        return [(name, (hub.repo_id, hub.revision)) for name, hub in hubs if hub]
    return []


def _downloads() -> Iterator[Download]:
    """The record of downloads; notes on files that are gone are removed."""
    for note in sorted((cache_root() / "downloads").glob("*.json")):
        with suppress(TypeError, AttributeError, IntegrityError, OSError):
            one = Download(**stored_json(note))
            if one.note != note or not one.placed:
                continue
            if Path(one.path).exists():
                yield one
            else:
                note.unlink(missing_ok=True)


def _changed(paths: dict[Path, str]) -> list[Path]:
    wrong = []
    for path, sha256 in paths.items():
        try:
            check_sha256(path, sha256)
        except (IntegrityError, OSError):
            wrong.append(path)
    return wrong


def _removed(files: Sequence[Download]) -> int:
    """Remove the revision of the repository that ``files`` are from, and the repository with its last revision; returns
    the bytes freed, which are fewer than theirs if another revision has the same files.

    The client itself removes nothing from a repository that an interrupted download has left incomplete, and takes
    equal commits of two repositories for one.
    """
    one = files[0]
    snapshot = Path(one.path).parents[one.filename.count("/")]
    snapshots, repository = snapshot.parent, snapshot.parents[1]
    held = _files(snapshot)
    if others := {path for path in held if path.exists()} - {Path(file.path) for file in files}:
        raise UsageError(
            f"another program has put '{min(others).name}' into the same revision: `hf cache` can remove it"
        )
    blobs = set(map(_target, held)) - {_target(path) for path in _files(snapshots) - held}
    freed = _size(blobs)
    for path in held | {blob for blob in blobs if blob.parent == repository / "blobs"}:
        path.unlink(missing_ok=True)
    shutil.rmtree(snapshot)
    for ref in _files(repository / "refs"):
        if ref.read_text(encoding="utf-8", errors="replace") == one.revision:
            ref.unlink(missing_ok=True)
    if not any(snapshots.iterdir()):
        shutil.rmtree(repository)
    for file in files:
        file.note.unlink(missing_ok=True)
    return freed


def _files(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir()}


def _target(path: Path) -> Path:
    """The blob that ``path`` links to, or the file itself where the cache has no links."""
    return Path(os.path.abspath(path.parent / os.readlink(path))) if path.is_symlink() else path


# -- the package's own cache -----------------------------------------------------------------------------------------


def _recorded() -> Iterator[Item]:
    """Folders whose last file is a record of the others' hashes, made by :func:`zoo.system.cache.cached`."""
    root = cache_root()
    groups: dict[Path, list[Path]] = {}
    for mark in sorted([*root.glob(f"*/{MARK}"), *root.glob(f"robust-data-*/*/{MARK}")]):
        top = root / mark.relative_to(root).parts[0]
        if re.fullmatch(r".+-[0-9a-f]{12,64}", top.name) and not top.is_symlink():
            groups.setdefault(top, []).append(mark.parent)
    for top, folders in groups.items():
        files = [folder / name for folder in folders for name in (*_record(folder), MARK)]
        hashed = all((folder / MARK).stat().st_size for folder in folders)  # older ones have an empty record
        yield Item(
            name=top.name,
            kind=next(kind for prefix, kind in RECORDED if top.name.startswith(prefix)),
            place=root,
            path=top,
            size=_size(files),
            hashed=hashed,
            damaged=partial(_altered, files) if hashed else list,
            remove=partial(_tidied, top, files),
        )


def _altered(files: Iterable[Path]) -> list[Path]:
    """Those of ``files`` that are not as recorded; of a record, whether it can be read."""
    return [path for path in files if not (_record(path.parent) if path.name == MARK else intact(path))]


def _record(folder: Path) -> tuple[str, ...]:
    """The names of the files in a folder's record, none if it is damaged; an empty one is of arrays."""
    with suppress(IntegrityError, OSError):
        if (folder / MARK).stat().st_size == 0:
            return tuple(path.name for path in folder.glob("*.npy"))
        stored = stored_json(folder / MARK)
        if isinstance(stored, dict):
            return tuple(name for name in stored if Path(name).name == name)
    return ()


def _loose() -> Iterator[Item]:
    for name, pattern, kind in LOOSE:
        folder = cache_root() / name
        if folder.is_symlink() or not folder.is_dir():
            continue
        files = [path for path in sorted(folder.iterdir()) if re.fullmatch(pattern, path.name) and path.is_file()]
        if files:
            yield Item(
                name=name,
                kind=kind,
                place=cache_root(),
                path=folder,
                size=_size(files),
                hashed=False,
                damaged=list,
                remove=partial(_tidied, folder, files),
            )


def _tidied(folder: Path, files: Sequence[Path]) -> int:
    """Remove ``files`` and what becomes empty of ``folder``; returns the bytes freed. Files that others put there stay.

    Raises:
        OSError: one cannot be removed.
    """
    freed = _size(files)
    for path in files:
        path.unlink(missing_ok=True)
    for empty in sorted({folder, *(path.parent for path in files)}, reverse=True):
        with suppress(OSError):
            empty.rmdir()
    return freed


def _size(paths: Iterable[Path]) -> int:
    total = 0
    for path in paths:
        with suppress(OSError):
            total += path.stat().st_size
    return total
