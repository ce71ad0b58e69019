from __future__ import annotations

import shutil

import onnx
import pytest
from exported import bundle_of

from zoo.export import read_bundle, sign_off, verify_bundle
from zoo.export.bundle.source import Known
from zoo.export.onnx.calibration import Sampling, calibration_images
from zoo.system.errors import IntegrityError

pytest.importorskip("openvino")
KNOWN = Known("sturdy", "sturdy")
TERMS = {"n": 100, "margin": 0.03}  # equal answers on 89 images show 3 points
LEVELS = {"fp32": "clean", "fp16": "clean", "int8": "attacked"}


@pytest.fixture(scope="module", params=LEVELS)
def bundle(request, robust, split, world, tmp_path_factory):
    calibrated = calibration_images(robust, world, Sampling(n=64)) if request.param == "int8" else None
    return bundle_of(
        robust,
        KNOWN,
        format="openvino",
        precision=request.param,
        calibrated=calibrated,
        out=tmp_path_factory.mktemp("out"),
        verify=LEVELS[request.param],
        split=split,
        queries=20 if request.param == "int8" else None,
        **TERMS,
    )


def test_a_bundle_climbs_the_ladder_and_is_verified_again(bundle, robust, split):
    manifest = read_bundle(bundle)
    assert (manifest.artifact.file, manifest.artifact.companions) == ("model.xml", ("model.bin",))
    assert manifest.artifact.size == sum((bundle / name).stat().st_size for name in ("model.xml", "model.bin"))
    assert manifest.verified == LEVELS[manifest.artifact.precision]
    for device, level in ((None, "parity"), ("local:", "clean")):
        report = verify_bundle(bundle, device=device, model=robust, split=split, level=level, n=100)
        sign_off(report)
        assert report.reached == level
        assert (report.engine["engine"], "remote" in report.engine) == ("openvino", device is not None)


def test_the_precision_is_in_the_file(bundle, robust):
    precision = read_bundle(bundle).artifact.precision
    floats = sum(4 * parameter.numel() for parameter in robust.parameters())
    weights = (bundle / "model.bin").stat().st_size
    assert {"fp32": weights > 0.9 * floats, "fp16": weights < 0.6 * floats, "int8": weights < 0.7 * floats}[precision]


@pytest.mark.parametrize("bundle", ["int8"], indirect=True)
def test_int8_rounds_what_goes_into_convolutions_and_nothing_else(bundle):
    kinds = [node.op_type for node in onnx.load(str(bundle / "model.onnx")).graph.node]
    assert kinds.count("QuantizeLinear") == kinds.count("Conv") == 4


def test_an_altered_companion_is_refused(bundle, robust, split, tmp_path):
    copy = shutil.copytree(bundle, tmp_path / "copy")
    content = bytearray((copy / "model.bin").read_bytes())
    content[len(content) // 2] ^= 1
    (copy / "model.bin").write_bytes(content)
    with pytest.raises(IntegrityError, match=r"model\.bin"):
        verify_bundle(copy, model=robust, split=split)
