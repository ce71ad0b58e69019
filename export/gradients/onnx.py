"""A quantised ONNX graph as a PyTorch module that computes what it does, with gradients that pass straight through.

Rounding has no gradient; taking it for the identity (within the range; outside it the gradient is zero, as it truly is)
is BPDA (Athalye et al. 2018, section 4.1) with the closest surrogate there is: the engine's own weights and ranges.
"""

from __future__ import annotations

from collections.abc import Hashable
from functools import partial
from pathlib import Path
from typing import Any

import onnx
import torch
import torch.nn.functional as F
from onnx import numpy_helper
from torch import Tensor, nn

from zoo.export.gradients.steps import Operator, Step, Steps, Unsupported
from zoo.export.onnx.graph import with_weights_of
from zoo.models import Classifier


def read(path: Path) -> Steps:
    """The graph in the ONNX file ``path``, in float arithmetic.

    Raises:
        Unsupported: the graph is not one of this package's; some forms of operators show only when it computes.
    """
    graph = onnx.load(str(path)).graph
    (source,), (target,) = ([port.name for port in ports] for ports in (graph.input, graph.output))
    values: dict[Hashable, Any] = {"": None}  # an input that is left out
    values |= {one.name: torch.from_numpy(numpy_helper.to_array(one).copy()) for one in graph.initializer}
    steps: list[Step] = []
    grids: dict[str, list[str]] = {}  # by quantised tensor: the names of its scale and zero point
    same: dict[str, str] = {}  # by dequantised tensor: the quantised one
    for node in graph.node:
        if node.op_type not in OPERATORS:
            raise Unsupported(f"operator '{node.op_type}'")
        attributes = {one.name: onnx.helper.get_attribute_value(one) for one in node.attribute}
        inputs = [same.get(name, name) for name in node.input]
        if node.op_type == "QuantizeLinear":
            attributes = {"limits": _limits(values[inputs[2]])}
            grids[node.output[0]] = inputs[1:]
        elif node.op_type == "DequantizeLinear" and inputs[0] in grids:  # which has returned to floats already
            if inputs[1:] != grids[inputs[0]]:
                raise Unsupported("a tensor that is dequantised by another scale")
            same[node.output[0]] = inputs[0]
            continue
        steps.append((partial(OPERATORS[node.op_type], **attributes), inputs, node.output[0]))
    return Steps(source, same.get(target, target), values, steps)


def own_gradients(path: Path, model: Classifier) -> nn.Module | None:
    """A differentiable module of the graph at ``path``, which ``model`` was exported to; None if none can be made."""
    if not any(node.op_type == "QuantizeLinear" for node in onnx.load(str(path)).graph.node):
        return with_weights_of(path, model)
    try:
        net, size = read(path), model.spec.image_size
        with torch.no_grad():
            net(torch.zeros(1, 3, size, size))  # forms of operators show when they compute
        return net
    except Unsupported:
        return None


def _limits(zero: Tensor) -> tuple[float, float]:
    """The ends of a quantised tensor's range, in steps from its zero point."""
    if zero.numel() > 1:
        raise Unsupported("activations with a scale for each channel")
    held = torch.iinfo(zero.dtype)
    return float(held.min - int(zero)), float(held.max - int(zero))


def _along(scale: Tensor, x: Tensor, axis: int) -> Tensor:
    """One scale for each index of ``axis``, or one for all, in a shape that goes with ``x``."""
    return scale.float().reshape([-1 if i == axis % x.ndim else 1 for i in range(x.ndim)] if scale.numel() > 1 else [])


def _quantize(x: Tensor, scale: Tensor, zero: Tensor, *, limits: tuple[float, float]) -> Tensor:
    """``x`` on the grid of an activation, as floats."""
    exact = F.hardtanh(x / scale, *limits)
    return (exact + (exact.round() - exact).detach()) * scale


def _dequantize(x: Tensor, scale: Tensor, zero: Tensor | None = None, *, axis: int = 1) -> Tensor:
    """Quantised weights as floats."""
    offset = 0 if zero is None else _along(zero, x, axis)
    return (x.float() - offset) * _along(scale, x, axis)


