"""The cache: its place, and folders in it that are whole or not there, such as decoded data sets."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from zoo.system.errors import DataNotFound, IntegrityError
from zoo.system.files import sha256_file
from zoo.system.notice import say_once

if TYPE_CHECKING:
    import numpy as np

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
