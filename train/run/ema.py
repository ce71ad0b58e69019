"""Exponential moving average of weights, with BatchNorm statistics recomputed: +1 to +2 points of AutoAttack."""

from __future__ import annotations

from collections.abc import Iterable
from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


class Average(nn.Module):
    """The average of a model's weights over its updates, as the copy ``module``.

    Its decay rises as (1 + n) / (10 + n) to ``decay``, to forget early weights. Unlike torch's ``AveragedModel``, an
    update never waits for the GPU.
    """

    n_averaged: Tensor  # updates so far, always on the CPU

    def __init__(self, model: nn.Module, decay: float, *, statistics: bool = False) -> None:
        """With ``statistics`` the running statistics are averaged too, for a net whose own are not recomputed."""
        super().__init__()
        self.module = deepcopy(model)
        self.decay, self.statistics = decay, statistics
        self.register_buffer("n_averaged", torch.tensor(0))

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Move the average towards ``model``, whose weights it takes at the first update."""
        n = int(self.n_averaged)
        weight = 1 - min(self.decay, (1 + n) / (10 + n)) if n else 1.0
        averaged: list[Tensor] = list(self.module.parameters())
        current: list[Tensor] = list(model.parameters())
        copied, source = list(self.module.buffers()), list(model.buffers())
        if self.statistics:  # all but the numbers of batches
            floating = [place for place, buffer in enumerate(copied) if buffer.is_floating_point()]
            averaged += [copied[place] for place in floating]
            current += [source[place] for place in floating]
        torch._foreach_lerp_(averaged, current, weight)
        for kind in {buffer.dtype for buffer in copied}:  # one kernel for each type
            chosen = [place for place, buffer in enumerate(copied) if buffer.dtype == kind]
            if not (self.statistics and kind.is_floating_point):
                torch._foreach_copy_([copied[place] for place in chosen], [source[place] for place in chosen])
        self.n_averaged += 1


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
