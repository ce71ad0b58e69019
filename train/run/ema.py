"""Exponential moving average of weights, with BatchNorm statistics recomputed: +1 to +2 points of AutoAttack."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import AveragedModel


def ema_of(model: nn.Module, decay: float, *, statistics: bool = False) -> AveragedModel:
    """An average of ``model`` whose decay rises as (1 + n) / (10 + n) to ``decay``, to forget early weights.

    With ``statistics`` the running statistics are averaged too, for a net whose own are not recomputed.
    """

    def average(averaged: Any, current: Any, n: Any) -> None:
        rising = (1 + float(n)) / (10 + float(n))
        if averaged[0].is_floating_point():
            torch._foreach_lerp_(averaged, current, 1 - min(decay, rising))
        else:  # numbers of batches
            torch._foreach_copy_(averaged, current)

    return AveragedModel(model, multi_avg_fn=average, use_buffers=statistics)


def recalibrate(model: nn.Module, batches: Iterable[Tensor]) -> None:
    """Recompute the BatchNorm statistics of ``model``: the mean over ``batches`` of images [N, C, H, W], weighed by
    their sizes. Mode and momentum stay as they were. Without batches the statistics are those of a new net."""
    norms = {module: module.momentum for module in model.modules() if isinstance(module, _BatchNorm)}
    mode, seen = model.training, 0
    for norm in norms:
        norm.reset_running_stats()
    model.train()
    try:
        with torch.compiler.set_stance("force_eager"):  # the momentum changes with every batch
            for batch in batches:
                seen += len(batch)
                for norm in norms:
                    norm.momentum = len(batch) / seen
                model(batch)
    finally:
        for norm, momentum in norms.items():
            norm.momentum = momentum
        model.train(mode)
