"""Convolutions of a GPU in float32: TF32 rounds to 10 bits, and not alike for all batch sizes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from threading import Lock

import torch

_LOCK, _SWITCH, _INSIDE = Lock(), ExitStack(), list[None]()  # an entry for each block that any thread is in


@contextmanager
def exact() -> Iterator[None]:
    """Inside, cuDNN neither rounds to TF32 nor tries out algorithms for each new size of a batch.

    These switches are the whole program's: they are put back when the last block of all threads ends.
    """
    with _LOCK:
        if not _INSIDE:
            _SWITCH.enter_context(torch.backends.cudnn.flags(enabled=True, allow_tf32=False))
        _INSIDE.append(None)
    try:
        yield
    finally:
        with _LOCK:
            _INSIDE.pop()
            if not _INSIDE:
                _SWITCH.close()