def _conv(x: Tensor, weight: Tensor, bias: Tensor | None = None, **form: Any) -> Tensor:
    _plain(form, auto_pad=b"NOTSET")
    top, left, bottom, right = form.get("pads", (0, 0, 0, 0))
    if (top, left) == (bottom, right):
        padding = (top, left)
    else:
        x, padding = F.pad(x, (left, right, top, bottom)), (0, 0)
    how = {"stride": form.get("strides", 1), "dilation": form.get("dilations", 1), "groups": form.get("group", 1)}
    return F.conv2d(x, weight, bias, padding=padding, **how)


def _gemm(x: Tensor, weight: Tensor, bias: Tensor | None = None, **form: Any) -> Tensor:
    _plain(form, alpha=1.0, beta=1.0, transA=0)
    return F.linear(x, weight if form.get("transB") else weight.T, bias)


def _pad(x: Tensor, pads: Tensor, value: Tensor | None = None, axes: Tensor | None = None, **form: Any) -> Tensor:
    _plain(form, mode=b"constant")
    along = list(range(x.ndim)) if axes is None else axes.tolist()
    before, after = pads.tolist()[: len(along)], pads.tolist()[len(along) :]
    amounts = {axis % x.ndim: pair for axis, *pair in zip(along, before, after, strict=True)}
    flat = [amount for axis in reversed(range(x.ndim)) for amount in amounts.get(axis, (0, 0))]
    return F.pad(x, flat, value=0.0 if value is None else float(value))


def _mean(x: Tensor, axes: Tensor | None = None, *, keepdims: int = 1, **form: Any) -> Tensor:
    _plain(form, noop_with_empty_axes=0)
    return x.mean(list(range(x.ndim)) if axes is None else axes.tolist(), keepdim=bool(keepdims))


def _batch_norm(x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, variance: Tensor, **form: Any) -> Tensor:
    _plain(form, training_mode=0)
    return F.batch_norm(x, mean, variance, scale, bias, eps=form.get("epsilon", 1e-5))


def _reshape(x: Tensor, shape: Tensor, *, allowzero: int = 0) -> Tensor:
    return x.reshape([x.shape[i] if size == 0 and not allowzero else size for i, size in enumerate(shape.tolist())])


def _clip(x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
    return x.clamp(None if low is None else float(low), None if high is None else float(high))


def _max_pool(x: Tensor, **form: Any) -> Tensor:
    _plain(form, auto_pad=b"NOTSET", ceil_mode=0, storage_order=0, dilations=[1, 1])
    top, left, bottom, right = form.get("pads", (0, 0, 0, 0))
    padded = F.pad(x, (left, right, top, bottom), value=-torch.inf)
    return F.max_pool2d(padded, form["kernel_shape"], form.get("strides", 1))


def _average_pool(x: Tensor, **form: Any) -> Tensor:
    _plain(form, auto_pad=b"NOTSET", ceil_mode=0, dilations=[1, 1], pads=[0, 0, 0, 0])
    return F.avg_pool2d(x, form["kernel_shape"], form.get("strides", 1))


def _plain(form: dict[str, Any], **usual: Any) -> None:
    for name, value in usual.items():
        if form.get(name, value) != value:
            raise Unsupported(f"{name}={form[name]}")


OPERATORS: dict[str, Operator] = {
    "QuantizeLinear": _quantize,
    "DequantizeLinear": _dequantize,
    "Conv": _conv,
    "Gemm": _gemm,
    "Pad": _pad,
    "ReduceMean": _mean,
    "BatchNormalization": _batch_norm,
    "Reshape": _reshape,
    "Clip": _clip,
    "MaxPool": _max_pool,
    "AveragePool": _average_pool,
    "HardSwish": F.hardswish,
    "HardSigmoid": lambda x, alpha=0.2, beta=0.5: (alpha * x + beta).clamp(0, 1),
    "Add": torch.add,
    "Sub": torch.sub,
    "Mul": torch.mul,
    "Div": torch.div,
    "Relu": torch.relu,
    "Sigmoid": torch.sigmoid,
    "Flatten": lambda x, axis=1: x.flatten(axis),
}
