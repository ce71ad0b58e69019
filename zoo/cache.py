"""Where decoded datasets, downloads and notes about checked files are kept."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from zoo.errors import DataNotFound


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
