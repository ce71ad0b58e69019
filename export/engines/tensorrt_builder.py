"""From an ONNX graph to a TensorRT plan, with the calls that 10.x and 11.x share.

The network is strongly typed, the only kind that 11 knows: fp16 weights, casts and Q/DQ nodes in the graph say what is
computed in which precision, and no flag of the builder does.

The sequence follows NVIDIA's documentation, and every name in it was checked against the bindings of 10.13, 10.16 and
11.4. The authors have not run it on a GPU yet.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from zoo.export.engines.tensorrt_device import here, log_of, opened, reason, runtime
from zoo.system.errors import ExportFailed
from zoo.system.files import cache_root, write_atomic


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


DEFAULTS = Options()


def profile_of(batches: Sequence[int]) -> tuple[int, int, int]:
    """The least, the usual and the largest batch of an engine for ``batches``: the usual one is their median."""
    sizes = sorted(batches)
    return 1, sizes[len(sizes) // 2], max(2, *sizes)  # parity is checked at 2


def build_plan(graph: bytes, *, batches: Sequence[int], options: Options = DEFAULTS) -> bytes:
    """A plan for the GPU in use, from a serialised ONNX classifier with a dynamic batch.

    Raises:
        MissingDependency: TensorRT cannot be used here.
        ExportFailed: TensorRT refused the graph, or the timing cache cannot be written.
    """
    trt = runtime()
    log = log_of(trt)
    builder = opened(trt.Builder, log)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    if not parser.parse(graph):
        raise ExportFailed(f"TensorRT cannot read the model: {_refusal(parser, log)}")
    config = builder.create_builder_config()
    (config.set_flag if options.tf32 else config.clear_flag)(trt.BuilderFlag.TF32)
    if options.version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    config.hardware_compatibility_level = getattr(trt.HardwareCompatibilityLevel, options.hardware.upper())
    images = network.get_input(0)
    profile = builder.create_optimization_profile()
    try:
        profile.set_shape(images.name, *((size, *tuple(images.shape)[1:]) for size in profile_of(batches)))
    except ValueError as error:
        raise ExportFailed(f"TensorRT refused the batch sizes {list(batches)}: {error}") from error
    if config.add_optimization_profile(profile) < 0:
        raise ExportFailed(f"TensorRT refused the batch sizes {list(batches)}: {reason(log)}")
    with _timings(config, timing_cache(here(trt))):
        log.errors.clear()
        plan = builder.build_serialized_network(network, config)
        if plan is None:
            raise ExportFailed(f"TensorRT could not build an engine: {reason(log)}")
        return bytes(plan)


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
