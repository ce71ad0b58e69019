"""The nets that ProARD's two published spaces are made of: Once-for-All's (Cai et al. 2020), for small images.

Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field, model_validator

from zoo.conv import Conv, _Part, _Spec, divisible, linear

Channels = Annotated[int, Field(ge=1)]


class BottleneckStem(_Part):
    """3x3 convolutions of stride 1: image to ``mid``, with ``residual`` one around which its input goes, to ``out``."""

    mid: Channels
    out: Channels
    residual: bool = True


class BottleneckStage(_Part):
    """Bottleneck blocks of ``width`` channels out, the 3x3 convolution of block ``b`` having ``hidden[b]``."""

    width: Channels
    hidden: tuple[Channels, ...] = Field(min_length=1)
    stride: Literal[1, 2]  # of the first block


class BottleneckSpec(_Spec):
    """A ResNet of bottleneck blocks with a width for each stage and hidden channels for each block.

    A block is 1x1, 3x3 (with the stride) and 1x1 convolutions. Around the first of a stage goes a 1x1 convolution,
    with a stride of 2 after 2x2 average pooling (ResNet-D); around the others nothing but the input.
    """

    arch: Literal["bottleneck"] = "bottleneck"
    stem: BottleneckStem
    stages: tuple[BottleneckStage, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _resolutions_halve(self) -> BottleneckSpec:
        resolution = self.image_size
        for stage in self.stages:
            if resolution % stage.stride:
                raise ValueError(f"a stage of stride 2 halves an even resolution, not {resolution}")
            resolution //= stage.stride
        return self

    def sections(self) -> Iterator[list[Conv]]:
        resolution, stem = self.image_size, self.stem
        yield [Conv(3, stem.mid, 3, resolution)]
        if stem.residual:
            yield [Conv(stem.mid, stem.mid, 3, resolution)]
        yield [Conv(stem.mid, stem.out, 3, resolution)]
        c_in = stem.out
        for stage in self.stages:
            for block, hidden in enumerate(stage.hidden):
                before, resolution = resolution, resolution // (1 if block else stage.stride)
                convs = [
                    Conv(c_in, hidden, 1, before),
                    Conv(hidden, hidden, 3, resolution),
                    Conv(hidden, stage.width, 1, resolution),
                ]
                yield convs if block else [*convs, Conv(c_in, stage.width, 1, resolution)]
                c_in = stage.width
        yield [linear(c_in, self.classes)]


class InvertedBlock(_Part):
    """1x1 expansion to ``hidden`` channels, a depthwise convolution (with the stride), 1x1 projection."""

    kernel: Literal[3, 5, 7]
    hidden: Channels


class InvertedStage(_Part):
    """Blocks of ``width`` channels out; with ``se`` the hidden channels are squeezed and excited."""

    width: Channels
    blocks: tuple[InvertedBlock, ...] = Field(min_length=1)
    stride: Literal[1, 2]  # of the first block
    activation: Literal["relu", "hardswish"]
    se: bool


class MobileNetV3Spec(_Spec):
    """MobileNetV3 (Howard et al. 2019) with stride 1 in the stem, every block's kernel and hidden channels free.

    A 3x3 stem and a depthwise separable block of ``stem`` channels, inverted residual stages, a 1x1 convolution to
    ``last`` channels, global average pooling, and another to the ``mix`` features that the head classifies.
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
    """The two 1x1 convolutions of pooled maps that weigh ``channels``, with a quarter of them between."""
    squeezed = divisible(channels // 4)
    reduce = Conv(channels, squeezed, 1, 1, bias=True, norm=False)
    return reduce, Conv(squeezed, channels, 1, 1, bias=True, norm=False)
