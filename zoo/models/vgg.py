"""VGG of torchvision's layers, of :class:`zoo.specs.VGGSpec`."""

from __future__ import annotations

from torch import nn

from zoo.models.classifier import GlobalAveragePool
from zoo.specs import VGGSpec
from zoo.specs.vgg import WIDTHS


def features(spec: VGGSpec) -> tuple[nn.Module, int]:
    from torchvision.models.vgg import make_layers

    return nn.Sequential(make_layers(spec.layers(), batch_norm=True), GlobalAveragePool()), WIDTHS[-1]
