"""LiteRT, once TensorFlow Lite, on the CPU: ``model.tflite``, one image at a time.

The converter lays the batch size down in the file. The runtime would resize the input of such a file and then answer
wrongly, so a batch is run image by image. "fp16" halves the weights' file; the arithmetic is fp32. In "int8" weights
are quantised for each output channel, activations by the least and the greatest value seen; normalisation, pooling and
head stay in float.
"""

from __future__ import annotations

import io
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zoo.export.engines import backend
from zoo.export.engines.batchnorm import without_batchnorm
from zoo.export.engines.interface import Built, Engine, Order, run_locally
from zoo.system.errors import ExportFailed, first_line
from zoo.system.silence import silence

BACKEND = backend("litert")
ARTIFACT = "model.tflite"
SIGNATURE, INPUT = "serving_default", "args_0"  # as the converter calls them
WEIGHTED = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")
INTEGER = ("CONV_2D", "DEPTHWISE_CONV_2D", "ADD", "PAD", "SLICE", "TRANSPOSE", "MAX_POOL_2D")


def runtime() -> Any:
    """The module ``ai_edge_litert.interpreter``.

    Raises:
        MissingDependency: it is not installed.
    """
    return BACKEND.imported("ai_edge_litert.interpreter")


def build(order: Order, folder: Path) -> Built:
    """Convert the float model, without BatchNorm, for a batch of 1.

    Raises:
        ExportFailed: a converter refused it.
        MissingDependency: the converters are not installed.
    """
    litert_torch, _ = (BACKEND.imported(converter) for converter in BACKEND.converters)
    size = order.model.spec.image_size
    try:
        with silence(), redirect_stderr(io.StringIO()):  # they draw progress bars
            edge = litert_torch.convert(without_batchnorm(order.model).cpu(), (torch.zeros(1, 3, size, size),))
            content = edge.model_content()
            if order.precision == "fp16":
                content = _halved(content)
            elif order.calibration is not None:
                content = _quantised(content, order.calibration)
    except Exception as error:  # those of the packages involved have no base class in common
        raise ExportFailed(f"LiteRT could not convert the model: {first_line(error)}") from error
    (folder / ARTIFACT).write_bytes(content)
    return Built(file=ARTIFACT, options={"batch": 1})


def _halved(content: bytes) -> bytes:
    """The model with its weights in fp16."""
    from ai_edge_quantizer import qtyping, quantizer

    recipe = quantizer.Quantizer(content)
    for operation in WEIGHTED:
        recipe.add_weight_only_config(
            ".*", qtyping.TFLOperationName(operation), 16, algorithm_key=quantizer.AlgorithmName.FLOAT_CASTING
        )
    return bytes(recipe.quantize(enable_progress_report=False).quantized_model)


def _quantised(content: bytes, images: Tensor) -> bytes:
    """The model in int8, its ranges from ``images`` [N, C, H, W]."""
    from ai_edge_quantizer import calibrator, qtyping, quantizer, recipe_manager
    from ai_edge_quantizer.utils import qsv_utils

    recipe = recipe_manager.RecipeManager()
    for operation in INTEGER:
        recipe.add_static_config(".*", qtyping.TFLOperationName(operation), activation_num_bits=8, weight_num_bits=8)
    observed = calibrator.Calibrator(content, num_threads=1, qsv_update_func=qsv_utils.min_max_update)
    observed.calibrate({SIGNATURE: [{INPUT: image.numpy()} for image in images.split(1)]}, recipe)
    quantised = quantizer.Quantizer(content, recipe.get_quantization_recipe()).quantize(
        observed.get_model_qsvs(), enable_progress_report=False
    )
    return bytes(quantised.quantized_model)


def load(path: Path | str, *, threads: int | None = None) -> Engine:
    """An engine that runs the model at ``path``.

    Args:
        threads: CPU threads of one call; all cores if None.

    Raises:
        MissingDependency: LiteRT is not installed.
        IntegrityError: the file is not a classifier that LiteRT can load.
        UsageError: fewer than 1 thread.
    """
    return run_locally(BACKEND, [Path(path)], threads, graph=None)
