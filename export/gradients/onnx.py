"""An ONNX graph, also a quantised one, as a PyTorch module that computes what it does, and has gradients.

Those of a quantised graph pass straight through its rounding (:mod:`zoo.export.gradients.steps`): BPDA (Athalye et al.
2018, section 4.1) with the closest surrogate there is, the engine's own weights and ranges.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor, nn

from zoo.export.gradients.onnx_operators import BEFORE_13, FLOAT, constant, tensor
from zoo.export.gradients.steps import Operator, Step, Steps, Unsupported, on_grid
from zoo.export.onnx.graph import with_weights_of
from zoo.models import Classifier
from zoo.system.errors import first_line


def read(path: Path) -> Steps:
    """The graph in the ONNX file ``path``, in float arithmetic.

    Raises:
        Unsupported: it has something that is not known here; some forms of operators show only when it computes.
    """
    model = onnx.load(str(path))
    graph, opset = model.graph, max((one.version for one in model.opset_import if not one.domain), default=1)
    operators = OPERATORS if opset >= 13 else OPERATORS | BEFORE_13
    weights = {one.name: tensor(one) for one in graph.initializer}
    sources = [port.name for port in graph.input if port.name not in weights]  # old files list the weights too
    if len(sources) != 1 or len(graph.output) != 1 or graph.sparse_initializer:
        raise Unsupported("more than images and logits")
    values: dict[Hashable, Any] = {"": None, **weights}  # an input that is left out has no name
    known = {*values, *sources}
    steps: list[Step] = []
    grids: dict[str, list[str]] = {}  # by quantised tensor: the names of its scale and zero point
    same: dict[str, str] = {}  # by dequantised tensor: the quantised one
    for node in graph.node:
        kind, attributes = node.op_type, {one.name: _value(one) for one in node.attribute}
        if kind == "Constant":
            values[node.output[0]] = constant(**attributes)
            known.add(node.output[0])
            continue
        if kind not in operators or node.domain not in ("", "ai.onnx"):
            raise Unsupported(f"the operator '{kind}'")
        inputs = [same.get(name, name) for name in node.input]
        if not known.issuperset(inputs):
            raise Unsupported(f"another output than the first, for '{kind}'")
        if kind == "DequantizeLinear" and inputs[0] in grids:  # which is in floats already
            if not all(_equal(values, *names) for names in zip(inputs[1:], grids[inputs[0]], strict=True)):
                raise Unsupported("a tensor that is dequantised by another scale")
            same[node.output[0]] = inputs[0]
            known.add(node.output[0])
            continue
        if grids.keys() & set(node.input) or (kind == "DequantizeLinear" and inputs[0] not in values):
            raise Unsupported(f"'{kind}' on integers")
        if kind == "QuantizeLinear":
            attributes = {"limits": _limits(values.get(inputs[2]) if len(inputs) > 2 else None)}
            grids[node.output[0]] = inputs[1:]
        outputs = node.output if kind == "Split" else node.output[:1]
        for part, output in enumerate(outputs):
            which = {"part": part, "parts": len(outputs)} if kind == "Split" else {}
            if output:
                steps.append((_named(kind, partial(operators[kind], **attributes, **which)), inputs, output))
        known.update(outputs)
    target = graph.output[0].name
    return Steps(sources[0], same.get(target, target), values, steps)


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


def _value(attribute: onnx.AttributeProto) -> Any:
    value = onnx.helper.get_attribute_value(attribute)
    return value.decode() if isinstance(value, bytes) else value


def _named(kind: str, operator: Operator) -> Operator:
    """``operator``, which says its name if it fails."""

    def step(*inputs: Any) -> Any:
        try:
            return operator(*inputs)
        except Exception as error:  # the forms of operators are many
            raise Unsupported(f"the operator '{kind}' ({first_line(error)})") from error

    return step


def _equal(values: Mapping[Hashable, Any], a: str, b: str) -> bool:
    """Whether the tensors called ``a`` and ``b`` are the same."""
    x, y = values.get(a), values.get(b)
    return a == b or (isinstance(x, Tensor) and isinstance(y, Tensor) and x.dtype == y.dtype and torch.equal(x, y))


def _limits(zero: Tensor | None) -> tuple[float, float]:
    """The ends of a quantised tensor's range, in steps from its zero point."""
    if zero is None:
        raise Unsupported("a zero point that is left out or computed")
    if zero.numel() > 1:
        raise Unsupported("activations with a scale for each channel")
    held = torch.iinfo(zero.dtype)
    return float(held.min - int(zero)), float(held.max - int(zero))


def _along(scale: Tensor, x: Tensor, axis: int) -> Tensor:
    """One scale for each index of ``axis``, or one for all, in a shape that goes with ``x``."""
    return scale.float().reshape([-1 if i == axis % x.ndim else 1 for i in range(x.ndim)] if scale.numel() > 1 else [])


def _quantize(x: Tensor, scale: Tensor, zero: Tensor, *, limits: tuple[float, float]) -> Tensor:
    """``x`` on the grid of an activation, as floats."""
    return on_grid(x / scale, *limits) * scale


def _dequantize(x: Tensor, scale: Tensor, zero: Tensor | None = None, *, axis: int = 1) -> Tensor:
    """Quantised weights as floats."""
    offset = 0 if zero is None else _along(zero, x, axis)
    return (x.float() - offset) * _along(scale, x, axis)


OPERATORS: dict[str, Operator] = {**FLOAT, "QuantizeLinear": _quantize, "DequantizeLinear": _dequantize}
