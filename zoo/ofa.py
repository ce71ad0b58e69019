"""The modules of ``zoo.spec_ofa``'s nets. Their names tell stage and block, alike in every net of a family."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping

from torch import Tensor, nn

from zoo.spec_ofa import BottleneckSpec, InvertedStage, MobileNetV3Spec, squeeze_excitation

ACTIVATIONS = {"relu": nn.ReLU, "hardswish": nn.Hardswish}


def bottleneck_features(spec: BottleneckSpec) -> nn.Sequential:
    """Normalised images [N, 3, H, W] to features [N, C]."""
    mid, c_in = spec.stem.mid, spec.stem.out
    stem: dict[str, nn.Module] = {"first": _conv(3, mid, 3)}
    if spec.stem.residual:
        stem["block0"] = Residual(_conv(mid, mid, 3))
    parts = {"stem": _sequence({**stem, "last": _conv(mid, c_in, 3)})}
    for number, stage in enumerate(spec.stages, 1):
        blocks = {}
        for place, hidden in enumerate(stage.hidden):
            stride = 1 if place else stage.stride
            blocks[f"block{place}"] = Bottleneck(c_in, hidden, stage.width, stride, project=place == 0)
            c_in = stage.width
        parts[f"stage{number}"] = _sequence(blocks)
    return _sequence({**parts, "pool": nn.AdaptiveAvgPool2d(1), "flat": nn.Flatten()})


def mobilenetv3_features(spec: MobileNetV3Spec) -> nn.Sequential:
    """Normalised images [N, 3, H, W] to features [N, C]."""
    c_in = spec.stem
    separable = {"depthwise": _conv(c_in, c_in, 3, groups=c_in), "project": _conv(c_in, c_in, 1, activation=None)}
    parts: dict[str, nn.Module] = {
        "stem": _conv(3, c_in, 3, activation="hardswish"),
        "separable": Residual(_sequence(separable)),
    }
    for number, stage in enumerate(spec.stages, 1):
        blocks = {}
        for place in range(len(stage.blocks)):
            blocks[f"block{place}"] = InvertedResidual(c_in, stage, place)
            c_in = stage.width
        parts[f"stage{number}"] = _sequence(blocks)
    last = {
        "last": _conv(c_in, spec.last, 1, activation="hardswish"),
        "pool": nn.AdaptiveAvgPool2d(1),
        "mix": nn.Conv2d(spec.last, spec.mix, 1, bias=False),
        "act": nn.Hardswish(),
        "flat": nn.Flatten(),
    }
    return _sequence(parts | last)


class Residual(nn.Module):
    """What ``body`` makes of its input, and the input itself."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) + x


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolution, BatchNorm after each; with ``project`` a convolution is the shortcut."""

    def __init__(self, c_in: int, hidden: int, c_out: int, stride: int, *, project: bool) -> None:
        super().__init__()
        self.reduce = _conv(c_in, hidden, 1)
        self.spatial = _conv(hidden, hidden, 3, stride)
        self.expand = _conv(hidden, c_out, 1, activation=None)
        self.pool = nn.AvgPool2d(2) if stride == 2 else nn.Identity()
        self.shortcut = _conv(c_in, c_out, 1, activation=None) if project else nn.Identity()
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.expand(self.spatial(self.reduce(x))) + self.shortcut(self.pool(x)))


class InvertedResidual(nn.Module):
    """Block ``place`` of a MobileNetV3's ``stage``, with a shortcut where input and output have the same shape."""

    def __init__(self, c_in: int, stage: InvertedStage, place: int) -> None:
        super().__init__()
        hidden, stride = stage.blocks[place].hidden, 1 if place else stage.stride
        self.expand = _conv(c_in, hidden, 1, activation=stage.activation)
        self.depthwise = _conv(
            hidden, hidden, stage.blocks[place].kernel, stride, groups=hidden, activation=stage.activation
        )
        self.se = SqueezeExcitation(hidden) if stage.se else nn.Identity()
        self.project = _conv(hidden, stage.width, 1, activation=None)
        self.shortcut = stride == 1 and c_in == stage.width

    def forward(self, x: Tensor) -> Tensor:
        y = self.project(self.se(self.depthwise(self.expand(x))))
        return y + x if self.shortcut else y


class SqueezeExcitation(nn.Module):
    """Each channel times a factor in [0, 1] that follows from the means of all (Hu et al. 2018)."""

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


def _conv(
    c_in: int, c_out: int, kernel: int, stride: int = 1, *, groups: int = 1, activation: str | None = "relu"
) -> nn.Sequential:
    """Convolution that keeps the resolution but for its stride, BatchNorm, activation."""
    conv = nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, groups=groups, bias=False)
    act = {"act": ACTIVATIONS[activation]()} if activation else {}
    return _sequence({"conv": conv, "bn": nn.BatchNorm2d(c_out), **act})


def _sequence(modules: Mapping[str, nn.Module]) -> nn.Sequential:
    return nn.Sequential(OrderedDict(modules))
