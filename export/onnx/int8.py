"""An ONNX graph in int8, with explicit Q/DQ nodes.

The quantiser is ONNX Runtime's own: its Q/DQ graphs are what ONNX Runtime, OpenVINO and TensorRT all take, and it needs
no package that an export does not need anyway.
"""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import onnx
from torch import Tensor

from zoo.export.onnx.calibration import USUAL, Method
from zoo.export.onnx.graph import INPUT, finish, quiet
from zoo.system.errors import ExportFailed, first_line

CALIBRATORS = {"minmax": "MinMax", "entropy": "Entropy", "percentile": "Percentile"}
BATCH = 64


def to_int8(path: Path, images: Tensor, *, method: Method = USUAL, symmetric: bool = False) -> None:
    """Rewrite the graph at ``path``: int8 weights per output channel, 8-bit activations, the last layer in float.

    Coarse logits would tie, and hide from an attack how near it is.

    Args:
        images: [N, C, H, W] in [0, 1], that activation ranges are chosen by.
        symmetric: signed activations with zero point 0, as TensorRT needs them; unsigned ones with a zero point use
            all 256 values after a ReLU, and are faster on CPUs.

    Raises:
        ExportFailed: the quantiser refused the graph.
    """
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    proto = onnx.load(str(path))
    try:
        with quiet(logging.root):
            quantize_static(
                proto,
                path,
                _Reader(images),
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                weight_type=QuantType.QInt8,
                activation_type=QuantType.QInt8 if symmetric else QuantType.QUInt8,
                calibrate_method=CalibrationMethod[CALIBRATORS[method]],
                nodes_to_exclude=[node.name for node in proto.graph.node if node.op_type in ("Gemm", "MatMul")],
                extra_options={
                    "WeightSymmetric": True,
                    "ActivationSymmetric": symmetric,
                    "QuantizeBias": not symmetric,  # TensorRT adds biases in float
                },
            )
        finish(onnx.load(str(path)), like=proto, path=path)
    except Exception as error:
        raise ExportFailed(f"the graph could not be quantised: {first_line(error)}") from error


class _Reader:
    """Batches of images as ONNX Runtime's calibrators need them: all of one size, or histograms fail."""

    def __init__(self, images: Tensor) -> None:
        size = max(size for size in range(1, BATCH + 1) if len(images) % size == 0)
        self.batches = iter(images.split(size))

    def get_next(self) -> dict[str, np.ndarray] | None:
        batch = next(self.batches, None)
        return None if batch is None else {INPUT: batch.numpy()}
