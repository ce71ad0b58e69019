"""The search spaces of RNAS-CL (Tables 3 and 4): a choice of widths for each block of each stage.

The paper gives depths and widths. Blocks (plain 3x3 conv-BN-ReLU with identity shortcuts) and resolutions are chosen
here. With resolutions 17, 9 and 5 the largest networks of S3, S5 and S7 have 6.6, 11.3 and 15.9 M MACs and 0.12, 0.22
and 0.32 M parameters; the paper reports 6.64, 11.02 and 15.58, and 0.11, 0.21 and 0.32. The paper does not describe
the blocks of M, L and the ImageNet spaces, which are smaller than reported: M has 263 M MACs and 2.2 M parameters for
326 and 3, L 1,043 and 8.6 for 1,210 and 11, I 233 and 2.3 for 242 and 3.9.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from zoo.datasets import dataset_called
from zoo.specs import StagedSpec
from zoo.system.errors import UsageError, nearest


@dataclass(frozen=True)
class SearchSpace:
    """``depths[s]`` blocks in stage ``s``, each of one of the widths ``choices[s]``, at ``resolutions[s]``."""

    name: str
    depths: tuple[int, ...]
    choices: tuple[tuple[int, ...], ...]  # widest first, as in the tables
    resolutions: tuple[int, ...]
    dataset: str = "cifar10"
    stem_resolution: int = 32
    classes: int = 10
    stem: int = 16

    @cached_property
    def blocks(self) -> tuple[tuple[int, ...], ...]:
        """The width choices of each block, in forward order."""
        return tuple(widths for depth, widths in zip(self.depths, self.choices, strict=True) for _ in range(depth))

    @property
    def size(self) -> int:
        """The number of architectures in the space."""
        return math.prod(len(widths) for widths in self.blocks)

    def spec(self, widths: Sequence[int]) -> StagedSpec:
        """The static architecture with these widths, one for each block.

        Raises:
            UsageError: the number of widths is wrong, or one is not a choice of its block.
        """
        if len(widths) != len(self.blocks):
            raise UsageError(f"space {self.name} has {len(self.blocks)} blocks: {len(widths)} widths do not fit")
        for block, (width, known) in enumerate(zip(widths, self.blocks, strict=True)):
            if width not in known:
                raise UsageError(f"block {block} of space {self.name} cannot be {width} wide (choices: {known})")
        remaining = iter(widths)
        dataset = dataset_called(self.dataset)
        return StagedSpec(
            widths=tuple(tuple(next(remaining) for _ in range(depth)) for depth in self.depths),
            resolutions=self.resolutions,
            stem=self.stem,
            stem_resolution=None if self.stem_resolution == dataset.image_size else self.stem_resolution,
            **{**dataset.contract(), "classes": self.classes},
        )

    @property
    def largest(self) -> StagedSpec:
        return self.spec([max(widths) for widths in self.blocks])

    @property
    def smallest(self) -> StagedSpec:
        return self.spec([min(widths) for widths in self.blocks])


def _small(name: str, depth: int) -> SearchSpace:
    choices = ((16, 12), (32, 28, 24, 20), (64, 60, 56, 52))
    return SearchSpace(name, (depth,) * 3, choices, (17, 9, 5))


def _imagenet(name: str, stages: int) -> SearchSpace:
    """The first stages of Table 4. The resolutions are chosen so that I has about the reported cost."""
    choices = (
        (28, 24, 20, 16),
        (40, 36, 32, 28),
        (96, 88, 80, 72, 64, 56, 48),
        (128, 120, 108, 100, 92, 84, 76, 68),
        (216, 208, 200, 192, 184, 176, 168, 160, 152, 144, 136, 128, 120, 108),
    )
    return SearchSpace(
        name,
        (3, 3, 3, 4, 4)[:stages],
        choices[:stages],
        (56, 28, 14, 7, 7)[:stages],
        dataset="imagefolder",
        stem_resolution=112,
        classes=100,
    )


SPACES = {
    space.name: space
    for space in (
        _small("s3", 3),
        _small("s5", 5),
        _small("s7", 7),
        SearchSpace("m", (9, 7, 1), ((80, 76), (160, 156, 152, 148), (128, 124, 120, 116)), (17, 9, 5)),
        SearchSpace("l", (9, 7, 1), ((160, 156), (320, 316, 312, 308), (256, 252, 248, 244)), (17, 9, 5)),
        _imagenet("is", 3),
        _imagenet("im", 4),
        _imagenet("i", 5),
    )
}


def search_space(name: str) -> SearchSpace:
    """The space called ``name``: s3, s5, s7, m, l (CIFAR), is, im, i (ImageNet-100).

    Raises:
        UsageError: there is no such space.
    """
    if name not in SPACES:
        raise UsageError(f"no search space is called '{name}'{nearest(name, SPACES)} (known: {', '.join(SPACES)})")
    return SPACES[name]
