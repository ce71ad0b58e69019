"""Stages of plain 3x3 blocks: the RNAS-CL students. Nothing here imports torch."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Annotated, Literal

from pydantic import Field, model_validator

from zoo.specs.base import Conv, Spec, linear


class StagedSpec(Spec):
    """Stages of plain 3x3 conv-BN-activation blocks, a width per block: the RNAS-CL students (Tables 3 and 4).

    ``widths[s][b]`` is the number of output channels of block ``b`` of stage ``s``, and ``resolutions[s]`` the
    height and width of that stage's maps; the first block of a stage changes the resolution. With
    ``shortcuts``, a block that keeps the resolution adds its input to the convolution's output, over the
    channels that both have (identity only: no MACs, no parameters).
    """

    arch: Literal["staged"] = "staged"
    widths: tuple[tuple[Annotated[int, Field(ge=1)], ...], ...] = Field(min_length=1)
    resolutions: tuple[Annotated[int, Field(ge=1)], ...]
    stem: int = Field(16, ge=1)
    stem_resolution: int | None = Field(None, ge=1, description="of the stem's maps; None: the image's resolution")
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
        ValueError: no stride of 1 or 2 with a padding of 0 to 2 fits.
    """
    for stride, padding in ((1, 1), (2, 1), (2, 2), (2, 0)):
        if (before + 2 * padding - 3) // stride + 1 == after:
            return stride, padding
    raise ValueError(f"no 3x3 convolution of stride 1 or 2 maps resolution {before} to {after}")
