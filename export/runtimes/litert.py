"""LiteRT, once TensorFlow Lite, on the CPU."""

from __future__ import annotations

import os
from typing import Any

PACKAGE, PIP = "ai_edge_litert", "ai-edge-litert"


def open(parts: Any, threads: Any) -> Any:
    """See :mod:`zoo.export.runtimes`.

    A file has one batch size. Resized, it would answer wrongly: other batches are run in pieces of that size, and the
    last piece is filled up with zeros.
    """
    import numpy as np
    from ai_edge_litert.interpreter import Interpreter

    threads = threads or os.cpu_count() or 1
    content = {"model_content" if isinstance(parts[0], bytes) else "model_path": parts[0]}
    interpreter = Interpreter(**content, num_threads=threads)
    interpreter.allocate_tensors()
    inputs, outputs = interpreter.get_input_details(), interpreter.get_output_details()
    single = len(inputs) == len(outputs) == 1 and {inputs[0]["dtype"], outputs[0]["dtype"]} == {np.float32}
    if not single or len(inputs[0]["shape"]) != 4:
        raise ValueError("it is not a classifier with one float32 image batch in and logits out")
    images, logits = inputs[0]["index"], outputs[0]["index"]
    size = int(inputs[0]["shape"][0])

    def run(x: Any) -> Any:
        n = len(x)
        if n % size:
            x = np.concatenate([x, np.zeros((-n % size, *x.shape[1:]), np.float32)])
        found = []
        for start in range(0, len(x), size):
            interpreter.set_tensor(images, x[start : start + size])
            interpreter.invoke()
            found.append(interpreter.get_tensor(logits))
        return np.concatenate(found)[:n]

    facts = {"device": "cpu", "threads": threads}
    return run, tuple(int(side) for side in inputs[0]["shape"][1:]), facts
