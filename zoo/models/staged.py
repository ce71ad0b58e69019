"""Stages of plain 3x3 blocks, of :class:`zoo.specs.StagedSpec`."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from zoo.models.classifier import GlobalAveragePool
from zoo.specs import StagedSpec
from zoo.specs.staged import downsampling

ACTIVATIONS = {"relu": nn.ReLU, "silu": nn.SiLU}


def features(spec: StagedSpec) -> tuple[nn.Module, int]:
    before = spec.stem_resolution or spec.image_size
    stride, padding = downsampling(spec.image_size, before)
    blocks: list[nn.Module] = [ConvBlock(3, spec.stem, stride, padding, spec.activation, shortcut=False)]
    c_in = spec.stem
    for stage, resolution in zip(spec.widths, spec.resolutions, strict=True):
        for c_out in stage:
            stride, padding = downsampling(before, resolution)
            blocks.append(ConvBlock(c_in, c_out, stride, padding, spec.activation, spec.shortcuts))
            c_in, before = c_out, resolution
    return nn.Sequential(*blocks, GlobalAveragePool()), c_in


class ConvBlock(nn.Module):
    """3x3 convolution, BatchNorm, identity shortcut if the resolution stays, activation."""

    def __init__(self, c_in: int, c_out: int, stride: int, padding: int, activation: str, shortcut: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(c_in, c_out, 3, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(c_out)
        self.act = ACTIVATIONS[activation]()
        self.shortcut = shortcut and stride == 1

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn(self.conv(x))
        if self.shortcut:
            missing = self.conv.out_channels - self.conv.in_channels
            # Over the channels that both have: a negative pad drops channels, a positive one adds zeros.
            y = y + (F.pad(x, (0, 0, 0, 0, 0, missing)) if missing else x)
        return self.act(y)


def followers(module: nn.Module) -> list[tuple[str, str]]:
    """Pairs of children's names: only the second, a BatchNorm, is applied to the output of the first."""
    return [("conv", "bn")] if type(module) is ConvBlock else []
