"""ONNX Runtime on one of its execution providers, and never on another than was asked for."""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import io
import os
import re
from typing import Any

PACKAGE, PIP = "onnxruntime", "onnxruntime"
CPU, CUDA, TENSORRT, RTX = (f"{name}ExecutionProvider" for name in ("CPU", "CUDA", "Tensorrt", "NvTensorRTRTX"))
PROVIDERS = {"cpu": CPU, "cuda": CUDA, "tensorrt": TENSORRT, "tensorrt-rtx": RTX}
INSTALL = {
    "cuda": "onnxruntime-gpu[cuda,cudnn]",
    "tensorrt": "onnxruntime-gpu[cuda,cudnn] and tensorrt",
    "tensorrt-rtx": "onnxruntime-ep-nv-tensorrt-rtx-cu13 and onnxruntime-gpu of 1.27 or newer",
}
LEVELS = {
    "disabled": "ORT_DISABLE_ALL",
    "basic": "ORT_ENABLE_BASIC",
    "extended": "ORT_ENABLE_EXTENDED",
    "all": "ORT_ENABLE_ALL",
}
SPINNING = "session.intra_op.allow_spinning"
STRICT = "session.disable_cpu_ep_fallback"
TF32 = "NVIDIA_TF32_OVERRIDE"  # for all of NVIDIA's libraries; the providers of TensorRT have no option of their own


