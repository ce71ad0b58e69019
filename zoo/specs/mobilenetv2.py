"""MobileNetV2. Nothing here imports torch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from zoo.specs.base import Conv, Spec, divisible, linear


class MobileNetV2Spec(Spec):
    """MobileNetV2 as ARD uses it on CIFAR: torchvision's, with stride 1 in the stem and the first two stages."""

    arch: Literal["mobilenetv2"] = "mobilenetv2"
    width_mult: float = Field(1.0, gt=0, le=1000)

    # expansion, channels, blocks, stride (Sandler et al. 2018, Table 2, with ARD's strides)
    def settings(self) -> tuple[tuple[int, int, int, int], ...]:
        return (
            (1, 16, 1, 1),
            (6, 24, 2, 1),
            (6, 32, 3, 2),
            (6, 64, 4, 2),
            (6, 96, 3, 1),
            (6, 160, 3, 2),
            (6, 320, 1, 1),
        )

    def convs(self) -> Iterator[Conv]:
        c_in, resolution = divisible(32 * self.width_mult), self.image_size
        yield Conv(3, c_in, 3, resolution)
        for expansion, channels, blocks, stride in self.settings():
            c_out = divisible(channels * self.width_mult)
            for block in range(blocks):
                hidden = c_in * expansion
                if expansion != 1:
                    yield Conv(c_in, hidden, 1, resolution)
                if block == 0:
                    resolution = -(-resolution // stride)
                yield Conv(hidden, hidden, 3, resolution, groups=hidden)
                yield Conv(hidden, c_out, 1, resolution)
                c_in = c_out
        last = divisible(1280 * max(1.0, self.width_mult))
        yield Conv(c_in, last, 1, resolution)
        yield linear(last, self.classes)
