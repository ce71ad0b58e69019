"""From a spec to a torch module: ``build(spec)``."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.ofa import bottleneck_features, mobilenetv3_features
from zoo.spec import (
    BottleneckSpec,
    MobileNetV2Spec,
    MobileNetV3Spec,
    ResNetSpec,
    StagedSpec,
    WideResNetSpec,
    _Spec,
    downsampling,
)

ACTIVATIONS = {"relu": nn.ReLU, "silu": nn.SiLU}


class Classifier(nn.Module):
    """A network with its normalisation inside.

    ``features`` maps images to penultimate features, ``head`` maps these to logits.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, spec: _Spec, features: nn.Module, head: nn.Linear) -> None:
        super().__init__()
        self.spec = spec
        self.features = features
        self.head = head
        # Not persistent: they follow from the spec, and the weights file holds weights only.
        self.register_buffer("mean", torch.tensor(spec.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(spec.std).view(1, 3, 1, 1), persistent=False)

    def penultimate(self, x: Tensor) -> Tensor:
        """Images [N, 3, H, W] in [0, 1] to the features [N, C] that the head classifies."""
        return self.features((x - self.mean) / self.std)

    def forward(self, x: Tensor) -> Tensor:
        """Images [N, 3, H, W] in [0, 1] to logits [N, classes]."""
        return self.head(self.penultimate(x))


def build(spec: _Spec) -> Classifier:
    """A freshly initialised model of ``spec``: [0, 1] float32 images [N, 3, H, W] in, raw logits [N, classes] out."""
    match spec:
        case StagedSpec():
            features, width = _staged(spec)
        case ResNetSpec():
            features, width = _resnet(spec)
        case WideResNetSpec():
            features, width = _wideresnet(spec)
        case MobileNetV2Spec():
            features, width = _mobilenetv2(spec)
        case BottleneckSpec():
            features, width = bottleneck_features(spec), spec.stages[-1].width
        case MobileNetV3Spec():
            features, width = mobilenetv3_features(spec), spec.mix
        case _:
            raise TypeError(f"build() wants an ArchSpec, not {type(spec).__name__}")
    model = Classifier(spec, features, nn.Linear(width, spec.classes))
    if not model.mean.is_meta:  # there is nothing to initialise, and trying takes most of the time
        _initialise(model)
    return model


def _initialise(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.01)
            nn.init.zeros_(module.bias)


class ConvBlock(nn.Module):
    """3x3 convolution, BatchNorm, identity shortcut where the resolution stays, activation."""

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


class GlobalAveragePool(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))  # [N, C, H, W] -> [N, C]


def _staged(spec: StagedSpec) -> tuple[nn.Module, int]:
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


def _resnet(spec: ResNetSpec) -> tuple[nn.Module, int]:
    from torchvision.models import resnet18

    net = resnet18(weights=None)
    if spec.stem == "3x3":
        net.conv1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
        net.maxpool = nn.Identity()
    net.fc = nn.Identity()
    return net, 512


class PreActBlock(nn.Module):
    """BN-ReLU-conv twice; where the width changes, a 1x1 convolution of the activated input is the shortcut."""

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


def _wideresnet(spec: WideResNetSpec) -> tuple[nn.Module, int]:
    layers: list[nn.Module] = [nn.Conv2d(3, 16, 3, 1, 1, bias=False)]
    c_in = 16
    for stage, width in enumerate((16 * spec.widen, 32 * spec.widen, 64 * spec.widen)):
        for block in range(spec.blocks_per_stage):
            layers.append(PreActBlock(c_in, width, 2 if stage and not block else 1))
            c_in = width
    return nn.Sequential(*layers, nn.BatchNorm2d(c_in), nn.ReLU(), GlobalAveragePool()), c_in


def _mobilenetv2(spec: MobileNetV2Spec) -> tuple[nn.Module, int]:
    from torchvision.models import MobileNetV2

    settings: Any = [list(row) for row in spec.settings()]
    net = MobileNetV2(width_mult=spec.width_mult, inverted_residual_setting=settings)
    stem = net.features[0][0]
    net.features[0][0] = nn.Conv2d(3, stem.out_channels, 3, 1, 1, bias=False)
    return nn.Sequential(net.features, GlobalAveragePool()), net.last_channel
