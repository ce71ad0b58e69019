"""The LiteRT engine: what is built, and that it answers as the model does."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from engine_contract import EngineContract
from test_export import FAMILIES, images, model_of
from torch import nn

from zoo.export import read_bundle
from zoo.export.bundle.source import Known
from zoo.export.engines import backend, litert
from zoo.export.engines.interface import Order
from zoo.export.engines.litert import ARTIFACT
from zoo.export.exporter import write_bundle
from zoo.models import Classifier
from zoo.specs import StagedSpec
from zoo.system.errors import ExportFailed, IntegrityError, MissingDependency, UsageError

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
    return write_bundle(small, Known("small", "small"), engine=BACKEND, out=out, level="parity", split=None)


@pytest.fixture(scope="module")
def engine(bundle):
    return litert.load(bundle / ARTIFACT, threads=1)


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


@pytest.mark.parametrize("n", [1, 2, 33])
def test_the_engine_agrees_with_the_model_at_every_batch_size(n, small, engine):
    x = images(n, seed=n)
    assert torch.allclose(engine(x), answers(small, x), atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_can_be_built_in_every_precision(family, precision, small, tmp_path):
    model = model_of(FAMILIES[family])
    engine = litert.load(tmp_path / litert.build(order(model, precision), tmp_path).file)
    x = images(9, seed=2)
    expected = answers(model, x)
    allowed = {"fp32": 1e-5, "fp16": 0.01, "int8": 0.2}[precision]
    assert (engine(x) - expected).abs().max() < allowed * expected.std()


@pytest.mark.parametrize(("precision", "least", "most"), [("fp16", 1e-5, 0.01), ("int8", 1e-3, 0.2)])
def test_lower_precisions_are_close_and_are_not_fp32(precision, least, most, small, low):
    x = images(33, seed=3)
    expected = answers(small, x)
    assert least < (litert.load(low[precision])(x) - expected).abs().max() / expected.std() < most


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


def test_the_file_tells_nothing_of_the_machine_that_wrote_it(bundle):
    content = (bundle / ARTIFACT).read_bytes()
    for place in (Path(torch.__file__).parents[1], Path.home(), Path.cwd(), Path(__file__).parents[1]):
        assert str(place).encode() not in content


class TestContract(EngineContract):
    pass


def test_the_engine_says_what_it_is(engine, small):
    told = engine.describe()
    assert (told["engine"], told["device"], told["threads"]) == ("litert", "cpu", 1)
    assert told["version"][0].isdigit()
    assert engine.differentiable(small) is None


def test_an_engine_loads_only_what_is_a_classifier(bundle, small, tmp_path):
    import litert_torch

    whole = (bundle / ARTIFACT).read_bytes()
    for name, content in (("noise", b"not a model"), ("half", whole[: len(whole) // 2]), ("nothing", b"")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(IntegrityError, match="cannot load"):
            litert.load(tmp_path / name)
    with pytest.raises(IntegrityError, match="cannot load"):
        litert.load(tmp_path / "missing")
    litert_torch.convert(nn.Linear(3, 2).eval(), (torch.zeros(1, 3),)).export(str(tmp_path / "linear"))
    with pytest.raises(IntegrityError, match="not a classifier"):
        litert.load(tmp_path / "linear")


def test_an_engine_runs_on_one_thread_or_more(bundle):
    with pytest.raises(UsageError, match="not on 0"):
        litert.load(bundle / ARTIFACT, threads=0)


def test_what_cannot_be_converted_is_an_export_failure(small, tmp_path):
    class Fickle(nn.Module):
        def forward(self, x):
            y = x.mean((2, 3))
            return y if y.sum() > 0 else -y  # no static graph does this

    broken = Classifier(SPEC, Fickle(), nn.Linear(3, 10)).eval()
    with pytest.raises(ExportFailed, match="LiteRT could not convert") as caught:
        litert.build(order(broken), tmp_path)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_without_the_packages_it_is_told_what_to_install(monkeypatch, tmp_path):
    for package in ("litert_torch", "ai_edge_litert.interpreter", "ai_edge_litert"):
        monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingDependency, match=r"converters are not installed.*robust-zoo\[litert\]"):
        litert.build(order(model_of(SPEC)), tmp_path)
    with pytest.raises(MissingDependency, match=r"LiteRT is not installed.*robust-zoo\[litert\]"):
        litert.load(tmp_path / ARTIFACT)
