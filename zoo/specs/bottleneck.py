"""Bottleneck ResNets with free widths: ProARD's space "resnet", taken from Once-for-All (Cai et al. 2020).

Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import Field, model_validator

from zoo.specs.base import Channels, Conv, Part, Spec, linear


class BottleneckStem(Part):
    """3x3 convolutions of stride 1: image to ``mid``, optionally a ``residual`` one, then to ``out`` channels."""

    mid: Channels
    out: Channels
    residual: bool = True


class BottleneckStage(Part):
    """Bottleneck blocks with ``width`` output channels; the 3x3 convolution of block ``b`` has ``hidden[b]``."""

    width: Channels
    hidden: tuple[Channels, ...] = Field(min_length=1)
    stride: Literal[1, 2]  # of the first block


class BottleneckSpec(Spec):
    """A ResNet of bottleneck blocks with a width for each stage and hidden channels for each block.

    A block is a 1x1, a 3x3 (with the stride) and a 1x1 convolution. The shortcut of a stage's first block is a 1x1
    convolution, after 2x2 average pooling if the stride is 2 (ResNet-D); the other shortcuts are identities.
    """

    arch: Literal["bottleneck"] = "bottleneck"
    stem: BottleneckStem
    stages: tuple[BottleneckStage, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _resolutions_halve(self) -> BottleneckSpec:
        resolution = self.image_size
        for stage in self.stages:
            if resolution % stage.stride:
                raise ValueError(f"a stage of stride 2 needs an even resolution, not {resolution}")
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
