"""OpenVINO on the CPU."""

from __future__ import annotations

from typing import Any

PACKAGE, PIP = "openvino", "openvino"
PROPERTIES = {
    "PERFORMANCE_HINT": "LATENCY",
    # Left alone it would compute in bf16 where the processor can: not what was asked for. Quantised layers stay int8.
    "INFERENCE_PRECISION_HINT": "f32",
}


def open(parts: Any, threads: Any) -> Any:
    """See :mod:`zoo.export.runtimes`."""
    import openvino

    core = openvino.Core()
    properties = {**PROPERTIES, **({"INFERENCE_NUM_THREADS": threads} if threads else {})}
    try:
        compiled = core.compile_model(core.read_model(*parts), "CPU", properties)
    except RuntimeError as error:  # the lines before the last name OpenVINO's own source files
        raise ValueError(str(error).strip().splitlines()[-1]) from None
    if len(compiled.inputs) != 1 or len(compiled.outputs) != 1 or len(compiled.inputs[0].partial_shape) != 4:
        raise ValueError("it is not a classifier with one image batch in and logits out")
    request = compiled.create_infer_request()

    def run(x: Any) -> Any:
        request.infer([x], share_inputs=True)
        return request.get_output_tensor().data

    facts = {
        "device": "cpu",
        "name": compiled.get_property("EXECUTION_DEVICES")[0],
        "threads": compiled.get_property("INFERENCE_NUM_THREADS"),
    }
    return run, tuple(size.get_length() for size in list(compiled.inputs[0].partial_shape)[1:]), facts
