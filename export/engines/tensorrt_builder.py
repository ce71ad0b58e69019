"""From an ONNX graph to a plan, with the calls that TensorRT 10.x, 11.x and TensorRT for RTX share.

The network is strongly typed, the only kind that 11 knows: fp16 weights, casts and Q/DQ nodes in the graph say what is
computed in which precision, and no flag of the builder does.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from zoo.export.engines import Backend, backend
from zoo.export.engines.tensorrt_device import here, log_of, opened, runtime
from zoo.export.runtimes.tensorrt_rtx import reason
from zoo.system.cache import cache_root
from zoo.system.errors import ExportFailed
from zoo.system.files import write_atomic


@dataclass(frozen=True, kw_only=True)
class Options:
    """How a plan is built.

    Attributes:
        tf32: let fp32 layers round to 10 bits of mantissa.
        version_compatible: a plan for this and later versions; it carries code for the CPU, and may be slower.
        hardware: a plan for this GPU alone, for all of the same compute capability, or for Ampere and what came after;
            the wider, the slower.
        host_code: let a version-compatible plan run the code that it carries when it is loaded, with your rights.
    """

    tf32: bool = False
    version_compatible: bool = False
    hardware: Literal["none", "same_compute_capability", "ampere_plus"] = "none"
    host_code: bool = False

    @property
    def device(self) -> str | None:
        return None if self.hardware == "none" else self.hardware.replace("_", "-")


DEFAULTS = Options()


@dataclass(frozen=True)
class Draft:
    """A graph that the parser took, and how it is to be built."""

    engine: Backend
    trt: Any
    builder: Any
    network: Any
    config: Any

    def plan(self) -> bytes:
        """Build it; ExportFailed where the builder refuses."""
        log = log_of(self.trt)
        log.errors.clear()
        plan = self.builder.build_serialized_network(self.network, self.config)
        if plan is None:
            raise ExportFailed(f"{self.engine.title} could not build an engine: {reason(log)}")
        return bytes(plan)


def profile_of(batches: Sequence[int]) -> tuple[int, int, int]:
    """The least, the usual and the largest batch of an engine for ``batches``: the usual one is their median."""
    sizes = sorted(batches)
    return 1, sizes[len(sizes) // 2], max(2, *sizes)  # parity is checked at 2


def drafted(engine: Backend, trt: Any, graph: bytes, *, batches: Sequence[int], tf32: bool = False) -> Draft:
    """A serialised ONNX classifier with a dynamic batch, parsed by ``trt``, the module of ``engine``.

    Raises:
        MissingDependency: TensorRT does not work with the driver.
        ExportFailed: it refused the graph or the batch sizes.
    """
    log = log_of(trt)
    builder = opened(trt.Builder, trt)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    if not parser.parse(graph):
        raise ExportFailed(f"{engine.title} cannot read the model: {_refusal(parser, log)}")
    config = builder.create_builder_config()
    (config.set_flag if tf32 else config.clear_flag)(trt.BuilderFlag.TF32)
    images = network.get_input(0)
    profile = builder.create_optimization_profile()
    try:
        profile.set_shape(images.name, *((size, *tuple(images.shape)[1:]) for size in profile_of(batches)))
    except ValueError as error:
        raise ExportFailed(f"{engine.title} refused the batch sizes {list(batches)}: {error}") from error
    if config.add_optimization_profile(profile) < 0:
        raise ExportFailed(f"{engine.title} refused the batch sizes {list(batches)}: {reason(log)}")
    return Draft(engine, trt, builder, network, config)


def build_plan(graph: bytes, *, batches: Sequence[int], options: Options = DEFAULTS) -> bytes:
    """A TensorRT plan for the GPU in use, from a serialised ONNX classifier with a dynamic batch.

    Raises:
        MissingDependency: TensorRT cannot be used here.
        ExportFailed: TensorRT refused the graph, or the timing cache cannot be written.
    """
    trt = runtime()
    draft = drafted(backend("tensorrt"), trt, graph, batches=batches, tf32=options.tf32)
    if options.version_compatible:
        draft.config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    draft.config.hardware_compatibility_level = getattr(trt.HardwareCompatibilityLevel, options.hardware.upper())
    with _timings(draft.config, timing_cache(here(trt))):
        return draft.plan()


def timing_cache(facts: Mapping[str, str]) -> Path:
    """Where the timings of kernels are kept: a file for each GPU and version, as they mean nothing to another."""
    name = "-".join(facts[key] for key in ("gpu", "compute_capability", "tensorrt"))
    return cache_root() / "tensorrt" / (re.sub(r"[^\w.]+", "-", name) + ".timings")


@contextmanager
def _timings(config: Any, path: Path) -> Iterator[None]:
    """Build with the timings in ``path``, and keep there what was timed; of builds at the same time the last one does.

    A file that TensorRT does not take is started afresh: nothing but time is lost.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = path.read_bytes() if path.exists() else b""
        timings = config.create_timing_cache(kept)
        if timings is None or not config.set_timing_cache(timings, ignore_mismatch=False):
            timings = config.create_timing_cache(b"")
            config.set_timing_cache(timings, ignore_mismatch=False)
        yield
        write_atomic(path, bytes(timings.serialize()))
    except OSError as error:
        raise ExportFailed(
            f"TensorRT's timings cannot be kept in '{path}' ({error.strerror}): set ZOO_CACHE to a folder that can"
        ) from None


def _refusal(parser: Any, log: Any) -> str:
    """The parser's first error, with the operator that it names."""
    if not parser.num_errors:
        return reason(log)
    error = parser.get_error(0)
    about = f"operator '{error.node_operator()}' (node '{error.node_name()}'): " if error.node_operator() else ""
    return about + " ".join(error.desc().split())
