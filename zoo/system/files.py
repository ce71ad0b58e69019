"""Safe files: atomic writes, hashes, locks, and the cache."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from zoo.system.errors import DataNotFound, IntegrityError, UsageError

if TYPE_CHECKING:
    import numpy as np

# -- writing ---------------------------------------------------------------------------------------------------


def write_atomic(path: Path, content: bytes | str) -> None:
    """Write ``content`` (text as UTF-8) to ``path`` atomically; see :func:`replaced`."""
    with replaced(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


@contextmanager
def replaced(path: Path) -> Iterator[BinaryIO]:
    """A temporary file to write to; it atomically replaces ``path`` when the block ends without an error.

    If the process is killed or the disk is full, the old file is unchanged. If ``path`` is a symbolic link, its target
    is replaced, not the link.

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
    """Copy the content of ``source`` to ``target`` atomically."""
    with open(source, "rb") as original, replaced(target) as file:
        shutil.copyfileobj(original, file)


def existing(path: Path) -> Path:
    """``path``, or the nearest folder above it that exists."""
    return path if path.exists() else existing(path.parent)


def check_folder(path: Path) -> None:
    """Raise UsageError if ``path`` cannot be a folder, because it or a part of it is a file."""
    found = existing(path)
    if not found.is_dir():
        raise UsageError(f"'{found}' is a file, not a folder: choose another folder")


def _umask() -> int:
    umask = os.umask(0o022)
    os.umask(umask)
    return umask


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold an exclusive lock on ``folder``; no lock file is created.

    Without ``fcntl`` (Windows) nothing is locked; writes are still atomic.
    """
    lock = lock_of(folder, wait=True)
    try:
        yield
    finally:
        if lock is not None:
            os.close(lock)


def lock_of(folder: Path, *, wait: bool = False) -> int | None:
    """A file descriptor that holds an exclusive lock on ``folder`` until it is closed or the process ends.

    None if another process holds the lock and ``wait`` is False, and always None without ``fcntl``.
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
    """The SHA-256 of a file, in hexadecimal. It takes about 1 s per gigabyte, and every load does it."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_sha256(path: Path, sha256: str) -> None:
    """Raise IntegrityError unless the file has this SHA-256."""
    actual = sha256_file(path)
    if actual != sha256:
        raise IntegrityError(
            f"'{path}' has SHA-256 {actual[:12]}..., but {sha256[:12]}... is expected: fetch or install it again"
        )


# -- the cache: decoded data sets, downloads, records of checked files ---------------------------------------------


def cache_root() -> Path:
    """The cache folder: ``ZOO_CACHE``, else ``~/.cache/robust-zoo``. It may not exist yet."""
    return Path(os.environ.get("ZOO_CACHE") or Path.home() / ".cache" / "robust-zoo")


def cached(key: str, fill: Callable[[Path], None]) -> Path:
    """The folder ``key`` of the cache. If it is missing, ``fill`` writes a temporary folder, which is then renamed.

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
            f"the cache '{root.parent}' cannot be written ({error.strerror}): set ZOO_CACHE to a writable folder"
        ) from None
    try:
        fill(scratch)
        (scratch / "complete").touch()
        if not root.exists():  # otherwise another process has just made the same folder
            os.replace(scratch, root)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return root


def mapped(path: Path) -> np.ndarray:
    """The array in ``path``, a .npy file of the cache, as a read-only memory map.

    Raises:
        IntegrityError: the file is missing or damaged.
    """
    import numpy as np

    try:
        return np.load(path, mmap_mode="r")
    except (OSError, ValueError, EOFError):
        raise IntegrityError(
            f"'{path}' is missing or damaged: delete the folder '{path.parent}' of the cache, and it is made again"
        ) from None
