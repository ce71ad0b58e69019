"""The LiteRT engine: what is built, and that it answers as the model does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from bundles import bundle_of
from test_export import images, model_of
from torch import nn

from zoo.export import read_bundle
from zoo.export.bundle.source import Known
from zoo.export.engines import backend, litert
from zoo.export.engines.interface import Order
from zoo.export.engines.litert import ARTIFACT
from zoo.models import Classifier
from zoo.specs import StagedSpec
from zoo.system.errors import IntegrityError

BACKEND = backend("litert")
SPEC = StagedSpec(widths=((8, 6, 8),), resolutions=(16,), stem=8)  # a shortcut drops channels, the next adds some


def order(model: Classifier, precision: str = "fp32", brightness: float = 1.0) -> Order:
    calibration = brightness * images(32, seed=1) if precision == "int8" else None
    return Order(model=model, graph=Path("model.onnx"), precision=precision, batches=(1, 8), calibration=calibration)


@pytest.fixture(scope="module")
def small() -> Classifier:
    for package in ("ai_edge_litert", "litert_torch", "ai_edge_quantizer"):
        pytest.importorskip(package, reason=f"needs LiteRT's {package}: pip install 'robust-zoo[litert]'")
    return model_of(SPEC)


@pytest.fixture(scope="module")
def bundle(small, tmp_path_factory) -> Path:
    """A bundle whose engine agrees with the model at batch sizes 1, 2, 8 and 64, or it would not have been written."""
    out = tmp_path_factory.mktemp("bundles")
    return bundle_of(small, Known("small", "small"), format=BACKEND.name, out=out, verify="parity")


@pytest.fixture(scope="module")
def low(small, tmp_path_factory) -> dict[str, Path]:
    """A file of each precision below fp32."""
    folders = {precision: tmp_path_factory.mktemp(precision) for precision in ("fp16", "int8")}
    return {
        precision: folder / litert.build(order(small, precision), folder).file for precision, folder in folders.items()
    }


@torch.no_grad()
def answers(model: Classifier, x: torch.Tensor) -> torch.Tensor:
    logits = model(x)
    assert logits.std() > 0.05
    return logits


def opened(path: Path):
    from ai_edge_litert.interpreter import Interpreter

    return Interpreter(str(path), num_threads=1)


def test_fp16_weights_are_stored_in_fp16(low):
    tensors = opened(low["fp16"]).get_tensor_details()
    halved = [tuple(tensor["shape"]) for tensor in tensors if tensor["dtype"] == np.float16]
    assert sorted(halved) == [(6, 3, 3, 8), (8, 3, 3, 3), (8, 3, 3, 6), (8, 3, 3, 8), (10, 8)]


def test_int8_computes_in_int8_but_for_normalisation_pooling_and_head(low):
    interpreter = opened(low["int8"])
    types = {tensor["index"]: tensor["dtype"] for tensor in interpreter.get_tensor_details()}
    computed = {(op["op_name"], types[op["outputs"][0]]) for op in interpreter._get_ops_details() if len(op["outputs"])}
    assert computed >= {(name, np.int8) for name in ("CONV_2D", "ADD", "PAD", "SLICE")}
    floats = {(name, np.float32) for name in ("SUB", "MUL", "MEAN", "FULLY_CONNECTED")}
    assert computed >= floats
    assert {name for name, kind in computed - floats if kind == np.float32} <= {"DEQUANTIZE", "DELEGATE"}


def test_int8_ranges_come_from_the_calibration_images(small, tmp_path, capsys):
    """A net that was calibrated with dark images only has no numbers for what bright ones cause."""
    x = images(33, seed=3)
    expected = answers(small, x)
    narrow = litert.load(tmp_path / litert.build(order(small, "int8", brightness=0.05), tmp_path).file)
    assert (narrow(x) - expected).abs().max() > 0.5 * expected.std()
    assert capsys.readouterr() == ("", "")  # the quantiser's progress bars are kept from the user


def test_a_bundle_says_how_its_model_was_built(bundle):
    manifest = read_bundle(bundle)
    assert (manifest.artifact.file, manifest.artifact.format) == (ARTIFACT, "tflite")
    assert manifest.artifact.options == {"batch": 1}
    assert manifest.gates[-1].measured["max_logit_difference"] < 1e-4
    assert manifest.gates[-1].measured["batches"] == [1, 2, 8, 64]


def test_an_engine_loads_only_what_is_a_classifier(small, tmp_path):
    import litert_torch

    litert_torch.convert(nn.Linear(3, 2).eval(), (torch.zeros(1, 3),)).export(str(tmp_path / "linear"))
    with pytest.raises(IntegrityError, match="not a classifier"):
        litert.load(tmp_path / "linear")
