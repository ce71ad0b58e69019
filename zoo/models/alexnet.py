"""AlexNet of torchvision's layers, of :class:`zoo.specs.AlexNetSpec`."""

from __future__ import annotations

from torch import nn

from zoo.specs import AlexNetSpec
from zoo.specs.alexnet import HIDDEN


def features(spec: AlexNetSpec) -> tuple[nn.Module, int]:
    from torchvision.models import AlexNet

    net = AlexNet(dropout=0)  # its noise would have no seed of ours, and any training step can be repeated
    net.classifier[-1] = nn.Identity()
    return net, HIDDEN
