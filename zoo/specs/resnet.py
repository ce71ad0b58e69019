"""ResNets. Nothing here imports torch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from zoo.specs.base import Conv, Spec, linear

BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3)}  # of each stage


class ResNetSpec(Spec):
    """ResNet-18, -34 or -50 (He et al. 2016; torchvision's blocks), with one of two stems.

    ``3x3`` has stride 1 and no max-pooling, for 32x32 images; ``7x7`` is the original, stride 2 and max-pooling.
    """

    arch: Literal["resnet"] = "resnet"
    depth: Literal[18, 34, 50] = 18
    stem: Literal["3x3", "7x7"] = "3x3"

    @property
    def expansion(self) -> int:
        """Output channels of a block for each channel of its 3x3 convolution: 4 in bottleneck blocks."""
        return 4 if self.depth == 50 else 1

    def convs(self) -> Iterator[Conv]:
        c_in, resolution = 64, self.image_size
        if self.stem == "3x3":
            yield Conv(3, 64, 3, resolution)
        else:
            yield Conv(3, 64, 7, -(-resolution // 2))
            resolution = -(-resolution // 4)
        for stage, (width, blocks) in enumerate(zip((64, 128, 256, 512), BLOCKS[self.depth], strict=True)):
            c_out = width * self.expansion
            for block in range(blocks):
                before, resolution = resolution, -(-resolution // (2 if stage and not block else 1))
                if self.expansion == 1:
                    yield Conv(c_in, width, 3, resolution)
                    yield Conv(width, width, 3, resolution)
                else:
                    yield Conv(c_in, width, 1, before)
                    yield Conv(width, width, 3, resolution)
                    yield Conv(width, c_out, 1, resolution)
                if c_in != c_out:
                    yield Conv(c_in, c_out, 1, resolution)
                c_in = c_out
        yield linear(c_in, self.classes)
