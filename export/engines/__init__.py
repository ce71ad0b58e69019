"""The engines that models can be exported to. Each is a module of this folder, imported when it is used."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

from zoo.export.bundle.manifest import Precision
from zoo.system.errors import MissingDependency, UsageError, nearest

if TYPE_CHECKING:
    from zoo.export.onnx.calibration import Method


@dataclass(frozen=True)
class Backend:
    """How an engine is called, what it can do, and where its ``build`` and ``load`` live.

    Attributes:
        package: what is imported for it; ``requires`` is what pip installs.
        from_onnx: whether it is built from the graph in the asked precision; the others start from the float model.
        symmetric: whether its int8 activations must be symmetric around 0.
        tools: further packages that convert to it or run it, whose versions a manifest keeps.
    """

    name: str
    aliases: tuple[str, ...]
    package: str
    requires: str
    precisions: tuple[Precision, ...] = ("fp32", "fp16", "int8")
    from_onnx: bool = True
    symmetric: bool = False
    tools: tuple[str, ...] = ()

    @property
    def calibrators(self) -> tuple[Method, ...]:
        """How its int8 ranges can be chosen, the usual way first."""
        return ("percentile", "minmax", "entropy") if self.from_onnx else ("minmax",)

    def load_module(self) -> ModuleType:
        """The engine's module, with ``build(order, folder)`` and ``load(path, *, threads)``."""
        return import_module(f"zoo.export.engines.{self.name}")


ENGINES = (
    Backend("onnxruntime", ("onnx", "ort"), "onnxruntime", "onnxruntime"),
    Backend("openvino", ("ov",), "openvino", "robust-zoo[openvino]", tools=("openvino",)),
    Backend(
        "executorch",
        ("pte",),
        "executorch",
        "robust-zoo[executorch]",
        from_onnx=False,
        tools=("executorch", "torchao"),
    ),
    Backend(
        "litert",
        ("tflite",),
        "ai_edge_litert",
        "robust-zoo[litert]",
        from_onnx=False,
        tools=("litert-torch", "ai-edge-litert", "ai-edge-quantizer"),
    ),
    Backend("tensorrt", ("trt", "engine"), "tensorrt", "robust-zoo[trt]", symmetric=True, tools=("tensorrt",)),
)

# Names that users of exported models know, and which this release has no engine for.
ELSEWHERE = {"coreml": "Core ML"}


def backend(name: str) -> Backend:
    """The engine called ``name``, or one of its aliases.

    Raises:
        MissingDependency: a known engine that this release cannot export to.
        UsageError: no engine is called so; the message names the nearest.
    """
    known = {alias: engine for engine in ENGINES for alias in (engine.name, *engine.aliases)}
    if name in known:
        return known[name]
    if name in ELSEWHERE:
        raise MissingDependency(
            f"there is no {ELSEWHERE[name]} engine in this release (it has: {', '.join(one.name for one in ENGINES)}): "
            f"export with '--format onnx' and convert the bundle's model.onnx with {ELSEWHERE[name]}'s own tools"
        )
    raise UsageError(f"no engine is called '{name}'{nearest(name, [*known, *ELSEWHERE])} (known: {', '.join(known)})")
