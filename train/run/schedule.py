"""Learning-rate schedules: pure functions of progress in [0, 1] that return a factor of the peak rate."""

from __future__ import annotations

import math
from collections.abc import Sequence


def onecycle(progress: float, *, warmup: float) -> float:
    """Linear up to 1 at ``warmup``, then linear down to 0."""
    if progress < warmup:
        return 0.05 + 0.95 * progress / warmup
    return max(0.0, (1 - progress) / (1 - warmup))


def cosine(progress: float) -> float:
    """Half a period of the cosine, from 1 down to 0 (Loshchilov and Hutter 2017, eq. 5, without restarts)."""
    return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def step(progress: float, *, milestones: Sequence[float], gamma: float) -> float:
    """1, times ``gamma`` at every milestone passed."""
    return gamma ** sum(progress >= milestone for milestone in milestones)
