"""Silence while a library prints. Standard output is the whole program's, so this is for one thread at a time."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from threading import RLock, get_ident
from typing import Any, TextIO

_LOCK = RLock()


class _Others:
    """Standard output for all threads but the one that makes this."""

    def __init__(self, real: TextIO) -> None:
        self._real, self._silent = real, get_ident()

    def write(self, text: str) -> int:
        return len(text) if get_ident() == self._silent else self._real.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


@contextmanager
def silence() -> Iterator[None]:
    """Inside, what this thread prints is dropped; another thread waits before it may enter."""
    with _LOCK, redirect_stdout(_Others(sys.stdout)):
        yield