class Refused(Exception):
    """The session cannot be had as it was asked for; ``kind`` is "missing", "device" or "usage"."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


def open(
    parts: Any,
    threads: Any,
    provider: Any = None,
    graph_optimization: Any = None,
    config: Any = None,
    provider_options: Any = None,
    patient: Any = False,
) -> Any:
    """See :mod:`zoo.export.runtimes`. The options are those of :class:`zoo.export.engines.onnxruntime.Options`;
    ``patient`` is that of its ``load``.

    Raises:
        Refused: see :func:`check`; or the provider does not start, or does not take the whole graph.
    """
    import onnxruntime

    provider, level = provider or "cpu", graph_optimization or "all"
    name, entries, given = PROVIDERS.get(provider), dict(config or {}), dict(provider_options or {})
    unloaded = check(provider)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or 0
    options.use_deterministic_compute = True
    options.log_severity_level = 3  # errors only
    if patient and SPINNING not in entries:
        options.add_session_config_entry(SPINNING, "0")
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, LEVELS[level])
    if provider == "cpu":
        session = _session(onnxruntime, parts[0], options, entries, CPU, given)
    else:
        entries = {STRICT: "1", **entries}
        if provider == "cuda":
            given = {"use_tf32": "0", **given}  # TF32 keeps 10 bits of the mantissa: not an fp32 engine
        else:
            os.environ.setdefault(TF32, "0")
        try:
            session = _session(onnxruntime, parts[0], options, entries, name, given)
        except Exception as error:
            raise Refused(
                "missing",
                f"'{name}' does not start here, or does not take the whole graph ({unloaded or _reason(error)}): "
                f"install {INSTALL[provider]}, or let the CPU run the rest with config.{STRICT}=0",
            ) from None
    inputs, outputs = session.get_inputs(), session.get_outputs()
    if len(inputs) != 1 or len(outputs) != 1 or len(inputs[0].shape) != 4 or inputs[0].type != "tensor(float)":
        ports = [", ".join(f"{one.type} {one.shape}" for one in some) for some in (inputs, outputs)]
        sentence = "it is not a classifier with one float32 image batch in and logits out: it takes {} and returns {}"
        raise ValueError(sentence.format(*ports))
    facts = {"providers": session.get_providers(), "device": "cpu" if provider == "cpu" else "cuda"}
    facts |= {"threads": threads or "all", "graph_optimization": level, **({"config": entries} if entries else {})}
    if patient and SPINNING not in entries:
        facts["spinning"] = False
    if provider != "cpu":
        facts["provider_options"] = given = {**given, **session.get_provider_options().get(name, {})}
        facts["tf32"] = "0" not in (os.environ.get(TF32), given.get("use_tf32"))  # either switches it off
    port, logits = inputs[0].name, [outputs[0].name]
    return lambda x: session.run(logits, {port: x})[0], tuple(inputs[0].shape[1:]), facts


def check(provider: Any) -> str:
    """Load what ``provider`` needs; returns what ONNX Runtime says of libraries that it does not find.

    Raises:
        Refused: there is no such provider, it is not installed, or there is no GPU for it.
    """
    import onnxruntime

    if provider not in PROVIDERS:
        raise Refused("usage", f"a provider is one of {', '.join(PROVIDERS)}, not '{provider}'")
    if provider == "cpu":
        return ""
    if not gpus():
        raise Refused("device", f"provider={provider} needs an NVIDIA GPU, and no driver offers one: use provider=cpu")
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        if hasattr(onnxruntime, "preload_dlls"):
            onnxruntime.preload_dlls()  # the libraries that PyTorch came with, or NVIDIA's packages
        if provider == "tensorrt":
            with contextlib.suppress(ImportError):
                importlib.import_module("tensorrt")  # which loads its libraries
    if provider == "tensorrt-rtx":
        _register(onnxruntime)
    elif PROVIDERS[provider] not in (available := onnxruntime.get_available_providers()):
        raise Refused(
            "missing",
            f"this ONNX Runtime has no '{PROVIDERS[provider]}' (it has: {', '.join(available)}): "
            f"install onnxruntime-gpu in place of {getattr(onnxruntime, 'package_name', PIP)}",
        )
    return said.getvalue().partition("\n")[0]


def gpus() -> int:
    """How many NVIDIA GPUs the driver offers to this process."""
    count = ctypes.c_int(0)
    try:
        driver = ctypes.CDLL("nvcuda.dll" if os.name == "nt" else "libcuda.so.1")
    except OSError:
        return 0
    return 0 if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)) else count.value


def _session(onnxruntime: Any, model: Any, options: Any, entries: Any, name: Any, given: Any) -> Any:
    for key, value in entries.items():
        options.add_session_config_entry(key, value)
    chosen = {"providers": [(name, given)]}
    if name == RTX:  # of plug-ins the session options name the device
        options.add_provider_for_devices(_devices(onnxruntime)[:1], given)
        chosen = {}
    if name != CPU:  # what would be logged is said in the error
        options.log_severity_level = 4
        onnxruntime.set_default_logger_severity(4)
    try:
        session = onnxruntime.InferenceSession(model, options, enable_fallback=0, **chosen)
    finally:
        onnxruntime.set_default_logger_severity(2)
    if session.get_providers()[0] != name:
        raise RuntimeError(f"it took {', '.join(session.get_providers())}")
    return session


def _register(onnxruntime: Any) -> None:
    """Make the provider known that comes as a plug-in."""
    try:
        if not _devices(onnxruntime):
            plugin = importlib.import_module("onnxruntime_ep_nv_tensorrt_rtx")
            onnxruntime.register_execution_provider_library(RTX, plugin.get_library_path())
        devices = _devices(onnxruntime)
    except Exception as error:  # not installed, without its libraries, or ONNX Runtime is too old for plug-ins
        raise Refused(
            "missing", f"'{RTX}' cannot be loaded ({_reason(error)}): install {INSTALL['tensorrt-rtx']}"
        ) from None
    if not devices:
        raise Refused("device", f"'{RTX}' finds no GPU here that it serves: use provider=cuda")


def _devices(onnxruntime: Any) -> Any:
    return [device for device in onnxruntime.get_ep_devices() if device.ep_name == RTX]


def _reason(error: Exception) -> str:
    """The first line of the error's message, without the place in ONNX Runtime's source and the number of the error."""
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return re.sub(r"^(\[ONNXRuntimeError\] : \d+ : \w+ : |/\S+\.cc:\d+ .*?\) )", "", line).rstrip(".")
