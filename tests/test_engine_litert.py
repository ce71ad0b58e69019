"""What the LiteRT engine builds; that it answers as the model does is shown in test_engine_contract.py."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from test_export import images, model_of
from torch import nn

from zoo.export.engines import litert
from zoo.export.engines.interface import Order
from zoo.export.engines.litert import ARTIFACT
from zoo.specs import StagedSpec
from zoo.system.errors import IntegrityError

SPEC = StagedSpec(widths=((8, 6, 8),), resolutions=(16,), stem=8)  # a shortcut drops channels, the next adds some


def opened(precision: str, folder: Path):
    """LiteRT's own view of a file in ``precision``."""
    from ai_edge_litert.interpreter import Interpreter

    calibration = images(32, seed=1) if precision == "int8" else None
    order = Order(
        model=model_of(SPEC), graph=Path("model.onnx"), precision=precision, batches=(1, 8), calibration=calibration
    )
    return Interpreter(str(folder / litert.build(order, folder).file), num_threads=1)


@pytest.fixture(autouse=True)
def _packages() -> None:
    for package in ("ai_edge_litert", "litert_torch", "ai_edge_quantizer"):
        pytest.importorskip(package, reason=f"needs LiteRT's {package}: pip install 'robust-zoo[litert]'")


def test_fp16_weights_are_stored_in_fp16(tmp_path):
    tensors = opened("fp16", tmp_path).get_tensor_details()
    halved = [tuple(tensor["shape"]) for tensor in tensors if tensor["dtype"] == np.float16]
    assert sorted(halved) == [(6, 3, 3, 8), (8, 3, 3, 3), (8, 3, 3, 6), (8, 3, 3, 8), (10, 8)]


def test_int8_computes_in_int8_but_for_normalisation_pooling_and_head(tmp_path):
    interpreter = opened("int8", tmp_path)
    types = {tensor["index"]: tensor["dtype"] for tensor in interpreter.get_tensor_details()}
    computed = {(op["op_name"], types[op["outputs"][0]]) for op in interpreter._get_ops_details() if len(op["outputs"])}
    assert computed >= {(name, np.int8) for name in ("CONV_2D", "ADD", "PAD", "SLICE")}
    floats = {(name, np.float32) for name in ("SUB", "MUL", "MEAN", "FULLY_CONNECTED")}
    assert computed >= floats
    assert {name for name, kind in computed - floats if kind == np.float32} <= {"DEQUANTIZE", "DELEGATE"}


def test_a_file_with_another_batch_size_answers_batches_of_any_size(tmp_path):
    import litert_torch

    model = model_of(SPEC)
    litert_torch.convert(model, (torch.zeros(4, 3, 32, 32),)).export(str(tmp_path / ARTIFACT))
    with litert.load(tmp_path / ARTIFACT, threads=1) as engine, torch.no_grad():
        for n in (1, 4, 5):
            assert torch.allclose(engine(images(n)), model(images(n)), atol=1e-4)


def test_an_engine_loads_only_what_is_a_classifier(tmp_path):
    import litert_torch

    litert_torch.convert(nn.Linear(3, 2).eval(), (torch.zeros(1, 3),)).export(str(tmp_path / "linear"))
    with pytest.raises(IntegrityError, match="not a classifier"):
        litert.load(tmp_path / "linear")
