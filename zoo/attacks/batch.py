"""Shrink a batch to the images that are not broken yet."""

from __future__ import annotations

import torch
from torch import Tensor

BUCKET = 4  # a new batch size costs a CPU milliseconds of kernel set-up; sizes 0 and 1 cost a compiled net another


def survivors(done: Tensor) -> Tensor | None:
    """The indices to keep, images that are not done first; None if the batch cannot shrink by a bucket.

    The batch is padded with images that are done to a multiple of the bucket, so there are few sizes and never size 1.

    Shapes: done bool [N]; returns int64 [M], M < N a multiple of the bucket, 0 when all are done.
    """
    live = len(done) - int(done.sum())
    size = -(-live // BUCKET) * BUCKET
    if size >= len(done) and live:
        return None
    return done.byte().argsort(stable=True)[:size]


def padded(index: Tensor) -> Tensor:
    """``index`` [M], M of at least 1, with its first entry repeated up to a multiple of the bucket."""
    return torch.cat([index, index[:1].expand(-len(index) % BUCKET)])
