"""Directions from a copy of the model in bfloat16: an attack then costs less where processors have instructions for it.

The copy says where to go next. Whether an image is broken is decided by the model itself, in its own precision.
"""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import Tensor, nn

from zoo.models.depthwise import thin

BF16 = ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16")  # x86-64 and ARM, as torch.cpu.get_capabilities() names them


class Guided(nn.Module):
    """A model with a copy that gives directions.

    Attributes:
        exact: images [N, C, H, W] to logits [N, K]; a call of this module is a call of it.
        rough: likewise, about as exact.
        slack: where the copy's margin of the correct class is larger, the model is right as well.
    """

    def __init__(self, exact: nn.Module, rough: nn.Module, slack: float) -> None:
        super().__init__()
        self.exact, self.rough, self.slack = exact, rough, slack

    def forward(self, x: Tensor) -> Tensor:
        return self.exact(x)


class Rough(nn.Module):
    """A copy of ``model`` in bfloat16, which takes and returns float32; on a CPU its gradients are fast everywhere
    (:mod:`zoo.models.depthwise`)."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.net = deepcopy(model).bfloat16()
        if next(model.parameters()).device.type == "cpu":
            thin(self.net)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x.bfloat16()).float()


def fast_bf16(device: torch.device) -> bool:
    """Whether ``device`` has instructions for bfloat16."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = torch.cpu.get_capabilities()
    return device.type == "cpu" and any(capabilities.get(name) for name in BF16)
