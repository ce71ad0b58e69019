"""OpenVINO on the CPU: an IR of two files, built from the ONNX graph.

"fp16" halves the weights' file; the arithmetic is fp32, as few CPUs have any other.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from zoo.export.engines import backend
from zoo.export.engines.interface import Built, Engine, Order, run_locally
from zoo.export.onnx.graph import GRAPH
from zoo.system.errors import ExportFailed, first_line

BACKEND = backend("openvino")
ARTIFACT, WEIGHTS = "model.xml", "model.bin"


def runtime() -> Any:
    """The module ``openvino``.

    Raises:
        MissingDependency: it is not installed.
    """
    return BACKEND.imported("openvino")


def build(order: Order, folder: Path) -> Built:
    """Convert the graph into OpenVINO's IR, weights apart.

    Raises:
        ExportFailed: OpenVINO could not convert it.
        MissingDependency: it is not installed.
    """
    openvino = runtime()
    try:
        openvino.save_model(
            openvino.convert_model(str(order.graph)), folder / ARTIFACT, compress_to_fp16=order.precision == "fp16"
        )
    except RuntimeError as error:
        raise ExportFailed(f"OpenVINO could not convert the model: {first_line(error)}") from error
    return Built(file=ARTIFACT, companions=(WEIGHTS,))


def load(path: Path | str, *, threads: int | None = None) -> Engine:
    """An engine that runs the IR at ``path``, with its weights beside it, on the CPU.

    Args:
        threads: CPU threads of one call; all cores if None.

    Raises:
        MissingDependency: OpenVINO is not installed.
        IntegrityError: the file is not a classifier that OpenVINO can load.
        UsageError: fewer than 1 thread.
    """
    path = Path(path)
    return run_locally(BACKEND, [path, path.with_suffix(".bin")], threads, path.with_name(GRAPH))
