"""Whether the directions of an attack may come from a copy of the model in bfloat16 (:mod:`zoo.attacks.guide`)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from zoo.attacks.guide import Guided, Rough, fast_bf16
from zoo.attacks.inputs import without_gradients
from zoo.attacks.losses import ascend, cross_entropy, margin

WORTH = 50_000  # parameters; smaller nets spend their time elsewhere
SLACK = 2  # times the largest error of a margin that was seen
CLOSE, ALIKE = 0.25, 0.95  # at most this share of the median margin; at least this share of equal signs of the gradient


def guided(model: nn.Module, x: Tensor, y: Tensor) -> nn.Module:
    """``model`` with a guide if one is faster on its device and agrees with it on images x [N, C, H, W] with labels
    y [N]; else ``model``."""
    parameters = list(model.parameters())
    plain = all(one.dtype == torch.float32 for one in parameters)
    if not plain or sum(map(torch.numel, parameters)) < WORTH or not fast_bf16(x.device):
        return model
    rough = Rough(model).eval()
    with without_gradients(model), without_gradients(rough):
        (z, _, ours), (z_rough, _, its) = (ascend(one, x, cross_entropy, y) for one in (model, rough))
    margins = margin(z, y)
    slack = SLACK * (margins - margin(z_rough, y)).abs().max()
    alike = (ours.sign() == its.sign()).float().mean()
    agrees = slack <= CLOSE * margins.abs().median() and alike >= ALIKE  # False for NaN
    return Guided(model, rough, float(slack)).eval() if agrees else model
