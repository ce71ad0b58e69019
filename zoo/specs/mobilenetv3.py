"""MobileNetV3 with free kernels and hidden channels: ProARD's space "mbv3".

Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from zoo.specs.base import Channels, Conv, Part, Spec, divisible, linear


class InvertedBlock(Part):
    """1x1 expansion to ``hidden`` channels, a depthwise convolution (with the stride), 1x1 projection."""

    kernel: Literal[3, 5, 7]
    hidden: Channels


class InvertedStage(Part):
    """Blocks with ``width`` output channels; ``se`` adds squeeze-and-excitation to the hidden channels."""

    width: Channels
    blocks: tuple[InvertedBlock, ...] = Field(min_length=1)
    stride: Literal[1, 2]  # of the first block
    activation: Literal["relu", "hardswish"]
    se: bool


class MobileNetV3Spec(Spec):
    """MobileNetV3 (Howard et al. 2019) with stride 1 in the stem, and a free kernel and hidden width in each block.

    A 3x3 stem and a depthwise separable block of ``stem`` channels, inverted residual stages, a 1x1 convolution to
    ``last`` channels, global average pooling, and a 1x1 convolution to the ``mix`` features for the head.
    """

    arch: Literal["mobilenetv3"] = "mobilenetv3"
    stem: Channels = 16
    stages: tuple[InvertedStage, ...] = Field(min_length=1)
    last: Channels = 960
    mix: Channels = 1280

    def sections(self) -> Iterator[list[Conv]]:
        resolution, c_in = self.image_size, self.stem
        yield [Conv(3, c_in, 3, resolution)]
        yield [Conv(c_in, c_in, 3, resolution, groups=c_in), Conv(c_in, c_in, 1, resolution)]
        for stage in self.stages:
            for place, block in enumerate(stage.blocks):
                before, resolution = resolution, resolution if place else -(-resolution // stage.stride)
                hidden = block.hidden
                yield [
                    Conv(c_in, hidden, 1, before),
                    Conv(hidden, hidden, block.kernel, resolution, groups=hidden),
                    *(squeeze_excitation(hidden) if stage.se else ()),
                    Conv(hidden, stage.width, 1, resolution),
                ]
                c_in = stage.width
        yield [Conv(c_in, self.last, 1, resolution)]
        yield [Conv(self.last, self.mix, 1, 1, norm=False), linear(self.mix, self.classes)]


def squeeze_excitation(channels: int) -> tuple[Conv, Conv]:
    """The two 1x1 convolutions of squeeze-and-excitation on ``channels``, with a quarter of them in between."""
    squeezed = divisible(channels // 4)
    reduce = Conv(channels, squeezed, 1, 1, bias=True, norm=False)
    return reduce, Conv(squeezed, channels, 1, 1, bias=True, norm=False)
