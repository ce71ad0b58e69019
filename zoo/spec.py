"""What an architecture is: small, immutable, JSON-serialisable specs, and their analytic cost.

A spec names an input contract too (size, mean, std, classes), so that a spec and a set of weights are
all it takes to rebuild a model. Nothing here imports torch.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError, model_validator

from zoo.conv import CIFAR10_MEAN, CIFAR10_STD, Conv, Cost, _Spec, divisible, linear
from zoo.errors import UsageError
from zoo.spec_ofa import BottleneckSpec, MobileNetV3Spec

__all__ = [
    "CIFAR10_MEAN",
    "CIFAR10_STD",
    "ArchSpec",
    "BottleneckSpec",
    "Conv",
    "Cost",
    "MobileNetV2Spec",
    "MobileNetV3Spec",
    "ResNetSpec",
    "StagedSpec",
    "WideResNetSpec",
    "_Spec",
    "cost",
    "downsampling",
    "parse_spec",
]


class StagedSpec(_Spec):
    """Stages of plain 3x3 conv-BN-activation blocks, a width per block: the RNAS-CL students (Tables 3 and 4).

    ``widths[s][b]`` is the number of output channels of block ``b`` of stage ``s``, and ``resolutions[s]`` the
    height and width of that stage's maps; the first block of a stage changes the resolution. With
    ``shortcuts`` a block whose input has its own resolution adds it to the convolution's output, over the
    channels that both have (identity only: no MACs, no parameters).
    """

    arch: Literal["staged"] = "staged"
    widths: tuple[tuple[Annotated[int, Field(ge=1)], ...], ...] = Field(min_length=1)
    resolutions: tuple[Annotated[int, Field(ge=1)], ...]
    stem: int = Field(16, ge=1)
    stem_resolution: int | None = Field(None, ge=1, description="of the stem's maps; None: the image's own")
    activation: Literal["relu", "silu"] = "relu"
    shortcuts: bool = True

    @model_validator(mode="after")
    def _stages_fit(self) -> StagedSpec:
        if any(not stage for stage in self.widths):
            raise ValueError("every stage needs at least one block")
        if len(self.resolutions) != len(self.widths):
            raise ValueError(f"{len(self.widths)} stages need as many resolutions, not {len(self.resolutions)}")
        stem = self.stem_resolution or self.image_size
        for before, after in pairwise((self.image_size, stem, *self.resolutions)):
            downsampling(before, after)
        return self

    def sections(self) -> Iterator[list[Conv]]:
        yield [Conv(3, self.stem, 3, self.stem_resolution or self.image_size)]
        c_in = self.stem
        for stage, resolution in zip(self.widths, self.resolutions, strict=True):
            for c_out in stage:
                yield [Conv(c_in, c_out, 3, resolution)]
                c_in = c_out
        yield [linear(c_in, self.classes)]


def downsampling(before: int, after: int) -> tuple[int, int]:
    """Stride and padding of the 3x3 convolution that maps resolution ``before`` to ``after``.

    Raises:
        ValueError: no stride of 1 or 2 with padding 0 to 2 does.
    """
    for stride, padding in ((1, 1), (2, 1), (2, 2), (2, 0)):
        if (before + 2 * padding - 3) // stride + 1 == after:
            return stride, padding
    raise ValueError(f"no 3x3 convolution of stride 1 or 2 maps resolution {before} to {after}")


class ResNetSpec(_Spec):
    """ResNet-18 (He et al. 2016; torchvision's blocks), with one of two stems.

    ``3x3`` has stride 1 and no max-pooling, for 32x32 images; ``7x7`` is the original's, stride 2 and max-pooling.
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


class WideResNetSpec(_Spec):
    """WideResNet-d-k of pre-activation blocks (Zagoruyko and Komodakis 2016): d = 6n + 4, k times as wide."""

    arch: Literal["wideresnet"] = "wideresnet"
    depth: int = 34
    widen: int = Field(10, ge=1)

    @model_validator(mode="after")
    def _depth_fits(self) -> WideResNetSpec:
        if self.depth < 10 or (self.depth - 4) % 6:
            raise ValueError(f"the depth of a WideResNet is 6n + 4 (10, 16, 22, 28, 34, ...), not {self.depth}")
        return self

    @property
    def blocks_per_stage(self) -> int:
        return (self.depth - 4) // 6

    def convs(self) -> Iterator[Conv]:
        # Pre-activation: a norm stands before each convolution and one at the end. Shifted by one place, each
        # norm has the width of the convolution before it, the stem's included.
        yield Conv(3, 16, 3, self.image_size)
        c_in, resolution = 16, self.image_size
        for stage, width in enumerate((16 * self.widen, 32 * self.widen, 64 * self.widen)):
            for block in range(self.blocks_per_stage):
                if stage and not block:
                    resolution = -(-resolution // 2)
                yield Conv(c_in, width, 3, resolution)
                yield Conv(width, width, 3, resolution)
                if c_in != width:
                    yield Conv(c_in, width, 1, resolution, norm=False)
                c_in = width
        yield linear(c_in, self.classes)


class MobileNetV2Spec(_Spec):
    """MobileNetV2 as ARD uses it on CIFAR: torchvision's, with stride 1 in the stem and the first two stages."""

    arch: Literal["mobilenetv2"] = "mobilenetv2"
    width_mult: float = Field(1.0, gt=0)

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


ArchSpec = Annotated[
    StagedSpec | ResNetSpec | WideResNetSpec | MobileNetV2Spec | BottleneckSpec | MobileNetV3Spec,
    Field(discriminator="arch"),
]


@cache
def _adapter() -> TypeAdapter[Any]:
    return TypeAdapter(ArchSpec)


def parse_spec(data: dict[str, Any] | str) -> ArchSpec:
    """The spec that ``data`` (a dict, or its JSON text) describes.

    Raises:
        UsageError: a field is missing, unknown or out of range; the message names it.
    """
    try:
        return _adapter().validate_python(json.loads(data) if isinstance(data, str) else data)
    except json.JSONDecodeError as error:
        raise UsageError(f"the architecture spec is not JSON: {error}") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "spec"
        raise UsageError(f"the architecture spec is wrong at '{where}': {first['msg']}") from None


def cost(spec: _Spec) -> Cost:
    """Multiply-accumulates and parameters of ``spec``, by formula: no model is built, no forward pass run."""
    convs = list(spec.convs())
    return Cost(sum(conv.macs for conv in convs), sum(conv.params for conv in convs))
