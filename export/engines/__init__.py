"""The engines that models can be exported to. Each is a module of this folder, imported when it is used."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from types import ModuleType

from zoo.errors import MissingDependency, UsageError, nearest


@dataclass(frozen=True)
class Backend:
    """How an engine is called, and where its ``build`` and ``load`` live."""

    name: str
    aliases: tuple[str, ...]
    module: str
    requires: str  # what pip installs for it

    def load_module(self) -> ModuleType:
        """The engine's module, with ``build(model, folder, *, metadata)`` and ``load(path, ...)``."""
        return import_module(self.module)


ENGINES = (Backend("onnxruntime", ("onnx", "ort"), "zoo.export.engines.onnxruntime", "onnxruntime"),)

# Names that users of exported models know, and which this release has no engine for.
ELSEWHERE = {
    "tensorrt": "TensorRT",
    "trt": "TensorRT",
    "engine": "TensorRT",
    "openvino": "OpenVINO",
    "executorch": "ExecuTorch",
    "coreml": "Core ML",
    "tflite": "LiteRT",
}


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
            f"this release exports to ONNX only, there is no {ELSEWHERE[name]} engine in it: export with "
            f"'--format onnx' and convert the bundle's model.onnx with {ELSEWHERE[name]}'s own tools"
        )
    raise UsageError(f"no engine is called '{name}'{nearest(name, [*known, *ELSEWHERE])} (known: {', '.join(known)})")
