"""A graph of operators as a PyTorch module, with gradients that pass straight through each rounding.

Rounding has no gradient; taking it for the identity is BPDA (Athalye et al. 2018, section 4.1). Every tensor is in real
numbers: a quantised one holds the multiples of its scale, so that quantising is rounding, dequantising is nothing, and
an int8 operator is the float one, rounded.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Operator = Callable[..., Any]
Step = tuple[Operator, Sequence[Hashable], Hashable]
Size = tuple[int, int]
LEAK = 0.1  # of the gradient, where a value is clipped


class Unsupported(Exception):
    """An operator, or a form of it, that is not known here."""


class Steps(nn.Module):
    """Operators, one after the other.

    Args:
        source: the name of the images, and ``target``, that of the logits.
        values: what is constant, by name.
        steps: operator, names of what it takes, name of what it gives; each in turn.
    """

    def __init__(
        self, source: Hashable, target: Hashable, values: Mapping[Hashable, Any], steps: Sequence[Step]
    ) -> None:
        super().__init__()
        self.source, self.target = source, target
        known, self.steps = dict(values), list[Step]()
        for operator, inputs, output in steps:
            if all(name in known for name in inputs):  # weights that are stored in fp16: once
                known[output] = operator(*(known[name] for name in inputs))
            else:
                self.steps.append((operator, inputs, output))
        self.held = {name: known[name] for _, inputs, _ in self.steps for name in inputs if name in known}

    def forward(self, x: Tensor) -> Tensor:
        """Images [N, C, H, W] to logits [N, classes]."""
        values = {**self.held, self.source: x}
        for operator, inputs, output in self.steps:
            values[output] = operator(*(values[name] for name in inputs))
        return values[self.target]


def followed(operator: Operator, after: Callable[[Tensor], Tensor] | None) -> Operator:
    """``operator``, and ``after`` on its result."""
    return operator if after is None else lambda *inputs: after(operator(*inputs))


def quantised(scale: float, zero: int) -> Callable[[Tensor], Tensor]:
    """What rounds to the values ``scale`` (q - ``zero``), where q is an int8."""
    low, high = -128 - zero, 127 - zero

    return lambda x: on_grid(x / scale, low, high) * scale


def on_grid(exact: Tensor, low: float | Tensor, high: float | Tensor) -> Tensor:
    """``exact`` rounded to the integers from ``low`` to ``high``.

    The gradient is 1 in the range. What is clipped has none in truth; but where a range is too narrow for the images of
    an attack, this would hide from it what lies behind, so :data:`LEAK` of it is let through. At an end that is zero
    clipping is taken for a ReLU, and the gradient stays zero.
    """
    rounded: Tensor = _OnGrid.apply(exact, low, high)
    return rounded


class _OnGrid(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, exact: Tensor, low: float | Tensor, high: float | Tensor) -> Tensor:
        rounded = exact.round()
        if ctx.needs_input_grad[0]:
            above = torch.where(rounded > high, LEAK * (high != 0), 1.0)
            ctx.save_for_backward(torch.where(rounded < low, LEAK * (low != 0), above))
        return rounded.clamp(low, high)  # type: ignore[arg-type]  # both are of one kind

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (slope,) = ctx.saved_tensors
        return gradient * slope, None, None


def halved(x: Tensor) -> Tensor:
    """``x`` rounded to fp16."""
    return x + (x.half().float() - x).detach()


def dequantised(x: Tensor, scale: Tensor, zero: Tensor, axis: int) -> Tensor:
    """Stored integers in real numbers; ``scale`` and ``zero`` have one element, or one for each index of ``axis``."""
    along = [-1 if i == axis else 1 for i in range(x.ndim)]
    return ((x.double() - zero.reshape(along)) * scale.double().reshape(along)).float()  # a bias has up to 32 bits


# -- operators on images [N, H, W, C] ------------------------------------------------------------------------------


def convolved(
    x: Tensor, weight: Tensor, bias: Tensor | None, *, stride: Size, dilation: Size, groups: int, pads: Sequence[int]
) -> Tensor:
    """A convolution with a weight [out, kH, kW, in / groups]; ``pads`` are left, right, top, bottom."""
    images, kernel = F.pad(x.permute(0, 3, 1, 2), list(pads)), weight.permute(0, 3, 1, 2)
    return F.conv2d(images, kernel, bias, stride, dilation=dilation, groups=groups).permute(0, 2, 3, 1)


def averaged(x: Tensor, *, window: Size, stride: Size) -> Tensor:
    """Average pooling without padding."""
    return F.avg_pool2d(x.permute(0, 3, 1, 2), window, stride).permute(0, 2, 3, 1)


def padded(x: Tensor, before: Sequence[int], after: Sequence[int], value: float = 0.0) -> Tensor:
    """``x`` with ``before`` and ``after`` elements of ``value`` at the ends of each axis."""
    pairs = reversed(list(zip(before, after, strict=True)))
    return F.pad(x, [amount for pair in pairs for amount in pair], value=value)


def sliced(x: Tensor, start: Sequence[int], size: Sequence[int]) -> Tensor:
    """From ``start`` as much as ``size`` of each axis but the first, the batch, which stays whole."""
    for axis in range(1, x.ndim):
        x = x.narrow(axis, start[axis], x.shape[axis] - start[axis] if size[axis] < 0 else size[axis])
    return x
