"""ONNX Runtime: the default engine, on any CPU, and on NVIDIA's GPUs where ``onnxruntime-gpu`` is installed.

The authors have run it on CPUs only.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field

from zoo.export.engines import backend
from zoo.export.engines.interface import Built, Engine, Order, refusal, run_locally
from zoo.export.engines.options import options_of
from zoo.export.runtimes import onnxruntime as running
from zoo.system.errors import UsageError

BACKEND = backend("onnxruntime")
LOADING = ("provider", "threads", "graph_optimization", "config", "provider_options")
PATIENT = {"patient": True}  # for load
CALLERS = 2  # of a patient session at once

# ONNX Runtime takes any key and ignores those that it does not know: these it knows, and each is "0" or "1".
Entry = Literal[
    "session.disable_quant_qdq",
    "session.enable_quant_qdq_cleanup",
    "session.disable_double_qdq_remover",
    "session.disable_qdq_constant_folding",
    "session.qdqisint8allowed",
    "session.x64quantprecision",
    "session.set_denormal_as_zero",
    "session.disable_prepacking",
    "session.intra_op.allow_spinning",
    "session.inter_op.allow_spinning",
    "session.force_spinning_stop",
    "session.disable_cpu_ep_fallback",
    "optimization.enable_gelu_approximation",
    "optimization.enable_cast_chain_elimination",
    "mlas.enable_gemm_fastmath_arm64_bfloat16",
]


@dataclass(frozen=True, kw_only=True)
class Options:
    """How a session is made. What is None is as in ONNX Runtime, but for the provider, which is the CPU.

    Attributes:
        provider: what computes. It must take the whole graph, unless ``config`` has
            ``session.disable_cpu_ep_fallback=0``.
        threads: CPU threads of one call; all cores if None.
        graph_optimization: how far the graph is rewritten first; "all" if None.
        config: entries of the session's configuration, ``config.KEY=VALUE`` on the command line.
        provider_options: of the provider, ``provider_options.KEY=VALUE`` on the command line.

    Raises:
        UsageError: there are options of a provider that has none.
    """

    provider: Literal["cpu", "cuda", "tensorrt", "tensorrt-rtx"] | None = None
    threads: Annotated[int, Field(ge=1, le=1024)] | None = None
    graph_optimization: Literal["disabled", "basic", "extended", "all"] | None = None
    config: dict[Entry, Literal["0", "1"]] | None = None
    provider_options: dict[str, str] | None = None

    def __post_init__(self) -> None:
        if self.provider_options and self.provider in (None, "cpu"):
            raise UsageError("the CPU takes no provider_options: name a provider that does, as provider=cuda")

    @property
    def device(self) -> str | None:
        return None if self.provider == "cpu" else self.provider

    @property
    def symmetric(self) -> bool:
        """Whether int8 activations must be symmetric around 0."""
        return self.provider in ("tensorrt", "tensorrt-rtx")


def runtime() -> Any:
    """The module ``onnxruntime``.

    Raises:
        MissingDependency: it is not installed.
    """
    return BACKEND.imported("onnxruntime")


def check(options: Options) -> None:
    """Refuse what cannot run here.

    Raises:
        MissingDependency, WrongDevice: the provider is not installed, or has no GPU here.
    """
    try:
        running.check(options.provider or "cpu")
    except running.Refused as error:
        raise refusal(error) or error from None


def build(order: Order, folder: Path, *, options: Options | None = None) -> Built:
    """Nothing is left to do: the graph is what ONNX Runtime runs."""
    given = {key: value for key, value in asdict(options).items() if value is not None} if options else {}
    return Built(file=order.graph.name, options=given)


def load(path: Path | str, *, threads: int | None = None, patient: bool = False, **options: Any) -> Engine:
    """An engine that runs the ONNX file at ``path``.

    Args:
        threads: CPU threads of one call; all cores if None.
        patient: its threads sleep while they wait, unless ``config`` says otherwise. On a CPU two callers share them if
            ``threads`` is None: a call takes longer, two at once take less. The answers are the same.
        options: the others of :class:`Options`.

    Raises:
        MissingDependency: ONNX Runtime is not installed, or not with such a provider, or cannot run the graph on it.
        WrongDevice: the provider finds no GPU here.
        IntegrityError: the file is not a classifier that ONNX Runtime can load.
        UsageError: there is no such option or value, or fewer than 1 thread.
    """
    chosen = asdict(options_of(BACKEND, options) or Options())
    del chosen["threads"]
    callers = CALLERS if patient and threads is None and chosen["provider"] in (None, "cpu") else 1
    if callers > 1:  # each caller's thread computes too
        threads = max(torch.get_num_threads() - callers + 1, 1)
    return run_locally(BACKEND, [Path(path)], threads, Path(path), callers=callers, patient=patient, **chosen)
