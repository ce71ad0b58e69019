"""The engines that models can be exported to: one row here and one file of the same name beside this one.

The rows are all that ``zoo doctor``, the command line, Triton, the runner for other devices and the tests know of an
engine; nothing heavy is imported to read them. The file holds ``runtime()``, ``build(order, folder)`` and
``load(path, *, threads)``, and is imported when it is used; options: :mod:`zoo.export.engines.options`. If the
artifact needs no more than numpy and the runtime to run, how it does stands in ``zoo/export/runtimes/<name>.py``, for
this machine and for others. An engine that builds for other devices than this one also has ``needs``, ``obstacle``
and ``in_place``, as in ``tensorrt_rtx.py``.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import TYPE_CHECKING, Any

from zoo.system.errors import MissingDependency, UsageError, first_line, nearest

if TYPE_CHECKING:
    from zoo.export.bundle.manifest import Precision
    from zoo.export.onnx.calibration import Method


@dataclass(frozen=True, kw_only=True)
class Backend:
    """What is known of an engine before it is imported.

    Attributes:
        title: its name for people.
        package: what is imported to run it, and ``converters``, what is imported besides to build it.
        requires: what pip installs for all of that.
        tools: pip packages that take part, whose versions a manifest keeps.
        file_format: of the artifact, as "onnx".
        from_onnx: whether it is built from the graph in the asked precision; the others start from the float model.
        symmetric: whether its int8 activations must be symmetric around 0.
        inputs_only: whether its int8 graphs round the inputs of convolutions alone. It pays where an engine computes in
            float, within a convolution, what follows it.
        travels: whether it has a file in ``zoo/export/runtimes``, so that it runs on other devices too.
        ahead: whether it is built on machines that cannot run it.
        triton: the backend of Triton Inference Server that serves it, if there is one.
        places: what the imported package can compute on.
    """

    name: str
    aliases: tuple[str, ...]
    title: str
    package: str
    requires: str
    file_format: str
    converters: tuple[str, ...] = ()
    tools: tuple[str, ...] = ()
    precisions: tuple[Precision, ...] = ("fp32", "fp16", "int8")
    from_onnx: bool = True
    symmetric: bool = False
    inputs_only: bool = False
    travels: bool = False
    ahead: bool = False
    triton: str | None = None
    places: Callable[[Any], Sequence[str]] = lambda package: ()

    @property
    def calibrators(self) -> tuple[Method, ...]:
        """How its int8 ranges can be chosen, the usual way first."""
        return ("percentile", "minmax", "entropy") if self.from_onnx else ("minmax",)

    def lowered(self, precision: Precision) -> Precision:
        """The precision of the graph that an artifact of ``precision`` is built from."""
        return precision if self.from_onnx else "fp32"

    @property
    def example(self) -> str:
        """The program in ``examples/`` that runs its artifact without this package."""
        return f"classify_{self.module}.py"

    @property
    def module(self) -> str:
        """What its files are called."""
        return self.name.replace("-", "_")

    def require(self, *, build: bool = False) -> None:
        """Do nothing if its packages are installed, to ``build`` it too; they are looked for, not imported.

        Raises:
            MissingDependency: one is not; the message says what to install.
        """
        for package in (self.package, *(self.converters if build else ())):
            if sys.modules.get(package) is None and find_spec(package) is None:
                raise self.missing(f"is not installed (there is no package '{package}')")

    def imported(self, module: str) -> Any:
        """The module, which this engine needs.

        Raises:
            MissingDependency: it is not installed, or does not load.
        """
        try:
            return import_module(module)
        except (ImportError, OSError) as error:  # some find their libraries when they are imported
            raise self.missing(f"is not installed, or does not load here ({first_line(error)})") from None

    def missing(self, trouble: str) -> MissingDependency:
        """The error that says what to install against this trouble."""
        from zoo.system.toolchain import ONNXRUNTIME, clash

        if self.package == ONNXRUNTIME and (remedy := clash()):
            return MissingDependency(f"{self.title} {trouble}: {remedy}")
        return MissingDependency(f"{self.title} {trouble}: run 'pip install \"{self.requires}\"'")

    def obstacle(self, built_for: Mapping[str, str]) -> str | None:
        """Why an artifact that is bound to this cannot run on this machine, as a clause; None where it can, or where
        that shows when it is loaded."""
        return self.load_module().obstacle(built_for) if self.ahead else None

    def load_module(self) -> ModuleType:
        """The engine's file."""
        return import_module(f"zoo.export.engines.{self.module}")


