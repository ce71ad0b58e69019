"""AlexNet. Nothing here imports torch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from zoo.specs.base import Conv, Spec, linear

POOLED = 6  # height and width of the maps that the first linear layer reads
HIDDEN = 4096  # features of both hidden linear layers


class AlexNetSpec(Spec):
    """AlexNet (Krizhevsky 2014; torchvision's), without dropout and BatchNorm: RRM's teacher on Restricted-ImageNet."""

    arch: Literal["alexnet"] = "alexnet"
    image_size: int = Field(224, ge=63, le=4096)

    def convs(self) -> Iterator[Conv]:
        def plain(c_in: int, c_out: int, kernel: int) -> Conv:
            return Conv(c_in, c_out, kernel, resolution, bias=True, norm=False)

        resolution = (self.image_size + 2 * 2 - 11) // 4 + 1
        yield plain(3, 64, 11)
        resolution = (resolution - 3) // 2 + 1  # max-pooling
        yield plain(64, 192, 5)
        resolution = (resolution - 3) // 2 + 1
        yield plain(192, 384, 3)
        yield plain(384, 256, 3)
        yield plain(256, 256, 3)
        yield linear(256 * POOLED**2, HIDDEN)
        yield linear(HIDDEN, HIDDEN)
        yield linear(HIDDEN, self.classes)
