"""Inference through an engine, from arrays as ONNX Runtime takes them: against bare ONNX Runtime and eager PyTorch."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import onnxruntime
import torch

from benchmarks.timing import interleaved, row
from zoo.export.engines.onnxruntime import load as load_engine
from zoo.export.onnx.graph import save_onnx
from zoo.weights.load import load

MODEL = "trades-s7"
BARE = "bare ONNX Runtime"


def run() -> list[dict]:
    model = load(MODEL)
    with tempfile.TemporaryDirectory() as folder:
        graph = Path(folder) / "model.onnx"
        save_onnx(model, graph)
        rows = []
        for threads in sorted({1, torch.get_num_threads()}):
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = threads
            session = onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
            engine = load_engine(graph, threads=threads)
            for batch, repeats in ((1, 200), (128, 5)):
                rows.append(compared(model, engine, session, batch, repeats, threads))
    return rows


def compared(model, engine, session, batch: int, repeats: int, threads: int) -> dict:
    x = np.random.default_rng(0).random((batch, 3, 32, 32), dtype=np.float32)

    def repeated(call):
        def calls() -> None:
            for _ in range(repeats):
                call()

        return calls

    torch.set_num_threads(threads)
    with torch.inference_mode():
        seconds = interleaved(
            {
                "onnxruntime": repeated(lambda: engine(x)),
                BARE: repeated(lambda: session.run(None, {"images": x})),
                "eager PyTorch": repeated(lambda: model(torch.from_numpy(x))),
            },
            rounds=15,
        )
    what = f"{repeats} inferences at batch {batch}, {MODEL}, threads: {threads}"
    return row(what, "onnxruntime", seconds, goal={BARE: 1 / 1.1})
