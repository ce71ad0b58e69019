"""Inference of S7: ONNX Runtime against eager PyTorch at batch 1 and 128."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch

from benchmarks.timing import interleaved, row
from zoo.export import export_model
from zoo.export.engines.onnxruntime import load as load_engine
from zoo.weights.load import load

MODEL = "trades-s7"


def run() -> list[dict]:
    model = load(MODEL)
    with tempfile.TemporaryDirectory() as folder:
        bundle = export_model(MODEL, format="onnx", out=Path(folder), verify="parity").folder
        engine = load_engine(bundle / "model.onnx")
        rows = []
        for batch, repeats in ((1, 200), (128, 5)):
            x = torch.rand(batch, 3, 32, 32)

            def eager(x: torch.Tensor = x, repeats: int = repeats) -> None:
                with torch.inference_mode():
                    for _ in range(repeats):
                        model(x)

            def exported(x: torch.Tensor = x, repeats: int = repeats) -> None:
                for _ in range(repeats):
                    engine(x)

            seconds = interleaved({"onnxruntime": exported, "eager PyTorch": eager}, rounds=7)
            rows.append(row(f"{repeats} inferences at batch {batch}, {MODEL}", "onnxruntime", seconds))
    return rows
