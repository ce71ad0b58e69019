"""ResNet-18. Nothing here imports torch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from zoo.specs.base import Conv, Spec, linear


class ResNetSpec(Spec):
    """ResNet-18 (He et al. 2016; torchvision's blocks), with one of two stems.

    ``3x3`` has stride 1 and no max-pooling, for 32x32 images; ``7x7`` is the original, stride 2 and max-pooling.
    """

    arch: Literal["resnet"] = "resnet"
    depth: Literal[18] = 18
    stem: Literal["3x3", "7x7"] = "3x3"

    def convs(self) -> Iterator[Conv]:
        c_in, resolution = 64, self.image_size
        if self.stem == "3x3":
            yield Conv(3, 64, 3, resolution)
        else:
            yield Conv(3, 64, 7, -(-resolution // 2))
            resolution = -(-resolution // 4)
        for stage, width in enumerate((64, 128, 256, 512)):
            for block in range(2):
                if stage and not block:
                    resolution = -(-resolution // 2)
                yield Conv(c_in, width, 3, resolution)
                yield Conv(width, width, 3, resolution)
                if c_in != width:
                    yield Conv(c_in, width, 1, resolution)
                c_in = width
        yield linear(c_in, self.classes)
