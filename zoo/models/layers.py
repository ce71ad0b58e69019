"""Layers that several families share."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping

from torch import Tensor, nn

ACTIVATIONS = {"relu": nn.ReLU, "hardswish": nn.Hardswish}


class Residual(nn.Module):
    """The output of ``body`` plus its input."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) + x


def conv_norm(
    c_in: int, c_out: int, kernel: int, stride: int = 1, *, groups: int = 1, activation: str | None = "relu"
) -> nn.Sequential:
    """Convolution that keeps the resolution at stride 1, BatchNorm, activation."""
    conv = nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, groups=groups, bias=False)
    act = {"act": ACTIVATIONS[activation]()} if activation else {}
    return sequence({"conv": conv, "bn": nn.BatchNorm2d(c_out), **act})


def sequence(modules: Mapping[str, nn.Module]) -> nn.Sequential:
    return nn.Sequential(OrderedDict(modules))
