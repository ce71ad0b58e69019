"""WideResNet of pre-activation blocks, of :class:`zoo.specs.WideResNetSpec`."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from zoo.models.classifier import GlobalAveragePool
from zoo.specs import WideResNetSpec


def features(spec: WideResNetSpec) -> tuple[nn.Module, int]:
    layers: list[nn.Module] = [nn.Conv2d(3, 16, 3, 1, 1, bias=False)]
    c_in = 16
    for stage, width in enumerate((16 * spec.widen, 32 * spec.widen, 64 * spec.widen)):
        for block in range(spec.blocks_per_stage):
            layers.append(PreActBlock(c_in, width, 2 if stage and not block else 1))
            c_in = width
    return nn.Sequential(*layers, nn.BatchNorm2d(c_in), nn.ReLU(), GlobalAveragePool()), c_in


class PreActBlock(nn.Module):
    """BN-ReLU-conv twice; if the width changes, the shortcut is a 1x1 convolution of the activated input."""

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(c_in)
        self.conv1 = nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(c_out)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, 1, 1, bias=False)
        self.shortcut = nn.Conv2d(c_in, c_out, 1, stride, bias=False) if c_in != c_out else None

    def forward(self, x: Tensor) -> Tensor:
        activated = F.relu(self.bn1(x))
        y = self.conv2(F.relu(self.bn2(self.conv1(activated))))
        return y + (self.shortcut(activated) if self.shortcut is not None else x)


def followers(module: nn.Module) -> list[tuple[str, str]]:
    """Pairs of children's names: only the second, a BatchNorm, is applied to the output of the first."""
    return [("conv1", "bn2")] if type(module) is PreActBlock else []
