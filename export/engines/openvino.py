"""OpenVINO on the CPU: an IR of two files, built from the ONNX graph.

"fp16" halves the weights' file; the arithmetic is fp32, as few CPUs have any other.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from zoo.export.engines.interface import Built, Order, checked
from zoo.export.onnx.gradients import own_gradients
from zoo.export.onnx.graph import GRAPH
from zoo.models import Classifier
from zoo.system.errors import ExportFailed, IntegrityError, MissingDependency, UsageError

ARTIFACT, WEIGHTS = "model.xml", "model.bin"
PROPERTIES = {
    "PERFORMANCE_HINT": "LATENCY",
    # Left alone it would compute in bf16 where the processor can: not what was asked for. Quantised layers stay int8.
    "INFERENCE_PRECISION_HINT": "f32",
}


def _package() -> Any:
    try:
        import openvino
    except ImportError:
        raise MissingDependency("OpenVINO is not installed: run 'pip install \"robust-zoo[openvino]\"'") from None
    return openvino


def build(order: Order, folder: Path) -> Built:
    """Convert the graph into OpenVINO's IR, weights apart.

    Raises:
        ExportFailed: OpenVINO could not convert it.
        MissingDependency: it is not installed.
    """
    openvino = _package()
    try:
        openvino.save_model(
            openvino.convert_model(str(order.graph)), folder / ARTIFACT, compress_to_fp16=order.precision == "fp16"
        )
    except RuntimeError as error:
        raise ExportFailed(f"OpenVINO could not convert the model: {str(error).strip().splitlines()[0]}") from error
    return Built(file=ARTIFACT, format="openvino-ir", companions=(WEIGHTS,))


def load(path: Path | str, *, threads: int | None = None) -> OpenVino:
    """An engine that runs the IR at ``path`` on the CPU.

    Args:
        threads: CPU threads of one call; all cores if None.

    Raises:
        MissingDependency: OpenVINO is not installed.
        IntegrityError: the file is not a classifier that OpenVINO can load.
    """
    openvino = _package()
    if threads is not None and threads < 1:
        raise UsageError(f"an engine runs on 1 thread or more, not on {threads}")
    core = openvino.Core()
    properties = PROPERTIES | ({"INFERENCE_NUM_THREADS": threads} if threads else {})
    try:
        compiled = core.compile_model(core.read_model(str(path)), "CPU", properties)
    except RuntimeError as error:
        raise IntegrityError(f"OpenVINO cannot load '{path}': {str(error).strip().splitlines()[-1]}") from None
    return OpenVino(compiled, Path(path))


class OpenVino:
    """A compiled model behind the engines' interface."""

    def __init__(self, compiled: Any, path: Path) -> None:
        if len(compiled.inputs) != 1 or len(compiled.outputs) != 1 or len(compiled.inputs[0].partial_shape) != 4:
            raise IntegrityError(f"'{path}' is not a classifier with one image batch in and logits out")
        self.compiled, self.request, self.path = compiled, compiled.create_infer_request(), path
        _, channels, height, width = compiled.inputs[0].partial_shape
        self.shape = (channels.get_length(), height.get_length(), width.get_length())

    def __call__(self, images: Tensor | np.ndarray) -> Tensor:
        """Images [N, C, H, W] to logits [N, classes], always in new memory.

        Raises:
            UsageError: not a batch of float32 images in [0, 1].
        """
        self.request.infer([checked(images, self.shape).numpy()], share_inputs=True)
        return torch.from_numpy(np.array(self.request.get_output_tensor().data, dtype=np.float32))

    def differentiable(self, model: Classifier) -> nn.Module | None:
        return own_gradients(self.path.with_name(GRAPH), model)

    def describe(self) -> dict[str, Any]:
        return {
            "engine": "openvino",
            "version": _package().__version__,
            "device": "cpu",
            "name": self.compiled.get_property("EXECUTION_DEVICES")[0],
            "threads": self.compiled.get_property("INFERENCE_NUM_THREADS"),
        }
