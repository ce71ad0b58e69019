"""MobileNetV2 of torchvision's blocks, of :class:`zoo.specs.MobileNetV2Spec`."""

from __future__ import annotations

from typing import Any

from torch import nn

from zoo.models.classifier import GlobalAveragePool
from zoo.specs import MobileNetV2Spec


def features(spec: MobileNetV2Spec) -> tuple[nn.Module, int]:
    from torchvision.models import MobileNetV2

    settings: Any = [list(row) for row in spec.settings()]
    net = MobileNetV2(width_mult=spec.width_mult, inverted_residual_setting=settings)
    stem = net.features[0][0]
    net.features[0][0] = nn.Conv2d(3, stem.out_channels, 3, 1, 1, bias=False)
    return nn.Sequential(net.features, GlobalAveragePool()), net.last_channel
