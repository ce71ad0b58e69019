"""ONNX Runtime: the default engine, on any CPU, and on CUDA or through TensorRT where ``onnxruntime-gpu`` is installed.

The authors have run it on CPUs only.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from zoo.export.engines.interface import Built, Order, checked
from zoo.export.onnx.gradients import own_gradients
from zoo.models import Classifier
from zoo.system.errors import IntegrityError, MissingDependency, UsageError

CPU, CUDA, TENSORRT = (f"{name}ExecutionProvider" for name in ("CPU", "CUDA", "Tensorrt"))
PROVIDERS = {"cpu": (CPU,), "cuda": (CUDA, CPU), "tensorrt": (TENSORRT, CUDA, CPU)}  # each for what the first lacks
LOADING = ("provider",)
SETTINGS = {CUDA: {"use_tf32": "0"}}  # TF32 keeps 10 bits of the mantissa: not an fp32 engine


@dataclass(frozen=True, kw_only=True)
class Options:
    """Which of ONNX Runtime's execution providers computes; None: CUDA where it is there, else the CPU."""

    provider: Literal["cpu", "cuda", "tensorrt"] | None = None


def build(order: Order, folder: Path, *, options: Options | None = None) -> Built:
    """Nothing is left to do: the graph is what ONNX Runtime runs."""
    return Built(file=order.graph.name, format="onnx", options=asdict(options) if options else {})


def load(path: Path | str, *, threads: int | None = None, provider: str | None = None) -> OnnxRuntime:
    """An engine that runs the ONNX file at ``path``.

    Args:
        threads: CPU threads of one call; all cores if None.
        provider: see :class:`Options`.

    Raises:
        MissingDependency: ONNX Runtime is not installed, or not with such a provider, or it cannot start it.
        IntegrityError: the file is not a classifier that ONNX Runtime can load.
    """
    try:
        import onnxruntime
    except ImportError:
        raise MissingDependency("ONNX Runtime is not installed: run 'pip install onnxruntime'") from None
    available = onnxruntime.get_available_providers()
    if provider is not None and provider not in PROVIDERS:
        raise UsageError(f"a provider is one of {', '.join(PROVIDERS)}, not '{provider}'")
    if provider is not None and PROVIDERS[provider][0] not in available:
        raise MissingDependency(
            f"this ONNX Runtime has no '{PROVIDERS[provider][0]}' (it has: {', '.join(available)}): "
            f"install onnxruntime-gpu in place of onnxruntime"
        )
    chosen = [name for name in PROVIDERS[provider or "cuda"] if name in available]
    if threads is not None and threads < 1:
        raise UsageError(f"an engine runs on 1 thread or more, not on {threads}")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or 0
    options.use_deterministic_compute = True
    options.log_severity_level = 3  # errors only
    try:
        session = onnxruntime.InferenceSession(
            str(path), options, providers=[(name, SETTINGS.get(name, {})) for name in chosen]
        )
    except Exception as error:  # its exceptions have no base class of their own
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise IntegrityError(f"ONNX Runtime cannot load '{path}': {reason}") from None
    if provider is not None and session.get_providers()[0] != chosen[0]:  # it only warns of that
        raise MissingDependency(f"ONNX Runtime could not start '{chosen[0]}': are the libraries that it needs there?")
    return OnnxRuntime(session, Path(path))


class OnnxRuntime:
    """A loaded session behind the engines' interface."""

    def __init__(self, session: Any, path: Path) -> None:
        self.session, self.path = session, path
        inputs, outputs = session.get_inputs(), session.get_outputs()
        if len(inputs) != 1 or len(outputs) != 1 or len(inputs[0].shape) != 4 or inputs[0].type != "tensor(float)":
            raise IntegrityError(f"'{path}' is not a classifier with one float32 image batch in and logits out")
        self.input, self.output = inputs[0].name, outputs[0].name
        _, channels, height, width = inputs[0].shape
        self.shape = (channels, height, width)

    def __call__(self, images: Tensor | np.ndarray) -> Tensor:
        """Images [N, C, H, W] to logits [N, classes], always in new memory.

        Raises:
            UsageError: not a batch of float32 images in [0, 1].
        """
        x = checked(images, self.shape)
        (logits,) = self.session.run([self.output], {self.input: x.numpy()})
        return torch.from_numpy(np.array(logits, dtype=np.float32))  # np.array copies: attacks may write into it

    def differentiable(self, model: Classifier) -> nn.Module | None:
        return own_gradients(self.path, model)

    def describe(self) -> dict[str, Any]:
        import onnxruntime

        providers = self.session.get_providers()
        return {
            "engine": "onnxruntime",
            "version": onnxruntime.__version__,
            "providers": providers,
            "device": "cpu" if providers[0] == CPU else "cuda",
        }
