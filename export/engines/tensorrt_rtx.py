"""TensorRT for RTX: plans for NVIDIA GPUs of several compute capabilities, built on any machine.

A plan runs on one of these GPUs, with the release of TensorRT for RTX that built it. Where none is at hand, what can be
checked of it is that NVIDIA's parser took the graph, and that the graph is right.
"""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zoo.export.bundle.manifest import Manifest, Precision
from zoo.export.engines import backend, onnxruntime
from zoo.export.engines.built_for import misfits, phrase
from zoo.export.engines.interface import Built, Engine, Order, check_threads
from zoo.export.engines.tensorrt_builder import Draft, drafted, profile_of
from zoo.export.engines.tensorrt_device import here, load_plan, no_gpu
from zoo.system.errors import UsageError, WrongDevice

BACKEND = backend("tensorrt-rtx")
ARTIFACT = "model.plan"
TURING = "7.5"


def runtime() -> Any:
    """The module ``tensorrt_rtx``.

    Raises:
        MissingDependency: it is not installed.
    """
    return BACKEND.imported("tensorrt_rtx")


def served() -> dict[str, Any]:
    """The compute capabilities that the installed library builds for, as its own values."""
    members = runtime().ComputeCapability.__members__
    return {f"{name[2:-1]}.{name[-1]}": one for name, one in members.items() if name.startswith("SM")}


@dataclass(frozen=True, kw_only=True)
class Options:
    """How a plan is built.

    Attributes:
        compute_capability: of the GPUs that the plan is for, as "8.6,8.9" or a sequence; all that the library serves if
            there are none.

    Raises:
        UsageError: the library does not build for one of them.
    """

    compute_capability: str | Sequence[str] = ()

    def __post_init__(self) -> None:
        asked, known = self.compute_capability, served()
        parts = [part.strip() for part in (asked.split(",") if isinstance(asked, str) else asked)]
        for part in parts:
            if part not in known:
                raise UsageError(f"TensorRT for RTX builds for compute capability {', '.join(known)}, not '{part}'")
        object.__setattr__(self, "compute_capability", tuple(one for one in known if one in parts))

    @property
    def device(self) -> str | None:
        return "-".join(f"sm{one.replace('.', '')}" for one in self.compute_capability) or None


def needs(precision: Precision, options: Options | None = None) -> dict[str, str]:
    """What a plan needs to run: a GPU of one of these compute capabilities, the same release, the same platform.

    Turing (7.5) has no fp32 matrix product in TensorRT for RTX 1.7, and the last layer of an int8 graph is float: only
    fp16 is built for it. Refused here, because a build that fails changes what the next one in the process makes.

    Raises:
        UsageError: Turing is asked for in another precision.
    """
    usual = [one for one in served() if one != TURING or precision == "fp16"]
    asked = (options and options.compute_capability) or usual
    if TURING in asked and TURING not in usual:
        others = ", ".join(usual)
        raise UsageError(
            f"for compute capability {TURING} TensorRT for RTX builds fp16 only, for {others} {precision} too"
        )
    return {
        "compute_capability": ", ".join(asked),
        "tensorrt_rtx": runtime().__version__,
        "platform": f"{platform.system()} {platform.machine()}",
    }


def obstacle(built_for: Mapping[str, str]) -> str | None:
    """Why a plan that is bound to this cannot run on this machine, as a clause; None where it can."""
    if why := no_gpu():
        return why
    off = misfits(built_for, facts := here(runtime()))
    return f"it is for {phrase(built_for, off)}, and here is {phrase(facts, off)}" if off else None


def build(order: Order, folder: Path, *, options: Options | None = None) -> Built:
    """Build a plan; larger batches than the largest of ``order`` are split when it runs.

    Raises:
        MissingDependency: TensorRT for RTX is not installed.
        UsageError: as of :func:`needs`.
        ExportFailed: its parser or its builder refused the graph.
    """
    trt, built_for = runtime(), needs(order.precision, options)
    draft = drafted(BACKEND, trt, order.graph.read_bytes(), batches=order.batches)
    targets = built_for["compute_capability"].split(", ")
    draft.config.num_compute_capabilities = len(targets)
    for i, target in enumerate(targets):
        draft.config.set_compute_capability(served()[target], i)
    (folder / ARTIFACT).write_bytes(draft.plan())
    return Built(
        file=ARTIFACT,
        built_for=built_for,
        options={"profile": list(profile_of(order.batches)), "layers": layers_of(draft)},
    )


def layers_of(draft: Draft) -> dict[str, int]:
    """How many layers of which kind and precision the parser made of the graph, such as ``{"CONVOLUTION FLOAT": 12}``.

    The builder joins them afterwards, and what it made of them is only shown on a GPU.
    """
    layers = [draft.network.get_layer(i) for i in range(draft.network.num_layers)]
    return dict(Counter(f"{layer.type.name} {layer.get_output(0).dtype.name}" for layer in layers).most_common())


def in_place(graph: Path, why: str) -> Engine:
    """The graph that a plan was built from, run by ONNX Runtime on the CPU in place of the plan, with the plan's facts.

    Args:
        why: the plan cannot run here.
    """
    engine = onnxruntime.load(graph, provider="cpu")
    version = runtime().__version__
    engine.facts = {"engine": BACKEND.name, "version": version, "device": "cuda", "not_run": why, "graph": engine.facts}
    return engine


def load(path: Path | str, *, threads: int | None = None) -> Engine:
    """An engine that runs the plan at ``path``, with what the manifest beside it says of where it runs.

    Args:
        threads: nothing here is computed on the CPU, so any number will do.

    Raises:
        MissingDependency: TensorRT for RTX is not installed, or does not work with the driver.
        WrongDevice: there is no GPU, or the plan is for other ones, or of another release.
        IntegrityError: the file is not a classifier that TensorRT for RTX can load.
    """
    check_threads(threads)
    trt, path = runtime(), Path(path)
    if why := no_gpu():
        raise WrongDevice(f"'{path}' cannot run here: {why}")
    return load_plan(BACKEND, trt, path, _remedy)


def _remedy(manifest: Manifest | None) -> str:
    release = manifest.artifact.built_for.get("tensorrt_rtx") if manifest else None
    pinned = f", or install {BACKEND.tools[0]}=={release}" if release else ""
    return f"export the model again with '--format {BACKEND.name}', which works on any machine{pinned}"
