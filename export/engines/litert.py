"""LiteRT, once TensorFlow Lite, on the CPU: ``model.tflite``, one image at a time.

The converter lays the batch size down in the file. The runtime would resize the input of such a file and then answer
wrongly, so a batch is run image by image. "fp16" halves the weights' file; the arithmetic is fp32. In "int8" weights
are quantised for each output channel, activations by the least and the greatest value seen; normalisation, pooling and
head stay in float.
"""

from __future__ import annotations

import io
import os
from contextlib import redirect_stderr, redirect_stdout
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from zoo.export.engines.batchnorm import without_batchnorm
from zoo.export.engines.interface import Built, Order, checked
from zoo.models import Classifier
from zoo.system.errors import ExportFailed, IntegrityError, MissingDependency, UsageError

ARTIFACT = "model.tflite"
SIGNATURE, INPUT = "serving_default", "args_0"  # as the converter calls them
WEIGHTED = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")
INTEGER = ("CONV_2D", "DEPTHWISE_CONV_2D", "ADD", "PAD", "SLICE", "TRANSPOSE", "MAX_POOL_2D")


def build(order: Order, folder: Path) -> Built:
    """Convert the float model, without BatchNorm, for a batch of 1.

    Raises:
        ExportFailed: a converter refused it.
        MissingDependency: the converters are not installed.
    """
    try:
        import ai_edge_quantizer  # noqa: F401
        import litert_torch
    except ImportError as error:
        raise _missing("LiteRT's converters are", error) from None
    size = order.model.spec.image_size
    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):  # they draw progress bars
            edge = litert_torch.convert(without_batchnorm(order.model).cpu(), (torch.zeros(1, 3, size, size),))
            content = edge.model_content()
            if order.precision == "fp16":
                content = _halved(content)
            elif order.calibration is not None:
                content = _quantised(content, order.calibration)
    except Exception as error:  # those of the packages involved have no base class in common
        raise ExportFailed(f"LiteRT could not convert the model: {_first_line(error)}") from error
    (folder / ARTIFACT).write_bytes(content)
    return Built(file=ARTIFACT, format="tflite", options={"batch": 1})


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


def load(path: Path | str, *, threads: int | None = None) -> LiteRt:
    """An engine that runs the model at ``path``.

    Args:
        threads: CPU threads of one call; all cores if None.

    Raises:
        MissingDependency: LiteRT is not installed.
        IntegrityError: the file is not a classifier that LiteRT can load.
    """
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError as error:
        raise _missing("LiteRT is", error) from None
    if threads is not None and threads < 1:
        raise UsageError(f"an engine runs on 1 thread or more, not on {threads}")
    threads = threads or os.cpu_count() or 1
    try:
        interpreter = Interpreter(str(path), num_threads=threads)
        interpreter.allocate_tensors()
    except (ValueError, RuntimeError) as error:
        raise IntegrityError(f"LiteRT cannot load '{path}': {_first_line(error)}") from None
    return LiteRt(interpreter, Path(path), threads)


class LiteRt:
    """A loaded model behind the engines' interface."""

    def __init__(self, interpreter: Any, path: Path, threads: int) -> None:
        inputs, outputs = interpreter.get_input_details(), interpreter.get_output_details()
        takes = [int(size) for size in inputs[0]["shape"]] if len(inputs) == len(outputs) == 1 else []
        if len(takes) != 4 or takes[0] != 1 or {inputs[0]["dtype"], outputs[0]["dtype"]} != {np.float32}:
            raise IntegrityError(f"'{path}' is not a classifier with one float32 image in and logits out")
        self.interpreter, self.threads = interpreter, threads
        self.input, self.output = inputs[0]["index"], outputs[0]["index"]
        _, channels, height, width = takes
        self.shape = (channels, height, width)

    def __call__(self, images: Tensor | np.ndarray) -> Tensor:
        """Images [N, C, H, W] to logits [N, classes], always in new memory.

        Raises:
            UsageError: not a batch of float32 images in [0, 1].
        """
        logits = []
        for image in checked(images, self.shape).split(1):
            self.interpreter.set_tensor(self.input, image.numpy())
            self.interpreter.invoke()
            logits.append(self.interpreter.get_tensor(self.output))
        return torch.from_numpy(np.concatenate(logits))

    def differentiable(self, model: Classifier) -> nn.Module | None:
        """None: the file's tensors have lost the model's names, and in int8 the activations are rounded too."""
        return None

    def describe(self) -> dict[str, Any]:
        return {"engine": "litert", "version": version("ai-edge-litert"), "device": "cpu", "threads": self.threads}


def _missing(what: str, error: ImportError) -> MissingDependency:
    return MissingDependency(
        f"{what} not installed, or not for this PyTorch ({_first_line(error)}): "
        "run 'pip install \"robust-zoo[litert]\"'"
    )


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
