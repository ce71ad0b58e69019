"""TensorRT for RTX on the NVIDIA GPU in use, and TensorRT, whose bindings have the same names.

PyTorch holds the images and the logits on the GPU. docs/nvidia.md says what of this the authors have run.
"""

from __future__ import annotations

import ctypes
import importlib
import platform
from functools import cache
from pathlib import Path
from typing import Any

PACKAGE, PIP = "tensorrt_rtx", "tensorrt-rtx-cu13"
BESIDES = ("torch",)
# How the errors about plans of another release or for another GPU read.
FOREIGN = (
    "lease rebuild",
    "incompatible device",
    "not compatible with this",
    "incompatible serialization",
    "old deserial",
)


class Foreign(ValueError):
    """The plan is for another GPU or release."""


class Unusable(RuntimeError):
    """There is no GPU, or its driver does not work with TensorRT."""


class Failed(RuntimeError):
    """TensorRT could not run a plan that it has loaded."""


@cache
def log_of(trt: Any) -> Any:
    """The one logger of this process, which must live as long as any object of TensorRT.

    Its ``errors`` holds the errors since it was last cleared.
    """

    class Log(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, msg: str) -> None:
            if severity <= trt.ILogger.Severity.ERROR:
                self.errors.append(msg)

    return Log()


def reason(log: Any) -> str:
    """The first error, on one line: the later ones follow from it."""
    return " ".join(log.errors[0].split()) if log.errors else "it gave no reason"


def here(trt: Any) -> dict[str, str]:
    """The GPU in use and the release of TensorRT, as far as a plan can be tied to them."""
    cuda = _torch().cuda
    major, minor = cuda.get_device_capability()
    return {
        "gpu": cuda.get_device_name(),
        "compute_capability": f"{major}.{minor}",
        trt.__name__: trt.__version__,
        "platform": f"{platform.system()} {platform.machine()}",
    }


def open(parts: Any, threads: Any, package: str = PACKAGE, host_code: bool = False) -> Any:
    """See :mod:`zoo.export.runtimes`; nothing is computed on the CPU, so any number of threads will do.

    Args:
        package: "tensorrt" for a plan of TensorRT.
        host_code: let a version-compatible plan run the code that it carries.
    """
    torch, trt = _torch(), importlib.import_module(package)
    if not torch.cuda.is_available():  # asked of TensorRT, this can end the process
        raise Unusable("PyTorch finds no NVIDIA GPU")
    plan = parts[0] if isinstance(parts[0], bytes) else Path(parts[0]).read_bytes()
    log = log_of(trt)
    loader = started(trt.Runtime, log)
    loader.engine_host_code_allowed = host_code
    engine = loader.deserialize_cuda_engine(plan)
    if engine is None:
        foreign = any(phrase in error for error in log.errors for phrase in FOREIGN)
        raise (Foreign if foreign else ValueError)(reason(log))
    names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
    inputs = [name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
    shapes = {name: tuple(engine.get_tensor_shape(name)) for name in names}
    typed = all(engine.get_tensor_dtype(name) == trt.float32 for name in names)
    if len(names) != 2 or len(inputs) != 1 or len(shapes[inputs[0]]) != 4 or not typed:
        raise ValueError("it is not a classifier with one float32 image batch in and logits out")
    (images,), (logits,) = inputs, set(names) - set(inputs)
    largest, classes = engine.get_tensor_profile_shape(images, 0)[2][0], shapes[logits][-1]  # of (min, opt, max)
    context = engine.create_execution_context()
    if context is None:
        raise Failed(f"the plan could not be prepared to run: {reason(log)}")
    place = torch.device("cuda", torch.cuda.current_device())
    stream = torch.cuda.Stream(place)  # on the default one TensorRT would synchronise the whole device
    held = [loader, engine, context]  # a list lets go of its last entry first, as TensorRT needs

    def run(x: Any) -> Any:
        answers = []
        with torch.cuda.device(place), torch.cuda.stream(stream):
            for part in torch.from_numpy(x).split(largest):
                there, answer = part.to(place), torch.empty((len(part), classes), device=place)
                log.errors.clear()
                ready = (
                    held[-1].set_input_shape(images, tuple(there.shape))
                    and held[-1].set_tensor_address(images, there.data_ptr())
                    and held[-1].set_tensor_address(logits, answer.data_ptr())
                )
                if not ready or not held[-1].execute_async_v3(stream.cuda_stream):
                    raise Failed(f"the plan could not be run on a batch of {len(part)}: {reason(log)}")
                answers.append(answer.cpu())  # which waits for the stream
        return torch.cat(answers).numpy()

    facts = here(trt)
    facts = {"device": "cuda", "name": facts.pop("gpu"), **facts, "cuda": torch.version.cuda, "largest_batch": largest}
    return run, shapes[images][1:], facts


def started(kind: Any, log: Any) -> Any:
    """A builder or a runtime; Unusable if the driver does not suit it."""
    log.errors.clear()
    made = kind(log)
    if log.errors:
        # Never freed: where CUDA does not work it is an empty shell, and freeing it kills the process (seen with 10.16
        # and 11.4).
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(made))
        raise Unusable(f"it does not work with this GPU's driver ({reason(log)})")
    return made


def _torch() -> Any:
    import torch

    return torch