def _providers(onnxruntime: Any) -> list[str]:
    """Those that can start here: some need one of NVIDIA's GPUs."""
    runtime = import_module("zoo.export.runtimes.onnxruntime")
    hidden = () if runtime.gpus() else (runtime.CUDA, runtime.TENSORRT, runtime.RTX)
    return [name for name in onnxruntime.get_available_providers() if name not in hidden]


ENGINES = (
    Backend(
        name="onnxruntime",
        aliases=("onnx", "ort"),
        title="ONNX Runtime",
        package="onnxruntime",
        requires="robust-zoo",
        file_format="onnx",
        tools=("onnxruntime-gpu",),
        travels=True,
        triton="onnxruntime",
        places=_providers,
    ),
    Backend(
        name="openvino",
        aliases=("ov",),
        title="OpenVINO",
        package="openvino",
        requires="robust-zoo[openvino]",
        file_format="openvino-ir",
        tools=("openvino",),
        inputs_only=True,
        travels=True,
        triton="openvino",
        places=lambda openvino: openvino.Core().available_devices,
    ),
    Backend(
        name="executorch",
        aliases=("pte",),
        title="ExecuTorch",
        package="executorch",
        requires="robust-zoo[executorch]",
        converters=("torchao",),
        file_format="executorch",
        tools=("executorch", "torchao"),
        from_onnx=False,
    ),
    Backend(
        name="litert",
        aliases=("tflite",),
        title="LiteRT",
        package="ai_edge_litert",
        requires="robust-zoo[litert]",
        converters=("litert_torch", "ai_edge_quantizer"),
        file_format="tflite",
        tools=("litert-torch", "ai-edge-litert", "ai-edge-quantizer"),
        from_onnx=False,
        travels=True,
    ),
    Backend(
        name="tensorrt",
        aliases=("engine",),
        title="TensorRT",
        package="tensorrt",
        requires="robust-zoo[tensorrt]",
        file_format="tensorrt-plan",
        tools=("tensorrt",),
        symmetric=True,
        triton="tensorrt",
    ),
    Backend(
        name="tensorrt-rtx",
        aliases=("rtx",),
        title="TensorRT for RTX",
        package="tensorrt_rtx",
        requires="robust-zoo[trt]",
        file_format="tensorrt-rtx-plan",
        tools=("tensorrt-rtx-cu13",),
        symmetric=True,
        travels=True,
        ahead=True,
        places=lambda rtx: [f"builds for {', '.join(n for n in rtx.ComputeCapability.__members__ if n[:2] == 'SM')}"],
    ),
)

EITHER = "trt"  # TensorRT where it can build, else TensorRT for RTX

# Names that users of exported models know, and which this release has no engine for.
ELSEWHERE = {"coreml": "Core ML"}


def names() -> tuple[str, ...]:
    """What every engine is called, and each of its aliases."""
    return (*_table(), EITHER)


def choice(name: str) -> str | None:
    """Which engine ``name`` means on this machine and why, in one sentence; None if it means the same everywhere."""
    if name != EITHER:
        return None
    return f"{EITHER} is {backend(name).name} here, because {_why_rtx() or 'there is an NVIDIA GPU and its package'}"


def _table() -> dict[str, Backend]:
    return {alias: engine for engine in ENGINES for alias in (engine.name, *engine.aliases)}


def _why_rtx() -> str | None:
    """Why "trt" is not TensorRT itself on this machine; None if its package and a GPU are there."""
    if sys.modules.get("tensorrt") is None and find_spec("tensorrt") is None:
        return "the package 'tensorrt' is not installed"
    import torch  # asked last: the table is read without PyTorch

    return None if torch.cuda.is_available() else "there is no NVIDIA GPU"


def backend(name: str) -> Backend:
    """The engine called ``name``, or one of its aliases; what "trt" is, see :func:`choice`.

    Raises:
        MissingDependency: a known engine that this release cannot export to.
        UsageError: no engine is called so; the message names the nearest.
    """
    known = _table()
    if name == EITHER:
        name = "tensorrt-rtx" if _why_rtx() else "tensorrt"
    if name in known:
        return known[name]
    if name in ELSEWHERE:
        raise MissingDependency(
            f"there is no {ELSEWHERE[name]} engine in this release (it has: {', '.join(one.name for one in ENGINES)}): "
            f"export with '--format onnx' and convert the bundle's model.onnx with {ELSEWHERE[name]}'s own tools"
        )
    raise UsageError(
        f"no engine is called '{name}'{nearest(name, [*names(), *ELSEWHERE])} (known: {', '.join(names())})"
    )
