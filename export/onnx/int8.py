"""An ONNX graph in int8, with explicit Q/DQ nodes: after every operator, or before convolutions alone.

The quantiser is ONNX Runtime's own: its Q/DQ graphs are what ONNX Runtime, OpenVINO and TensorRT all take, and it needs
no package that an export does not need anyway.
"""

from __future__ import annotations

import logging
from collections.abc import Collection
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np
import onnx
from torch import Tensor

from zoo.export.onnx.calibration import USUAL, Method
from zoo.export.onnx.graph import INPUT, finish, quiet
from zoo.system.errors import ExportFailed, first_line

CALIBRATORS = {"minmax": "MinMax", "entropy": "Entropy", "percentile": "Percentile"}
BATCH = 64
LINEAR = ("Gemm", "MatMul")  # the last layer
FOLDED = ("Relu", "Clip")  # into the range of what comes before


def to_int8(
    path: Path,
    images: Tensor,
    *,
    method: Method = USUAL,
    symmetric: bool = False,
    portable: bool = False,
    inputs_only: bool = False,
    kept: Collection[str] = (),
    ranges: Path | None = None,
) -> None:
    """Rewrite the graph at ``path``: int8 weights per output channel, 8-bit activations, the last layer in float.

    Coarse logits would tie, and hide from an attack how near it is.

    Args:
        images: [N, C, H, W] in [0, 1], that activation ranges are chosen by.
        symmetric: signed activations with zero point 0, as TensorRT needs them; unsigned ones with a zero point use
            all 256 values after a ReLU, and are faster on CPUs.
        portable: weights from -64 to 64. Without VNNI, x86 processors add two products of 8 bits in 16 bits, which
            larger weights overflow.
        inputs_only: round what goes into convolutions and nothing else. By default every operator rounds what it puts
            out: ONNX Runtime computes a convolution in int8 only if that does.
        kept: the names of nodes that stay in float.
        ranges: a file for the activation ranges, which are read from it if it exists.

    Raises:
        ExportFailed: the quantiser refused the graph.
    """
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    proto = onnx.load(str(path))
    kept = {*kept, *(node.name for node in proto.graph.node if node.op_type in LINEAR)}
    if inputs_only:
        kept |= _shared_without_bias(proto.graph)
    try:
        with quiet(logging.root):
            quantize_static(
                proto,
                path,
                _Reader(images),
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                reduce_range=portable,
                weight_type=QuantType.QInt8,
                activation_type=QuantType.QInt8 if symmetric else QuantType.QUInt8,
                calibrate_method=CalibrationMethod[CALIBRATORS[method]],
                op_types_to_quantize=["Conv"] if inputs_only else None,
                nodes_to_exclude=sorted(kept),
                extra_options={
                    "OpTypesToExcludeOutputQuantization": ["Conv"] if inputs_only else [],
                    "WeightSymmetric": True,
                    "ActivationSymmetric": symmetric,
                    "QuantizeBias": not symmetric,  # TensorRT adds biases in float
                },
                calibration_cache_path=ranges,
            )
        quantised = onnx.load(str(path))
        if inputs_only:
            _round_for_convolutions_alone(quantised.graph, kept)
        finish(quantised, like=proto, path=path)
    except Exception as error:
        raise ExportFailed(f"the graph could not be quantised: {first_line(error)}") from error


def _shared_without_bias(graph: onnx.GraphProto) -> set[str]:
    """The names of convolutions without a bias whose output goes to an addition and elsewhere, as WideResNets' stems.

    In int8 OpenVINO (2026.4) computes them wrongly if they give floats.
    """
    constant = {one.name: onnx.numpy_helper.to_array(one) for one in graph.initializer}
    takers: dict[str, list[str]] = {}
    for node in graph.node:
        for name in node.input:
            takers.setdefault(name, []).append(node.op_type)

    def wrong(node: onnx.NodeProto) -> bool:
        biased = any(name not in constant or constant[name].any() for name in node.input[2:] if name)
        theirs = takers.get(node.output[0], [])
        return node.op_type == "Conv" and not biased and len(theirs) > 1 and "Add" in theirs

    return {node.name for node in graph.node if wrong(node)}


def _round_for_convolutions_alone(graph: onnx.GraphProto, kept: Collection[str]) -> None:
    """Give the float tensor to whatever else takes one that is rounded for a convolution, as additions do."""
    rounded = {node.output[0]: node.input[0] for node in graph.node if node.op_type == "QuantizeLinear"}
    restored = [node for node in graph.node if node.op_type == "DequantizeLinear" and node.input[0] in rounded]
    back = {node.output[0]: rounded[node.input[0]] for node in restored}
    for node in graph.node:
        if node.op_type != "Conv" or node.name in kept:
            for i, name in enumerate(node.input):
                node.input[i] = back.get(name, name)


@dataclass(frozen=True)
class Layer:
    """Nodes that are quantised together: a convolution with its ReLU, or everything between two convolutions.

    Attributes:
        nodes: their names, in the order of the graph.
        macs: multiply-accumulates of the convolution.
        work: these, and one operation for each element that the other nodes write.
    """

    nodes: tuple[str, ...]
    macs: int
    work: int


def layers_of(path: Path, *, inputs_only: bool = False) -> list[Layer]:
    """The layers of the float graph at ``path`` but the last, which always stays in float.

    Args:
        inputs_only: leave out what :func:`to_int8` then never rounds: layers without a convolution, and convolutions
            that OpenVINO computes wrongly.
    """
    graph = onnx.shape_inference.infer_shapes(onnx.load(str(path))).graph
    ports = [*graph.value_info, *graph.output]
    sizes = {port.name: prod(dim.dim_value for dim in port.type.tensor_type.shape.dim[1:]) for port in ports}
    weights = {one.name: list(one.dims) for one in graph.initializer}
    groups: list[list[onnx.NodeProto]] = []
    for node in graph.node:
        opened = groups and (node.op_type in FOLDED or groups[-1][0].op_type != "Conv")
        if node.op_type == "Conv" or not opened:
            groups.append([])
        groups[-1].append(node)

    def layer(group: list[onnx.NodeProto]) -> Layer:
        macs = sum(sizes[one.output[0]] * prod(weights[one.input[1]][1:]) for one in group if one.op_type == "Conv")
        others = [one for one in group if one.op_type not in ("Conv", *LINEAR)]
        names = tuple(one.name for one in group if one.op_type not in LINEAR)
        return Layer(names, macs, macs + sum(sizes[one.output[0]] for one in others))

    if inputs_only:
        wrong = _shared_without_bias(graph)
        groups = [group for group in groups if group[0].op_type == "Conv" and group[0].name not in wrong]
    return [layer(group) for group in groups]


class _Reader:
    """Batches of images as ONNX Runtime's calibrators need them: all of one size, or histograms fail."""

    def __init__(self, images: Tensor) -> None:
        size = max(size for size in range(1, BATCH + 1) if len(images) % size == 0)
        self.batches = iter(images.split(size))

    def get_next(self) -> dict[str, np.ndarray] | None:
        batch = next(self.batches, None)
        return None if batch is None else {INPUT: batch.numpy()}
