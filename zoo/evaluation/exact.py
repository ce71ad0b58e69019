"""Convolutions of a GPU in float32: TF32 rounds to 10 bits, and not alike for all batch sizes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock

import torch

_LOCK, _BEFORE = Lock(), list[bool]()  # one entry for each block that is open in any thread


@contextmanager
def exact() -> Iterator[None]:
    """Inside, and in all other threads meanwhile, cuDNN does not round to TF32. The switch is the whole program's: the
    last block that ends puts it back."""
    with _LOCK:
        _BEFORE.append(_BEFORE[-1] if _BEFORE else torch.backends.cudnn.allow_tf32)
        torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        with _LOCK:
            before = _BEFORE.pop()
            if not _BEFORE:
                torch.backends.cudnn.allow_tf32 = before
