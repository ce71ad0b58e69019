"""Gumbel-softmax: differentiable one-hot choices (Jang et al. 2017; RNAS-CL, section 3.2)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Noise = Literal["gumbel", "normal"]


def gumbel_softmax(v: Tensor, tau: float, *, noise: Noise = "gumbel", generator: torch.Generator) -> Tensor:
    """g_i = exp((v_i + e_i) / tau) / sum_j exp((v_j + e_j) / tau), over the last dimension of ``v`` [..., n].

    Args:
        noise: ``gumbel`` draws e from Gumbel(0, 1), which makes argmax g a sample of softmax(v); ``normal`` draws
            from N(0, 1), as RNAS-CL states it.
        generator: on the device of ``v``.
    """
    if noise == "gumbel":
        e = -torch.empty_like(v).exponential_(generator=generator).log()
    else:
        e = torch.empty_like(v).normal_(generator=generator)
    return ((v + e) / tau).softmax(-1)


def temperature(progress: float, first: float, last: float) -> float:
    """tau, annealed geometrically from ``first`` to ``last`` as ``progress`` goes from 0 to 1.

    The paper's 5 x e^(-0.045 epoch) over 100 epochs goes from 5 to 0.056, in this form for any number of epochs.
    """
    return first * (last / first) ** progress
