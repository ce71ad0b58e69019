"""The main job, end to end, on a released student: pick, export, verify, and refuse what was tampered with."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from zoo.cli.app import run

PICK = ["pick", "--flops", "15M", "--export", "onnx", "--json"]


@pytest.fixture(scope="module")
def unverified(tmp_path_factory) -> Path:
    """The picked student's bundle, as somebody without data and network gets it."""
    out = tmp_path_factory.mktemp("bundles")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("ZOO_DATA", raising=False)
        patch.setenv("ZOO_CACHE", str(out / "cache"))
        patch.setenv("HF_HUB_OFFLINE", "1")
        assert run([*PICK, "--offline", "--out", str(out)]) == 0
    (bundle,) = out.glob("*--onnxruntime-fp32")
    return bundle


def test_without_data_the_export_reaches_parity_and_says_that_robustness_was_not_verified(unverified):
    manifest = json.loads((unverified / "manifest.json").read_text())
    assert manifest["verified"] == "parity"
    assert "not verified" in manifest["robustness"]
    assert "not verified" in (unverified / "README.md").read_text().lower()


def test_a_bundle_with_one_byte_altered_is_refused(unverified, tmp_path, capsys):
    bundle = copy(unverified, tmp_path)
    model = bundle / "model.onnx"
    content = bytearray(model.read_bytes())
    content[len(content) // 2] ^= 1
    model.write_bytes(content)
    assert run(["verify", str(bundle)]) == 5
    assert "model.onnx" in capsys.readouterr().err


def test_the_engine_classifies_as_the_float_model_does(unverified, cifar):
    import onnxruntime

    from zoo import load
    from zoo.data import to_float

    x = to_float(cifar.split("test").images[:100])
    name = json.loads((unverified / "manifest.json").read_text())["source"]["name"]
    session = onnxruntime.InferenceSession(str(unverified / "model.onnx"), providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {"images": x.numpy()})
    assert np.abs(logits - load(name)(x).detach().numpy()).max() < 1e-3


@pytest.mark.slow
def test_with_data_the_export_is_signed_off_and_verify_repeats_it(cifar, tmp_path, capsys):
    assert run([*PICK, "--out", str(tmp_path)]) == 0
    (bundle,) = tmp_path.glob("*--onnxruntime-fp32")
    assert json.loads((bundle / "manifest.json").read_text())["verified"] == "robust"
    capsys.readouterr()
    assert run(["verify", str(bundle), "--json"]) == 0
    rungs = json.loads(capsys.readouterr().out)["rungs"]
    assert [rung["name"] for rung in rungs] == ["integrity", "parity", "clean", "transfer", "surrogate"]
    assert all(rung["holds"] for rung in rungs)


@pytest.mark.slow
def test_an_engine_that_lost_its_robustness_fails_the_gate_though_its_hashes_agree(cifar, unverified, tmp_path, capsys):
    bundle = copy(unverified, tmp_path)
    perturb(bundle / "model.onnx", scale=0.06)
    reseal(bundle)
    assert run(["verify", str(bundle), "--tolerance", "100", "-n", "500"]) in (8, 9)
    assert "points" in capsys.readouterr().err


def copy(bundle: Path, to: Path) -> Path:
    import shutil

    return Path(shutil.copytree(bundle, to / bundle.name))


def perturb(path: Path, *, scale: float) -> None:
    """Gaussian noise on every convolution, relative to its own spread."""
    model, rng = onnx.load(str(path)), np.random.default_rng(0)
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if values.ndim == 4:
            noisy = values + scale * values.std() * rng.standard_normal(values.shape)
            tensor.CopyFrom(numpy_helper.from_array(noisy.astype(values.dtype), tensor.name))
    path.write_bytes(model.SerializeToString())


def reseal(bundle: Path) -> None:
    """Make manifest and sums agree with an altered artifact, as a careful forger would."""
    digest = hashlib.sha256((bundle / "model.onnx").read_bytes()).hexdigest()
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["artifact"]["sha256"] = digest
    manifest["artifact"]["size"] = (bundle / "model.onnx").stat().st_size
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    lines = []
    for line in (bundle / "SHA256SUMS").read_text().splitlines():
        name = line.split(maxsplit=1)[1].lstrip("*")
        lines.append(f"{hashlib.sha256((bundle / name).read_bytes()).hexdigest()}  {name}")
    (bundle / "SHA256SUMS").write_text("\n".join(lines) + "\n")
