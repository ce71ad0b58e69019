"""Where decoded datasets, downloads and notes about checked files are kept."""

from __future__ import annotations

import os
from pathlib import Path


def cache_root() -> Path:
    """``ZOO_CACHE``, else ``~/.cache/robust-zoo``; it need not exist."""
    return Path(os.environ.get("ZOO_CACHE") or Path.home() / ".cache" / "robust-zoo")
