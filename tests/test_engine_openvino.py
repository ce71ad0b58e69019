from __future__ import annotations

import pytest
import torch
from engine_contract import EngineContract
from sturdy import SPEC, pictures

from zoo.datasets.base import Split, to_float
from zoo.export import read_bundle, sign_off, verify_bundle
from zoo.export.bundle.source import Known
from zoo.export.engines import backend
from zoo.export.exporter import write_bundle
from zoo.export.ladder.climb import Terms
from zoo.export.onnx.calibration import Sampling, calibration_images
from zoo.system.errors import IntegrityError, MissingDependency, UsageError

pytest.importorskip("openvino")
from zoo.export.engines import openvino as engine

KNOWN = Known("sturdy", "sturdy")


class World:
    """Two splits to calibrate by and to test on."""

    def split(self, name: str) -> Split:
        return Split(name, *pictures(300, seed=2 if name == "test" else 1))


@pytest.fixture(scope="module", params=["fp32", "fp16", "int8"])
def bundle(request, robust, split, tmp_path_factory):
    calibrated = calibration_images(robust, World(), Sampling(n=64)) if request.param == "int8" else None
    return write_bundle(
        robust,
        KNOWN,
        engine=backend("ov"),
        precision=request.param,
        calibrated=calibrated,
        out=tmp_path_factory.mktemp("out"),
        level="robust",
        split=split,
        terms=Terms.of(request.param, n=150, margin=0.03, queries=20),
    )


def test_a_bundle_climbs_the_ladder_and_is_verified_again(bundle, robust, split):
    manifest = read_bundle(bundle)
    assert (manifest.artifact.file, manifest.artifact.companions) == ("model.xml", ("model.bin",))
    assert manifest.artifact.size == sum((bundle / name).stat().st_size for name in ("model.xml", "model.bin"))
    report = verify_bundle(bundle, model=robust, split=split, n=150, margin=0.03, queries=20)
    sign_off(report)
    assert report.reached == "robust"
    assert report.engine["engine"] == "openvino"


def test_the_precision_is_in_the_file_and_in_the_logits(bundle, robust, split):
    precision = read_bundle(bundle).artifact.precision
    x = to_float(split.images[:64])
    difference = (engine.load(bundle / "model.xml", threads=1)(x) - robust(x)).abs().max()
    low, high = {"fp32": (0, 1e-4), "fp16": (1e-5, 0.05), "int8": (1e-3, 1.0)}[precision]
    assert low <= difference < high
    floats = sum(4 * parameter.numel() for parameter in robust.parameters())
    weights = (bundle / "model.bin").stat().st_size
    assert {"fp32": weights > 0.9 * floats, "fp16": weights < 0.6 * floats, "int8": weights < 0.7 * floats}[precision]


class TestContract(EngineContract):
    @pytest.fixture
    def engine(self, bundle):
        return engine.load(bundle / "model.xml", threads=1)


def test_any_batch_gives_new_logits(bundle, split):
    loaded = engine.load(bundle / "model.xml", threads=1)
    x = to_float(split.images[:65])
    whole = loaded(x)
    assert torch.allclose(torch.cat([loaded(x[:1]), loaded(x[1:9]), loaded(x[9:])]), whole, atol=1e-5)
    kept = whole.clone()
    loaded(1 - x)
    assert torch.equal(whole, kept)


def test_an_altered_companion_is_refused(bundle, robust, split, tmp_path):
    import shutil

    copy = shutil.copytree(bundle, tmp_path / "copy")
    content = bytearray((copy / "model.bin").read_bytes())
    content[len(content) // 2] ^= 1
    (copy / "model.bin").write_bytes(content)
    with pytest.raises(IntegrityError, match=r"model\.bin"):
        verify_bundle(copy, model=robust, split=split)


def test_bad_input_is_told(bundle, tmp_path, monkeypatch):
    (tmp_path / "model.xml").write_text("<net>")
    with pytest.raises(IntegrityError, match="OpenVINO cannot load"):
        engine.load(tmp_path / "model.xml")
    with pytest.raises(UsageError, match="1 thread or more"):
        engine.load(bundle / "model.xml", threads=0)
    with pytest.raises(UsageError, match=r"\[0, 1\]"):
        engine.load(bundle / "model.xml", threads=1)(torch.full((1, 3, SPEC.image_size, SPEC.image_size), 2.0))
    monkeypatch.setitem(__import__("sys").modules, "openvino", None)
    with pytest.raises(MissingDependency, match=r"robust-zoo\[openvino\]"):
        engine.load(bundle / "model.xml")
