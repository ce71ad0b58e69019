"""WideResNet. Nothing here imports torch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import Field, model_validator

from zoo.specs.base import Conv, Spec, linear


class WideResNetSpec(Spec):
    """WideResNet-d-k of pre-activation blocks (Zagoruyko and Komodakis 2016): d = 6n + 4, k times as wide."""

    arch: Literal["wideresnet"] = "wideresnet"
    depth: int = 34
    widen: int = Field(10, ge=1)

    @model_validator(mode="after")
    def _depth_fits(self) -> WideResNetSpec:
        if self.depth < 10 or (self.depth - 4) % 6:
            raise ValueError(f"the depth of a WideResNet must be 6n + 4 (10, 16, 22, 28, 34, ...), not {self.depth}")
        return self

    @property
    def blocks_per_stage(self) -> int:
        return (self.depth - 4) // 6

    def convs(self) -> Iterator[Conv]:
        # Pre-activation: there is a norm before each convolution except the stem, and one at the end. Each is counted
        # with the convolution before it, which has its width.
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
