"""Files that are there whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def write_atomic(path: Path, content: bytes) -> None:
    """Replace ``path`` by ``content`` in one step; a kill or a full disk leaves the old file as it was.

    A symbolic link is followed: the file that it names is replaced, not the link.

    Raises:
        OSError: the folder cannot be written, or the disk is full.
    """
    path = path.resolve()
    handle, scratch = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with open(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(scratch, path.stat().st_mode & 0o777 if path.exists() else 0o666 & ~_umask())
        os.replace(scratch, path)
    except BaseException:
        os.unlink(scratch)
        raise


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold ``folder`` against other processes that take the same lock; nothing is left in it.

    Without ``fcntl`` (Windows) there is no lock, and writes are merely atomic.
    """
    try:
        import fcntl
    except ImportError:
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _umask() -> int:
    umask = os.umask(0o022)
    os.umask(umask)
    return umask
