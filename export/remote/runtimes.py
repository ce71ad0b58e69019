"""The runtimes that artifacts run on: from a file's bytes to a function from images to logits.

They are set as the engines here are, see :mod:`zoo.export.engines`. ExecuTorch is not among them, since its Python
runtime takes torch tensors, nor is TensorRT, whose engine here has its GPU memory from torch.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from typing import Any

Run = Callable[[Any], Any]  # float32 images [N, C, H, W] to logits [N, K], both arrays

PROVIDERS: dict[str, dict[str, str]] = {"CUDAExecutionProvider": {"use_tf32": "0"}, "CPUExecutionProvider": {}}
PROPERTIES = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}


class Trouble(Exception):
    """What the client is told in an ERROR, of kind missing, integrity, device or usage."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


def load(format: str, parts: list[bytes], threads: int) -> tuple[Run, dict[str, Any]]:
    """The artifact of which ``parts`` are the files, and facts of what runs it.

    Raises:
        Trouble: the runtime is missing, or refuses the artifact.
    """
    if format not in RUNTIMES:
        raise Trouble("missing", f"the runner has {', '.join(RUNTIMES)}, not '{format}'")
    loader, name, pip = RUNTIMES[format]
    runtime = package(name, pip)
    version = package(name.partition(".")[0], pip).__version__
    try:
        run, facts = loader(runtime, parts, threads)
    except Exception as error:  # the runtimes' exceptions have no base class of their own
        raise Trouble("device", f"{pip} {version} cannot load the artifact there: {first_line(error)}") from error
    return run, {"runtime": pip, "version": version, "threads": threads, **facts}


def package(name: str, pip: str) -> Any:
    """The module ``name``, or Trouble that says what to install."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        told = f"{name} cannot be imported there ({error}): run '{sys.executable} -m pip install {pip}' on the device"
        raise Trouble("missing", told) from None


def first_line(error: Exception) -> str:
    """Of the message, or the kind of error where there is none."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _onnxruntime(onnxruntime: Any, parts: list[bytes], threads: int) -> tuple[Run, dict[str, Any]]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.use_deterministic_compute = True
    options.log_severity_level = 3  # errors only
    available = onnxruntime.get_available_providers()
    chosen = [(name, settings) for name, settings in PROVIDERS.items() if name in available]
    session = onnxruntime.InferenceSession(parts[0], options, providers=chosen)
    (images,), (logits,) = session.get_inputs(), session.get_outputs()
    taken = session.get_providers()
    facts = {"device": "cuda" if taken[0].startswith("CUDA") else "cpu", "providers": taken}
    return lambda x: session.run([logits.name], {images.name: x})[0], facts


def _openvino(openvino: Any, parts: list[bytes], threads: int) -> tuple[Run, dict[str, Any]]:
    core = openvino.Core()
    properties = {**PROPERTIES, "INFERENCE_NUM_THREADS": threads}
    compiled = core.compile_model(core.read_model(parts[0], parts[1]), "CPU", properties)
    (_,), (logits,) = compiled.inputs, compiled.outputs
    return lambda x: compiled([x])[logits], {"device": "cpu"}


def _litert(litert: Any, parts: list[bytes], threads: int) -> tuple[Run, dict[str, Any]]:
    interpreter = litert.Interpreter(model_content=parts[0], num_threads=threads)
    interpreter.allocate_tensors()
    (images,), (logits,) = interpreter.get_input_details(), interpreter.get_output_details()
    fixed = int(images["shape_signature"][0])  # -1 if any batch will do
    size = int(images["shape"][0])

    def forward(x: Any) -> Any:
        nonlocal size
        if len(x) != size:
            interpreter.resize_tensor_input(images["index"], x.shape)
            interpreter.allocate_tensors()
            size = len(x)
        interpreter.set_tensor(images["index"], x)
        interpreter.invoke()
        return interpreter.get_tensor(logits["index"])

    def in_pieces(x: Any) -> Any:
        """In batches of the one size that the file takes, the last filled up with zeros."""
        np = package("numpy", "numpy")
        filled = np.concatenate([x, np.zeros((-len(x) % fixed, *x.shape[1:]), np.float32)])
        return np.concatenate([forward(piece) for piece in np.split(filled, len(filled) // fixed)])[: len(x)]

    return forward if fixed < 1 else in_pieces, {"device": "cpu"}


# The artifact's format: who loads it, the module, and what pip installs for it.
RUNTIMES = {
    "onnx": (_onnxruntime, "onnxruntime", "onnxruntime"),
    "openvino-ir": (_openvino, "openvino", "openvino"),
    "tflite": (_litert, "ai_edge_litert.interpreter", "ai-edge-litert"),
}
