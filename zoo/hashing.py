"""SHA-256 of files. About 1 s a gigabyte: weights are hashed at every load, and no note can go stale."""

from __future__ import annotations

import hashlib
from pathlib import Path

from zoo.errors import IntegrityError


def sha256_file(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_sha256(path: Path, sha256: str) -> None:
    """Raise IntegrityError unless the file has this SHA-256."""
    found = sha256_file(path)
    if found != sha256:
        raise IntegrityError(
            f"'{path}' has SHA-256 {found[:12]}... where {sha256[:12]}... is expected: fetch or install it again"
        )
