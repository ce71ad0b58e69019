"""A graph of operators as a PyTorch module, with gradients that pass straight through each rounding.

Rounding has no gradient; taking it for the identity is BPDA (Athalye et al. 2018, section 4.1). Every tensor is in real
numbers: a quantised one holds the multiples of its scale, so that quantising is rounding, dequantising is nothing, and
an int8 operator is the float one, rounded.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from math import copysign, inf
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Operator = Callable[..., Any]
Step = tuple[Operator, Sequence[Hashable], Hashable]
Size = tuple[int, int]
Number = float | Tensor
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
    return lambda x: on_grid(x, scale, -128 - zero, 127 - zero)


def on_grid(x: Tensor, scale: Number, low: Number, high: Number) -> Tensor:
    """``x`` rounded to the multiples of ``scale`` from ``low`` to ``high`` times it.

    The gradient is 1 in the range. What is clipped has none in truth; but where a range is too narrow for the images of
    an attack, this would hide from it what lies behind, so :data:`LEAK` of it is let through. At an end that is zero
    clipping is taken for a ReLU, and the gradient stays zero.

    Args:
        scale, low, high: numbers, or tensors that go with ``x``, the bounds both of one kind.
    """
    rounded: Tensor = _OnGrid.apply(x, scale, low, high)
    return rounded


class _OnGrid(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Number, low: Number, high: Number) -> Tensor:
        whole = (x / scale).round_()
        ctx.save_for_backward(whole)
        ctx.bounds = low, high
        return whole.clamp(low, high).mul_(scale)  # type: ignore[arg-type]  # both are of one kind

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        (whole,), (low, high) = ctx.saved_tensors, ctx.bounds
        inside = _between(gradient, whole, low - 0.5, high + 0.5)
        leaking = _between(gradient, whole, _unless_zero(low, -inf), _unless_zero(high, inf))
        return inside.lerp_(leaking, LEAK), None, None, None


def _between(gradient: Tensor, x: Tensor, low: Number, high: Number) -> Tensor:
    """The gradient where x lies between the bounds, else zero."""
    if isinstance(low, Tensor):  # and high
        return gradient * ((x > low) & (x < high))
    kept: Tensor = torch.ops.aten.hardtanh_backward(gradient, x, low, high)  # several times as fast
    return kept


def _unless_zero(end: Number, far: float) -> Number:
    """Nothing lies beyond ``far``; at an end that is zero, the half of it that rounds to zero."""
    nearest = copysign(0.5, far)
    return torch.where(end == 0, nearest, far) if isinstance(end, Tensor) else (far if end else nearest)


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
