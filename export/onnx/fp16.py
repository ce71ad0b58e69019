"""An ONNX graph in fp16, with float32 at either end."""

from __future__ import annotations

from pathlib import Path

import onnx

from zoo.export.onnx.graph import finish
from zoo.system.errors import ExportFailed, first_line


def to_fp16(path: Path) -> None:
    """Rewrite the graph at ``path``: fp16 weights and arithmetic, float32 images in and logits out.

    Raises:
        ExportFailed: the converter refused the graph.
    """
    from onnxruntime.quantization.onnx_model import ONNXModel
    from onnxruntime.transformers.float16 import convert_float_to_float16

    try:
        half = ONNXModel(convert_float_to_float16(onnx.load(str(path)), keep_io_types=True))
        half.topological_sort()  # the converter appends the casts of the ports
        finish(half.model, like=onnx.load(str(path)), path=path)
    except Exception as error:  # the packages' errors have no base in common
        raise ExportFailed(f"the graph could not be converted to fp16: {first_line(error)}") from error
