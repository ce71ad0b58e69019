"""The module that a ``.tflite`` file describes, from the weights and the ranges that are in it.

The schema that LiteRT ships for its format has all of it; the interpreter does not show an operator's options.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.export.gradients.steps import (
    Operator,
    Step,
    Steps,
    Unsupported,
    averaged,
    convolved,
    dequantised,
    followed,
    padded,
    quantised,
    sliced,
)

SAME = 0  # padding, so that the output is the input's size over the stride
CLAMPS = {0: None, 1: (0, None), 2: (-1, 1), 3: (0, 6)}  # by the number of the activation that an operator ends with


def read(path: Path) -> Steps:
    """The graph in the file ``path``.

    Raises:
        Unsupported: it has an operator, or a type of tensors, that the graphs of this package do not have.
    """
    from ai_edge_litert import schema_py_generated as schema

    content = path.read_bytes()
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(content))
    (graph,) = model.subgraphs
    names = {number: name for name, number in vars(schema.BuiltinOperator).items()}
    types = {number: name for name, number in vars(schema.TensorType).items()}
    values: dict[Any, Any] = {-1: None}  # an input that is left out
    for index, tensor in enumerate(graph.tensors):
        stored = _bytes(model.buffers[tensor.buffer], content)
        if stored:
            values[index] = _constant(tensor, types[tensor.type], stored)
    steps: list[Step] = []
    for operation in graph.operators:
        name = names[model.operatorCodes[operation.opcodeIndex].builtinCode]
        if name not in OPERATORS or len(operation.outputs) != 1:
            raise Unsupported(f"operator '{name}'")
        (output,) = operation.outputs
        options = operation.builtinOptions
        operator = followed(OPERATORS[name](options), _clamp(options))
        operator = followed(operator, _rounding(graph.tensors[output], types))
        steps.append((operator, [int(index) for index in operation.inputs], int(output)))
    (source,), (target,) = graph.inputs, graph.outputs
    return Steps(int(source), int(target), values, steps)


def _bytes(buffer: Any, content: bytes) -> bytes:
    """A buffer is in the schema's table, or behind it; that of a result is empty."""
    return (
        content[buffer.offset : buffer.offset + buffer.size]
        if buffer.size
        else bytes([] if buffer.data is None else buffer.data)
    )


def _constant(tensor: Any, kind: str, stored: bytes) -> Any:
    """A stored tensor in real numbers; one of integers that stand for themselves, as a list."""
    array = np.frombuffer(stored, kind.lower()).reshape(tensor.shape)
    rule = tensor.quantization
    if rule is not None and rule.scale is not None:
        scale, zero = torch.tensor(rule.scale), torch.tensor(rule.zeroPoint)
        return dequantised(torch.tensor(array), scale, zero, rule.quantizedDimension)
    return torch.tensor(array).float() if array.dtype.kind == "f" else array.tolist()


def _rounding(tensor: Any, types: dict[int, str]) -> Callable[[Tensor], Tensor] | None:
    """What becomes of a result that is stored in ``tensor``."""
    kind, rule = types[tensor.type], tensor.quantization
    if kind == "FLOAT32":
        return None
    if kind != "INT8" or rule is None or rule.scale is None or len(rule.scale) != 1:
        raise Unsupported(f"a result in {kind}")
    return quantised(float(rule.scale[0]), int(rule.zeroPoint[0]))


def _clamp(options: Any) -> Callable[[Tensor], Tensor] | None:
    limits = CLAMPS[getattr(options, "fusedActivationFunction", 0)]
    return None if limits is None else lambda x: x.clamp(*limits)


def _convolution(options: Any) -> Operator:
    stride = (options.strideH, options.strideW)
    dilation = (options.dilationHFactor, options.dilationWFactor)

    def run(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        if hasattr(options, "depthMultiplier"):  # of a depthwise convolution: [1, kH, kW, out]
            weight = weight.permute(3, 1, 2, 0)
        pads = [0, 0, 0, 0]
        if options.padding == SAME:
            sides = zip(x.shape[1:3], weight.shape[1:3], stride, dilation, strict=True)
            (top, bottom), (left, right) = (_same(*side) for side in sides)
            pads = [left, right, top, bottom]
        groups = x.shape[3] // weight.shape[3]
        return convolved(x, weight, bias, stride=stride, dilation=dilation, groups=groups, pads=pads)

    return run


def _same(size: int, kernel: int, stride: int, dilation: int) -> tuple[int, int]:
    """The padding before and after."""
    total = max(0, (-(-size // stride) - 1) * stride + (kernel - 1) * dilation + 1 - size)
    return total // 2, total - total // 2


def _average(options: Any) -> Operator:
    if options.padding == SAME:
        raise Unsupported("average pooling with padding")
    window, stride = (options.filterHeight, options.filterWidth), (options.strideH, options.strideW)
    return partial(averaged, window=window, stride=stride)


def _linear(options: Any) -> Operator:
    def run(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return F.linear(x if options.keepNumDims else x.reshape(-1, weight.shape[1]), weight, bias)

    return run


OPERATORS: dict[str, Callable[[Any], Operator]] = {
    "ADD": lambda options: torch.add,
    "SUB": lambda options: torch.sub,
    "MUL": lambda options: torch.mul,
    "QUANTIZE": lambda options: lambda x: x,
    "DEQUANTIZE": lambda options: lambda x: x,
    "TRANSPOSE": lambda options: lambda x, order: x.permute(order),
    "PAD": lambda options: lambda x, amounts: padded(x, *zip(*amounts, strict=True)),
    "SLICE": lambda options: sliced,
    "MEAN": lambda options: lambda x, axes: x.mean(axes, keepdim=options.keepDims),
    "LOGISTIC": lambda options: torch.sigmoid,
    "HARD_SWISH": lambda options: F.hardswish,
    "CONV_2D": _convolution,
    "DEPTHWISE_CONV_2D": _convolution,
    "FULLY_CONNECTED": _linear,
    "AVERAGE_POOL_2D": _average,
}
