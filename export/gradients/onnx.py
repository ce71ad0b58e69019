"""An ONNX graph, also a quantised one, as a PyTorch module that computes what it does, and has gradients.

Those of a quantised graph pass straight through its rounding (:mod:`zoo.export.gradients.steps`): BPDA (Athalye et al.
2018, section 4.1) with the closest surrogate there is, the engine's own weights and ranges.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import onnx
import torch
from onnx import TensorProto
from torch import Tensor, nn

from zoo.export.gradients.onnx_operators import BEFORE_13, DTYPES, FLOAT, constant, plain, tensor
from zoo.export.gradients.steps import Operator, Step, Steps, Unsupported, on_grid
from zoo.export.onnx.graph import with_weights_of
from zoo.models import Classifier
from zoo.system.errors import first_line

DOMAINS = ("", "ai.onnx", "com.microsoft")  # ONNX Runtime's own has quantising in types that ONNX did not have once
ZERO = torch.zeros(())
Grid = tuple[str, str, int]  # names of scale and zero point, "" if it is left out, and the axis of several scales


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
    values: dict[str, Any] = {"": None, **weights}  # an input that is left out has no name
    known = {*values, *sources}
    steps: list[Step] = []
    grids: dict[str, Grid] = {}  # by quantised tensor
    same: dict[str, str] = {}  # by dequantised tensor: the quantised one
    for node in _in_order(graph.node, known):
        kind, attributes = node.op_type, {one.name: _value(one) for one in node.attribute}
        if kind not in operators or node.domain not in DOMAINS:
            raise Unsupported(f"the operator '{node.domain}{'.' * bool(node.domain)}{kind}'")
        inputs = [same.get(name, name) for name in node.input]
        if not known.issuperset(inputs):
            raise Unsupported(f"another output than the first, for '{kind}'")
        scale, zero = [*inputs[1:3], "", ""][:2]
        grid: Grid = (scale, zero, attributes.get("axis", 1))
        if kind == "DequantizeLinear" and inputs[0] in grids:  # which is in floats already
            if _resolved(values, grid) != _resolved(values, grids[inputs[0]]):
                raise Unsupported("a tensor that is dequantised by another scale")
            same[node.output[0]] = inputs[0]
            known.add(node.output[0])
            continue
        if grids.keys() & set(node.input) or (kind == "DequantizeLinear" and inputs[0] not in values):
            raise Unsupported(f"'{kind}' on integers")
        if kind == "QuantizeLinear":
            grids[node.output[0]] = grid
        outputs = node.output if kind == "Split" else node.output[:1]
        for part, output in enumerate(outputs):
            which = {"part": part, "parts": len(outputs)} if kind == "Split" else {}
            step = _named(kind, partial(operators[kind], **attributes, **which))
            if output and all(name in values for name in inputs):
                values[output] = step(*(values[name] for name in inputs))
            elif output:
                steps.append((step, inputs, output))
        known.update(outputs)
    target = same.get(graph.output[0].name, graph.output[0].name)
    if target in values:
        raise Unsupported("logits that do not depend on the images")
    return Steps(sources[0], target, values, steps)


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


def _in_order(nodes: Iterable[onnx.NodeProto], known: Iterable[str]) -> Iterator[onnx.NodeProto]:
    """The nodes, each after those that it takes something from: some converters write them in another order."""
    made, waiting = set(known), list(nodes)
    while waiting:
        left = []
        for node in waiting:
            if made.issuperset(node.input):
                yield node
                made.update(node.output)
            else:
                left.append(node)
        if len(left) == len(waiting):
            raise Unsupported(f"'{left[0].op_type}' of what nothing computes")
        waiting = left


def _resolved(values: Mapping[str, Any], grid: Grid) -> tuple[Any, ...]:
    """What is equal for equal grids: scale, zero point (0 if left out) and the axis of several scales, or names."""
    scale, zero, axis = grid
    x, y = values.get(scale), values.get(zero) if zero else ZERO
    if x is None or y is None:
        return grid
    return x.flatten().tolist(), y.flatten().tolist() if y.any() else 0, axis if x.numel() > 1 else None


def _number(x: Tensor) -> float | Tensor:
    """A tensor of one element as a number, with which PyTorch computes faster."""
    return x.item() if x.numel() == 1 else x


def _along(x: Tensor, scale: Tensor, axis: int) -> Tensor:
    """One scale for each index of ``axis``, or one for all, in a shape that goes with ``x``."""
    return scale.float().reshape([-1 if i == axis % x.ndim else 1 for i in range(x.ndim)] if scale.numel() > 1 else [])


def _quantize(
    x: Tensor, scale: Tensor, zero: Tensor | None = None, *, axis: int = 1, output_dtype: int = 0, **form: Any
) -> Tensor:
    """``x`` on the grid, in real numbers."""
    plain(form, block_size=0)
    held = torch.iinfo(DTYPES[output_dtype or TensorProto.UINT8] if zero is None else zero.dtype)
    offset = 0.0 if zero is None else _number(_along(x, zero, axis))
    return on_grid(x.float(), _number(_along(x, scale, axis)), held.min - offset, held.max - offset).to(x.dtype)


def _dequantize(x: Tensor, scale: Tensor, zero: Tensor | None = None, *, axis: int = 1, **form: Any) -> Tensor:
    """Quantised weights in real numbers."""
    plain(form, block_size=0)
    offset = ZERO if zero is None else _along(x, zero, axis)
    return ((x.float() - offset) * _along(x, scale, axis)).to(scale.dtype)


OPERATORS: dict[str, Operator] = {
    **FLOAT,
    "Constant": constant,
    "QuantizeLinear": _quantize,
    "DequantizeLinear": _dequantize,
}
