"""ONNX Runtime: the default engine, on any CPU, and on CUDA or through TensorRT where ``onnxruntime-gpu`` is installed.

The authors have run it on CPUs only.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from zoo.export.engines import backend
from zoo.export.engines.interface import Built, Engine, Order, run_locally
from zoo.export.runtimes.onnxruntime import PROVIDERS
from zoo.system.errors import MissingDependency, UsageError

BACKEND = backend("onnxruntime")
LOADING = ("provider",)


@dataclass(frozen=True, kw_only=True)
class Options:
    """Which of ONNX Runtime's execution providers computes; None: CUDA where it is there, else the CPU."""

    provider: Literal["cpu", "cuda", "tensorrt"] | None = None


def runtime() -> Any:
    """The module ``onnxruntime``.

    Raises:
        MissingDependency: it is not installed.
    """
    return BACKEND.imported("onnxruntime")


def build(order: Order, folder: Path, *, options: Options | None = None) -> Built:
    """Nothing is left to do: the graph is what ONNX Runtime runs."""
    return Built(file=order.graph.name, options=asdict(options) if options else {})


def load(path: Path | str, *, threads: int | None = None, provider: str | None = None) -> Engine:
    """An engine that runs the ONNX file at ``path``.

    Args:
        threads: CPU threads of one call; all cores if None.
        provider: see :class:`Options`.

    Raises:
        MissingDependency: ONNX Runtime is not installed, or not with such a provider, or it cannot start it.
        IntegrityError: the file is not a classifier that ONNX Runtime can load.
        UsageError: there is no such provider, or fewer than 1 thread.
    """
    if provider is None:
        return run_locally(BACKEND, [Path(path)], threads, Path(path))
    if provider not in PROVIDERS:
        raise UsageError(f"a provider is one of {', '.join(PROVIDERS)}, not '{provider}'")
    wanted, available = PROVIDERS[provider][0], runtime().get_available_providers()
    if wanted not in available:
        raise MissingDependency(
            f"this ONNX Runtime has no '{wanted}' (it has: {', '.join(available)}): "
            f"install onnxruntime-gpu in place of onnxruntime"
        )
    engine = run_locally(BACKEND, [Path(path)], threads, Path(path), provider=provider)
    if engine.facts["providers"][0] != wanted:  # it only warns of that
        raise MissingDependency(f"ONNX Runtime could not start '{wanted}': are the libraries that it needs there?")
    return engine
