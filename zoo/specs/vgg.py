"""VGG. Nothing here imports torch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from zoo.specs.base import Conv, Spec, linear

WIDTHS = (64, 128, 256, 512, 512)  # of the stages, each of which ends in 2x2 max-pooling
BLOCKS = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}


class VGGSpec(Spec):
    """VGG with BatchNorm (Simonyan and Zisserman 2015; torchvision's layers) and one linear layer as its classifier.

    3x3 convolutions with biases, five 2x2 max-poolings, and global average pooling, which changes nothing at 32x32. RRM
    matches the 512 features (Vaishnavi et al. 2022, Table 7).
    """

    arch: Literal["vgg"] = "vgg"
    depth: Literal[11, 13, 16, 19] = 16
    image_size: int = Field(32, ge=32, le=4096)  # five poolings

    def layers(self) -> list[int | str]:
        """The channels of the convolutions in forward order, and "M" for max-pooling: torchvision's notation."""
        layers: list[int | str] = []
        for width, blocks in zip(WIDTHS, BLOCKS[self.depth], strict=True):
            layers += [*[width] * blocks, "M"]
        return layers

    def convs(self) -> Iterator[Conv]:
        c_in, resolution = 3, self.image_size
        for layer in self.layers():
            if isinstance(layer, int):
                yield Conv(c_in, layer, 3, resolution, bias=True)
                c_in = layer
            else:
                resolution //= 2
        yield linear(c_in, self.classes)
