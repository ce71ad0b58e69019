"""Exponential moving average of weights, with BatchNorm statistics recomputed: +1 to +2 points of AutoAttack."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, update_bn


def ema_of(model: nn.Module, decay: float) -> AveragedModel:
    """An average of ``model`` whose decay rises as (1 + n) / (10 + n) to ``decay``, to forget early weights."""

    def average(averaged: Any, current: Any, n: Any) -> None:
        rising = (1 + float(n)) / (10 + float(n))
        torch._foreach_lerp_(averaged, current, 1 - min(decay, rising))

    return AveragedModel(model, multi_avg_fn=average)


def recalibrate(model: nn.Module, batches: Iterable[Tensor]) -> None:
    """Recompute the BatchNorm statistics of ``model`` over ``batches`` of images [N, C, H, W], as a plain mean."""
    with torch.compiler.set_stance("force_eager"):  # a plain mean counts batches in Python, which does not compile
        update_bn(batches, model)
