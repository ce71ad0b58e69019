"""Safe files: atomic writes, hashes and locks."""

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
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from zoo.system.errors import IntegrityError, UsageError

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
