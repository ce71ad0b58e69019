"""Depthwise convolutions with a stride, where their gradient is slow.

oneDNN has no fast kernel in bfloat16 for the gradient of the input of a strided depthwise convolution: with 96 channels
of 32x32 it took over 100 times as long as the forward pass. A convolution without stride, of which the pixels of the
stride are kept, is the same function. It does s^2 times the work forward, and has a fast gradient.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Thinned(nn.Conv2d):
    """A strided convolution that computes every pixel and keeps those of the stride."""

    def forward(self, x: Tensor) -> Tensor:
        y = F.conv2d(x, self.weight, self.bias, 1, self.padding, self.dilation, self.groups)
        down, across = self.stride
        return y[..., ::down, ::across].contiguous(memory_format=torch.channels_last)


def thin(model: nn.Module) -> nn.Module:
    """``model``, whose plain depthwise convolutions with a stride have become :class:`Thinned`: same parameters, and
    the same results up to rounding."""
    for module in model.modules():
        if type(module) is not nn.Conv2d or module.padding_mode != "zeros":
            continue
        if 1 < module.in_channels == module.groups and max(module.stride) > 1:
            module.__class__ = Thinned
    return model
