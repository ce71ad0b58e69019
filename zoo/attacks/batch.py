"""Shrinking a batch to the images that still resist."""

from __future__ import annotations

from torch import Tensor

BUCKET = 4  # every new batch size costs a CPU some milliseconds of kernel set-up; sizes 0 and 1, a recompilation


def survivors(done: Tensor) -> Tensor | None:
    """The positions to keep, those not done first; ``None`` while dropping others would not pay.

    The batch shrinks by whole buckets, padded with images that are done: few sizes, and never a single image.

    Shapes: done bool [N]; returns int64 [M], M < N a multiple of the bucket, 0 when all are done.
    """
    live = len(done) - int(done.sum())
    size = -(-live // BUCKET) * BUCKET
    if size >= len(done) and live:
        return None
    return done.byte().argsort(stable=True)[:size]
