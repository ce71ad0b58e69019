"""Files that are there whole or not at all: atomic writes, hashes, locks, and the cache."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from zoo.system.errors import DataNotFound, IntegrityError

# -- writing ---------------------------------------------------------------------------------------------------


def write_atomic(path: Path, content: bytes | str) -> None:
    """Replace ``path`` by ``content`` (text is written as UTF-8) in one step: see :func:`replaced`."""
    with replaced(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


@contextmanager
def replaced(path: Path) -> Iterator[BinaryIO]:
    """A file to write to, which takes the place of ``path`` in one step when the block ends without an error.

    A kill or a full disk leaves the old file as it was. A symbolic link is followed: the file that it names is
    replaced, not the link.

    Raises:
        OSError: the folder cannot be written, or the disk is full.
    """
    path = path.resolve()
    handle, scratch = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with open(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(scratch, path.stat().st_mode & 0o777 if path.exists() else 0o666 & ~_umask())
        os.replace(scratch, path)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(scratch)
        raise


def copy_atomic(source: Path, target: Path) -> None:
    """Copy the content of ``source`` to ``target``, whole or not at all."""
    with open(source, "rb") as original, replaced(target) as file:
        shutil.copyfileobj(original, file)


def _umask() -> int:
    umask = os.umask(0o022)
    os.umask(umask)
    return umask


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold ``folder`` against other processes that take the same lock; nothing is left in it.

    Without ``fcntl`` (Windows) there is no lock, and writes are merely atomic.
    """
    lock = lock_of(folder, wait=True)
    try:
        yield
    finally:
        if lock is not None:
            os.close(lock)


def lock_of(folder: Path, *, wait: bool = False) -> int | None:
    """A descriptor that holds the exclusive lock on ``folder`` until it is closed, however this process ends.

    None if another living process has the lock and this one does not ``wait`` for it, and always without ``fcntl``.
    """
    try:
        import fcntl
    except ImportError:
        return None
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


# -- hashes ----------------------------------------------------------------------------------------------------


def sha256_file(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal. About 1 s a gigabyte: files are hashed at every load."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_sha256(path: Path, sha256: str) -> None:
    """Raise IntegrityError unless the file has this SHA-256."""
    found = sha256_file(path)
    if found != sha256:
        raise IntegrityError(
            f"'{path}' has SHA-256 {found[:12]}... where {sha256[:12]}... is expected: fetch or install it again"
        )


# -- the cache of decoded data sets, downloads and notes about checked files --------------------------------------


def cache_root() -> Path:
    """``ZOO_CACHE``, else ``~/.cache/robust-zoo``; it need not exist."""
    return Path(os.environ.get("ZOO_CACHE") or Path.home() / ".cache" / "robust-zoo")


def cached(key: str, fill: Callable[[Path], None]) -> Path:
    """The cache's folder ``key``, made by ``fill`` if it is not there: beside it and renamed, so a kill leaves nothing.

    Raises:
        DataNotFound: the cache cannot be written.
    """
    root = cache_root() / key
    if (root / "complete").exists():
        return root
    try:
        root.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f"{key}.", dir=root.parent))
    except OSError as error:
        raise DataNotFound(
            f"the cache '{root.parent}' cannot be written ({error.strerror}): set ZOO_CACHE to a folder that can"
        ) from None
    try:
        fill(scratch)
        (scratch / "complete").touch()
        if not root.exists():  # else another process was first, and has the same
            os.replace(scratch, root)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return root
