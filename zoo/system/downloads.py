"""The cache of the Hub's client: the hashes that it states, and records of the files that were put into it."""

from __future__ import annotations

import hashlib
import json
import os
import re
from contextlib import nullcontext, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from zoo.system.cache import cache_root
from zoo.system.errors import IntegrityError
from zoo.system.files import check_sha256, stored_json, write_atomic

COMMIT = re.compile(r"[0-9a-f]{40}")
_HASH = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")


def stated_sha256(path: Path) -> str | None:
    """The SHA-256 of a cached file as the cache states it, which names large files by it; where it cannot link to these
    names, as the record of the download states it. None if neither does."""
    stated = stated_hash(path) or ""
    return stated if len(stated) == 64 else None


def check_blob(path: Path) -> None:
    """Raise IntegrityError if ``path`` is a cached file without the hash that the cache has of the Hub: the SHA-256 of
    a large file, git's hash of a small one (from some mirrors its SHA-1)."""
    check_hash(path, stated_hash(path) or "")


def stated_hash(path: Path) -> str | None:
    """The hash of a cached file that its name or its record states; None if neither does."""
    if _HASH.fullmatch(name := path.resolve().name):
        return name
    with suppress(OSError, IntegrityError, LookupError, TypeError):
        return str(stored_json(_note(path))["sha256"])
    return None


def check_hash(path: Path, stated: str) -> None:
    """Raise IntegrityError if ``path`` does not have the hash: a SHA-256, git's, or a SHA-1; others are not checked."""
    if len(stated) == 64:
        check_sha256(path, stated)
    elif COMMIT.fullmatch(stated):
        content = path.read_bytes()
        if stated not in (git_hash(content), hashlib.sha1(content).hexdigest()):
            raise IntegrityError(f"'{path}' was altered or damaged: it does not have the Hub's hash")


def git_hash(content: bytes) -> str:
    """The name that git gives to a file with this content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def commit_of(path: Path, filename: str) -> str:
    """The commit that the file ``filename`` of a repository is from, by its ``path`` in the client's cache."""
    return path.parents[filename.count("/")].name


@dataclass(frozen=True)
class Download:
    """The record of a file that was put into the client's cache: only such files are removed from there again."""

    repo_type: str
    repo_id: str
    revision: str  # the commit
    filename: str
    path: str
    size: int
    sha256: str

    @property
    def cache(self) -> Path:
        """The client's cache folder that the file is in: ``CACHE/models--org--name/snapshots/COMMIT/FILENAME``."""
        return Path(self.path).parents[3 + self.filename.count("/")]

    @property
    def placed(self) -> bool:
        """Whether its path is where the client puts the file."""
        repository = f"{self.repo_type}s--{self.repo_id.replace('/', '--')}"
        place = Path(repository, "snapshots", self.revision, self.filename)
        return COMMIT.fullmatch(self.revision) is not None and Path(self.path).parts[-len(place.parts) :] == place.parts

    @property
    def note(self) -> Path:
        """The file of this record."""
        return _note(Path(self.path))

    def write(self) -> None:
        """Store the record; where the cache cannot be written, the file is used all the same."""
        with suppress(OSError):
            self.note.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(self.note, json.dumps(asdict(self), indent=2) + "\n")


def _note(path: Path) -> Path:
    return cache_root() / "downloads" / f"{hashlib.sha256(os.fsencode(path.absolute())).hexdigest()}.json"


def remove_partial(cache: Path, repo: str) -> int:
    """Remove what interrupted downloads left of the repository folder ``repo`` in a cache; returns the bytes freed.

    The client holds a lock while it downloads: a file whose lock is free belongs to a process that was killed.
    """
    from filelock import FileLock, Timeout

    freed = 0
    for path in (cache / repo / "blobs").glob("*.incomplete"):
        lock = cache / ".locks" / repo / f"{path.name.partition('.')[0]}.lock"
        with suppress(OSError, Timeout, NotImplementedError), FileLock(lock, 0) if lock.exists() else nullcontext():
            size = path.stat().st_size
            path.unlink()
            freed += size
    return freed
