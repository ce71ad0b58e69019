"""ONNX Runtime, on the first of its execution providers that is there."""

from __future__ import annotations

from typing import Any

PACKAGE, PIP = "onnxruntime", "onnxruntime"
CPU, CUDA, TENSORRT = (f"{name}ExecutionProvider" for name in ("CPU", "CUDA", "Tensorrt"))
PROVIDERS = {"cpu": (CPU,), "cuda": (CUDA, CPU), "tensorrt": (TENSORRT, CUDA, CPU)}  # each for what the first lacks
SETTINGS = {CUDA: {"use_tf32": "0"}}  # TF32 keeps 10 bits of the mantissa: not an fp32 engine


def open(parts: Any, threads: Any, provider: str = "cuda") -> Any:
    """See :mod:`zoo.export.runtimes`. ``provider`` is one of PROVIDERS."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or 0
    options.use_deterministic_compute = True
    options.log_severity_level = 3  # errors only
    available = onnxruntime.get_available_providers()
    chosen = [(name, SETTINGS.get(name, {})) for name in PROVIDERS[provider] if name in available]
    session = onnxruntime.InferenceSession(parts[0], options, providers=chosen)
    inputs, outputs = session.get_inputs(), session.get_outputs()
    if len(inputs) != 1 or len(outputs) != 1 or len(inputs[0].shape) != 4 or inputs[0].type != "tensor(float)":
        raise ValueError("it is not a classifier with one float32 image batch in and logits out")
    taken = session.get_providers()
    facts = {"providers": taken, "device": "cpu" if taken[0] == CPU else "cuda"}
    name, logits = inputs[0].name, [outputs[0].name]
    return lambda x: session.run(logits, {name: x})[0], tuple(inputs[0].shape[1:]), facts
