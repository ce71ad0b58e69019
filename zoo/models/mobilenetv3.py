"""MobileNetV3 with free kernels and hidden channels, of :class:`zoo.specs.MobileNetV3Spec`."""

from __future__ import annotations

from torch import Tensor, nn

from zoo.models.layers import Residual, conv_norm, sequence
from zoo.specs import MobileNetV3Spec
from zoo.specs.mobilenetv3 import InvertedStage, squeeze_excitation


def features(spec: MobileNetV3Spec) -> tuple[nn.Module, int]:
    """The network from normalised images [N, 3, H, W] to features [N, C], and C."""
    c_in = spec.stem
    separable = {
        "depthwise": conv_norm(c_in, c_in, 3, groups=c_in),
        "project": conv_norm(c_in, c_in, 1, activation=None),
    }
    parts: dict[str, nn.Module] = {
        "stem": conv_norm(3, c_in, 3, activation="hardswish"),
        "separable": Residual(sequence(separable)),
    }
    for number, stage in enumerate(spec.stages, 1):
        blocks = {}
        for place in range(len(stage.blocks)):
            blocks[f"block{place}"] = InvertedResidual(c_in, stage, place)
            c_in = stage.width
        parts[f"stage{number}"] = sequence(blocks)
    last = {
        "last": conv_norm(c_in, spec.last, 1, activation="hardswish"),
        "pool": nn.AdaptiveAvgPool2d(1),
        "mix": nn.Conv2d(spec.last, spec.mix, 1, bias=False),
        "act": nn.Hardswish(),
        "flat": nn.Flatten(),
    }
    return sequence(parts | last), spec.mix


class InvertedResidual(nn.Module):
    """Block ``place`` of a MobileNetV3's ``stage``, with a shortcut if input and output have the same shape."""

    def __init__(self, c_in: int, stage: InvertedStage, place: int) -> None:
        super().__init__()
        hidden, stride = stage.blocks[place].hidden, 1 if place else stage.stride
        self.expand = conv_norm(c_in, hidden, 1, activation=stage.activation)
        self.depthwise = conv_norm(
            hidden, hidden, stage.blocks[place].kernel, stride, groups=hidden, activation=stage.activation
        )
        self.se = SqueezeExcitation(hidden) if stage.se else nn.Identity()
        self.project = conv_norm(hidden, stage.width, 1, activation=None)
        self.shortcut = stride == 1 and c_in == stage.width

    def forward(self, x: Tensor) -> Tensor:
        y = self.project(self.se(self.depthwise(self.expand(x))))
        return y + x if self.shortcut else y


class SqueezeExcitation(nn.Module):
    """Scale each channel by a factor in [0, 1], computed from the means of all channels (Hu et al. 2018)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        reduce, expand = squeeze_excitation(channels)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.reduce = nn.Conv2d(reduce.c_in, reduce.c_out, 1)
        self.act = nn.ReLU()
        self.expand = nn.Conv2d(expand.c_in, expand.c_out, 1)
        self.gate = nn.Hardsigmoid()

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(self.expand(self.act(self.reduce(self.pool(x)))))
