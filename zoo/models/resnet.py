"""ResNets of torchvision's blocks, of :class:`zoo.specs.ResNetSpec`."""

from __future__ import annotations

import sys

from torch import nn

from zoo.specs import ResNetSpec


def features(spec: ResNetSpec) -> tuple[nn.Module, int]:
    from torchvision.models import resnet18, resnet34, resnet50

    net = {18: resnet18, 34: resnet34, 50: resnet50}[spec.depth](weights=None)
    if spec.stem == "3x3":
        net.conv1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
        net.maxpool = nn.Identity()
    net.fc = nn.Identity()
    return net, 512 * spec.expansion


def followers(module: nn.Module) -> list[tuple[str, str]]:
    """Pairs of children's names: only the second, a BatchNorm, is applied to the output of the first."""
    # A model with such a module has imported torchvision already; other models must not import it here.
    resnet = sys.modules.get("torchvision.models.resnet")
    if resnet is None or type(module) not in (resnet.ResNet, resnet.BasicBlock, resnet.Bottleneck):
        return []
    return [(name, "bn" + name[4:]) for name, _ in module.named_children() if name.startswith("conv")]
