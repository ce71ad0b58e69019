"""Bottleneck ResNets with free widths, of :class:`zoo.specs.BottleneckSpec`."""

from __future__ import annotations

from torch import Tensor, nn

from zoo.models.layers import Residual, conv_norm, sequence
from zoo.specs import BottleneckSpec


def features(spec: BottleneckSpec) -> tuple[nn.Module, int]:
    """The network from normalised images [N, 3, H, W] to features [N, C], and C."""
    mid, c_in = spec.stem.mid, spec.stem.out
    stem: dict[str, nn.Module] = {"first": conv_norm(3, mid, 3)}
    if spec.stem.residual:
        stem["block0"] = Residual(conv_norm(mid, mid, 3))
    parts = {"stem": sequence({**stem, "last": conv_norm(mid, c_in, 3)})}
    for number, stage in enumerate(spec.stages, 1):
        blocks = {}
        for place, hidden in enumerate(stage.hidden):
            stride = 1 if place else stage.stride
            blocks[f"block{place}"] = Bottleneck(c_in, hidden, stage.width, stride, project=place == 0)
            c_in = stage.width
        parts[f"stage{number}"] = sequence(blocks)
    return sequence({**parts, "pool": nn.AdaptiveAvgPool2d(1), "flat": nn.Flatten()}), c_in


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions, each with BatchNorm; with ``project`` the shortcut is a 1x1 convolution."""

    def __init__(self, c_in: int, hidden: int, c_out: int, stride: int, *, project: bool) -> None:
        super().__init__()
        self.reduce = conv_norm(c_in, hidden, 1)
        self.spatial = conv_norm(hidden, hidden, 3, stride)
        self.expand = conv_norm(hidden, c_out, 1, activation=None)
        self.pool = nn.AvgPool2d(2) if stride == 2 else nn.Identity()
        self.shortcut = conv_norm(c_in, c_out, 1, activation=None) if project else nn.Identity()
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.expand(self.spatial(self.reduce(x))) + self.shortcut(self.pool(x)))
