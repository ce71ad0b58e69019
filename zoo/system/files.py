"""Safe files: atomic writes, hashes, locks, and the cache."""

from __future__ import annotations

import codecs
import errno
import hashlib
import json
import os
import shutil
import stat
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from zoo.system.errors import DataNotFound, IntegrityError, UsageError
from zoo.system.notice import say_once

if TYPE_CHECKING:
    import numpy as np

# -- writing ---------------------------------------------------------------------------------------------------

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # no room on the disk, or for this user, or in one file


def write_atomic(path: Path, content: bytes | str) -> None:
    """Write ``content`` (text as UTF-8) to ``path`` atomically; see :func:`replaced`."""
    with replaced(path) as file:
        file.write(encoded(content) if isinstance(content, str) else content)


@contextmanager
def replaced(path: Path) -> Iterator[BinaryIO]:
    """A temporary file to write to; it atomically replaces ``path`` when the block ends without an error.

    If the process is killed or the disk is full, the old file is unchanged. If ``path`` is a symbolic link, its target
    is replaced, not the link.

    Raises:
        UsageError: ``path`` is a folder, a pipe or a device.
        OSError: the folder cannot be written, or the disk is full; it names ``path``.
    """
    if kind := kind_of(path):
        raise UsageError(f"'{path}' is {kind}, not a file: choose a file")
    path = path.resolve()
    handle, scratch = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with open(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(scratch, path.stat().st_mode & 0o777 if path.exists() else 0o666 & ~_umask())
        os.replace(scratch, path)
    except BaseException as error:
        with suppress(FileNotFoundError):
            os.unlink(scratch)
        full = error.__context__ if isinstance(error, RuntimeError) else error  # torch.save raises its own
        if isinstance(full, OSError) and full.errno in FULL:
            raise OSError(full.errno, full.strerror, str(path)) from None
        raise


def copy_atomic(source: Path, target: Path) -> None:
    """Copy the content of ``source`` to ``target`` atomically."""
    with open(source, "rb") as original, replaced(target) as file:
        shutil.copyfileobj(original, file)


# -- text ------------------------------------------------------------------------------------------------------


def read_utf8(path: Path, *, limit: int = 64_000_000) -> bytes:
    """The content of a text file, without the byte order mark that some editors of Windows write.

    Raises:
        IntegrityError: it has more than ``limit`` bytes, which no file of ours has.
        OSError: it cannot be read.
    """
    with open(path, "rb") as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise IntegrityError(f"'{path}' has more than {limit:,} bytes: it is not read")
    return content.removeprefix(codecs.BOM_UTF8)


def encoded(text: str) -> bytes:
    """``text`` as UTF-8; in names of files that were read without a UTF-8 locale, the bytes that they have."""
    return text.encode("utf-8", "surrogateescape")


def stored_json(path: Path) -> Any:
    """The JSON in ``path``, a file that can be made again.

    Raises:
        IntegrityError: it is damaged.
    """
    try:
        return json.loads(path.read_bytes())
    except ValueError as error:
        raise IntegrityError(f"'{path}' is damaged ({error}): remove it, and it is made again") from None


# -- folders -----------------------------------------------------------------------------------------------------


def existing(path: Path) -> Path:
    """``path``, or the nearest folder above it that exists."""
    return path if path.exists() else existing(path.parent)


def check_folder(path: Path) -> None:
    """Raise UsageError if ``path`` cannot be a folder, because it or a part of it is a file."""
    found = existing(path)
    if not found.is_dir():
        raise UsageError(f"'{found}' is a file, not a folder: choose another folder")


KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFLNK: "a link",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def kind_of(path: Path, *, follow: bool = True) -> str | None:
    """What ``path`` is instead of a plain file, such as "a named pipe"; None for a plain file, and for nothing.

    Opening a pipe or a device may wait for ever, so this is asked before a file is opened that others have made.

    Args:
        follow: look at the target of a link; False: a link is "a link".
    """
    try:
        return KINDS.get(stat.S_IFMT(path.stat(follow_symlinks=follow).st_mode))
    except OSError:
        return None


def _umask() -> int:
    umask = os.umask(0o022)
    os.umask(umask)
    return umask


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold an exclusive lock on ``folder``; no lock file is created. A thread that holds it may lock it again.

    Without ``fcntl`` (Windows) nothing is locked; writes are still atomic.
    """
    state = folder.stat()
    key = (threading.get_ident(), state.st_dev, state.st_ino)
    if key in _HELD:
        yield
        return
    lock = lock_of(folder, wait=True)
    _HELD.add(key)
    try:
        yield
    finally:
        _HELD.remove(key)
        if lock is not None:
            os.close(lock)


_HELD: set[tuple[int, int, int]] = set()  # thread, device and inode of the folders that are locked


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

MARK = "complete"  # the last file of a folder in the cache: the SHA-256 of each other file, as JSON
Fill = Callable[[Path], None]


def cache_root() -> Path:
    """The cache folder: ``ZOO_CACHE``, else ``~/.cache/robust-zoo``. It may not exist yet."""
    return Path(os.environ.get("ZOO_CACHE") or Path.home() / ".cache" / "robust-zoo")


def cached(key: str, fill: Fill) -> Path:
    """The folder ``key`` of the cache. If it is missing, ``fill`` writes a temporary folder, which is then renamed.

    Raises:
        DataNotFound: the cache cannot be written.
    """
    root = cache_root() / key
    if not (root / MARK).exists():
        _fill(root, fill)
    return root


def mapped(path: Path, fill: Fill | None = None) -> np.ndarray:
    """The array in ``path``, a .npy file in a folder of the cache, as a read-only memory map.

    If the file is not :func:`intact`, ``fill`` makes its folder again.

    Raises:
        IntegrityError: the file is missing or damaged, and there is no ``fill``.
        DataNotFound: it is missing or damaged, and the cache cannot be written.
    """
    import numpy as np

    if not intact(path) and fill:
        say_once(f"'{path}' is missing or damaged: its folder of the cache is made again")
        _fill(path.parent, fill)
    try:
        if intact(path):
            return np.load(path, mmap_mode="r")
    except (OSError, ValueError, EOFError):
        pass
    raise IntegrityError(f"'{path}' is missing or damaged: delete the folder '{path.parent}', and it is made again")


def intact(path: Path) -> bool:
    """Whether ``path`` is as it was written, by the record of its folder. A file without a record must only exist.

    The file is hashed once in a process, and again if its size or time changes (0.1 s for 100 MB).
    """
    mark = path.with_name(MARK)
    try:
        state = path.stat()
        if not mark.exists():
            return True
        actual = _sha256_once(path, state.st_mtime_ns, state.st_size, state.st_ino)
        return actual == json.loads(mark.read_bytes())[path.name]
    except (OSError, ValueError, LookupError, TypeError):  # the last three: of the record
        return False


@cache
def _sha256_once(path: Path, *state: int) -> str:
    return sha256_file(path)


def _fill(root: Path, fill: Fill) -> None:
    """Make the folder ``root`` of the cache with ``fill``, and replace the one that is there."""
    try:
        root.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f"{root.name}.", dir=root.parent))
        try:
            new = scratch / "new"
            new.mkdir()
            fill(new)
            record = {path.name: sha256_file(path) for path in new.iterdir()}
            (new / MARK).write_text(json.dumps(record), encoding="utf-8", newline="\n")
            with suppress(FileNotFoundError):
                os.replace(root, scratch / "old")
            try:
                os.replace(new, root)
            except OSError:
                if not (root / MARK).exists():  # otherwise another process has just made the same folder
                    raise
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    except OSError as error:
        raise DataNotFound(
            f"the cache '{root.parent}' cannot be written ({error.strerror or error}): "
            "set ZOO_CACHE to a writable folder with enough space"
        ) from None
