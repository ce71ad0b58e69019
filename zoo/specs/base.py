"""The parts of architecture specs: the input contract, and convolutions for the cost model.

Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

CIFAR10_MEAN = (0.4914, 0.4822, 0.4465)
CIFAR10_STD = (0.2470, 0.2435, 0.2616)
MAX_LAYERS, MAX_PARAMS = 10_000, 1_000_000_000
Channels = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]


class Cost(NamedTuple):
    """Multiply-accumulates of one forward pass of one image, and trainable parameters."""

    macs: int
    params: int


class Conv(NamedTuple):
    """One convolution (or, at resolution 1, one linear layer) for the cost model."""

    c_in: int
    c_out: int
    kernel: int
    resolution: int  # of the output, H = W
    groups: int = 1
    bias: bool = False
    norm: bool = True  # followed by BatchNorm: 2 parameters a channel, no MACs once folded

    @property
    def macs(self) -> int:
        return self.c_out * (self.c_in // self.groups) * self.kernel**2 * self.resolution**2

    @property
    def params(self) -> int:
        weights = self.c_out * (self.c_in // self.groups) * self.kernel**2
        return weights + self.c_out * (self.bias + 2 * self.norm)


class Part(BaseModel):
    """A part of a spec: immutable; unknown fields and numbers that are not finite are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Spec(Part):
    classes: int = Field(10, ge=2, le=1_000_000)
    image_size: int = Field(32, ge=8, le=4096)
    mean: tuple[float, float, float] = CIFAR10_MEAN
    std: tuple[Positive, Positive, Positive] = CIFAR10_STD

    def sections(self) -> Iterator[list[Conv]]:
        """The convolutions and linear layers of each part of the net, in forward order: stem, blocks, head."""
        raise TypeError(f"{type(self).__name__} must define convs() or sections()")

    def convs(self) -> Iterator[Conv]:
        """Every convolution and linear layer, in forward order."""
        for section in self.sections():
            yield from section

    def to_dict(self) -> dict[str, Any]:
        """The spec as JSON data. Defaults are written out, so that a change of defaults does not change old specs."""
        return self.model_dump(mode="json")


def bounded(spec: Spec) -> Spec:
    """``spec``, if its net can be built: a spec may come from anybody.

    Raises:
        ValueError: it has more than :data:`MAX_LAYERS` layers or :data:`MAX_PARAMS` parameters.
    """
    params = 0
    for layer, conv in enumerate(spec.convs()):
        params += conv.params
        if layer >= MAX_LAYERS or params > MAX_PARAMS:
            raise ValueError(f"a net of more than {MAX_LAYERS:,} layers or {MAX_PARAMS:,} parameters is not built")
    return spec


def linear(c_in: int, c_out: int) -> Conv:
    return Conv(c_in, c_out, kernel=1, resolution=1, bias=True, norm=False)


def divisible(channels: float, divisor: int = 8) -> int:
    """Round to a multiple of ``divisor`` and lose at most a tenth, as MobileNets do."""
    rounded = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * channels else rounded
