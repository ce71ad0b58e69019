"""TensorRT as it is installed here, and what ties a plan to a place: the GPU, the version, the platform.

Where CUDA does not work, TensorRT's objects are empty shells, and using or freeing one kills the process (seen with the
runtimes of 10.16 and 11.4). So nothing of it is called before PyTorch has found a GPU.
"""

from __future__ import annotations

import ctypes
import platform
import re
from collections.abc import Callable, Collection, Mapping
from functools import cache
from typing import Any

import torch

from zoo.export.engines import backend
from zoo.system.errors import MissingDependency

MAJORS = (10, 11)
LABELS = {"gpu": "GPU", "compute_capability": "compute capability", "tensorrt": "TensorRT"}


def runtime() -> Any:
    """The module ``tensorrt``, where it can be used.

    Raises:
        MissingDependency: it is not installed, of another version, or there is no GPU.
    """
    engine = backend("tensorrt")
    tensorrt = engine.imported("tensorrt")
    if int(tensorrt.__version__.partition(".")[0]) not in MAJORS:
        wanted = " or ".join(map(str, MAJORS))
        raise engine.missing(f"{tensorrt.__version__} is installed, and {wanted} is needed")
    if not torch.cuda.is_available():
        found = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
        raise MissingDependency(
            f"TensorRT needs an NVIDIA GPU, and PyTorch ({found}) finds none: go to a machine with one, "
            "or export with '--format onnx'"
        )
    return tensorrt


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


def opened(kind: Callable[[Any], Any], log: Any) -> Any:
    """A builder or a runtime.

    Raises:
        MissingDependency: TensorRT does not work with the driver.
    """
    log.errors.clear()
    made = kind(log)
    if log.errors:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(made))  # never freed: it is one of the empty shells
        raise MissingDependency(
            f"TensorRT does not work with this GPU's driver ({reason(log)}): update the driver, or install a TensorRT "
            "for the CUDA version of this one"
        )
    return made


def device() -> torch.device:
    """The GPU in use: PyTorch's current one."""
    return torch.device("cuda", torch.cuda.current_device())


def here(trt: Any) -> dict[str, str]:
    """What a plan built now would be tied to."""
    major, minor = torch.cuda.get_device_capability()
    return {
        "gpu": torch.cuda.get_device_name(),
        "compute_capability": f"{major}.{minor}",
        "tensorrt": trt.__version__,
        "platform": f"{platform.system()} {platform.machine()}",
    }


def misfits(built_for: Mapping[str, str], facts: Mapping[str, str]) -> list[str]:
    """The keys of ``built_for`` that ``facts`` do not meet, by the same text, or behind ">=" by no lower version."""
    return [key for key, wanted in built_for.items() if not _meets(facts.get(key, ""), wanted)]


def phrase(facts: Mapping[str, str], keys: Collection[str]) -> str:
    """Some of the facts as a phrase."""
    return ", ".join(f"{LABELS.get(key, key)} {facts.get(key, '(unknown)')}" for key in keys)


def _meets(found: str, wanted: str) -> bool:
    return _numbers(found) >= _numbers(wanted) if wanted.startswith(">=") else found == wanted


def _numbers(version: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", version)]
