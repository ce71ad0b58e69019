"""The main job, end to end, on a released student: pick, export, verify, and refuse what was tampered with."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
import torch.nn.functional as F

from zoo import load
from zoo.cli.app import run
from zoo.datasets.base import to_float
from zoo.export.onnx.graph import save_onnx

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
    assert "not verified" in manifest["robustness"].lower()
    assert "not verified" in (unverified / "README.md").read_text().lower()


def test_without_a_gpu_trt_leaves_a_plan_that_has_yet_to_run(tmp_path, capsys, monkeypatch):
    """The command that users are promised."""
    pytest.importorskip("tensorrt_rtx")
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    pick = ["pick", "--flops", "15M", "--export", "trt", "--offline", "--out", str(tmp_path)]
    assert run(pick) == 0
    out, error = capsys.readouterr()
    (bundle,) = tmp_path.iterdir()
    assert out.splitlines()[-1] == f"  zoo verify {bundle} --device ssh://USER@HOST"
    assert "trt is tensorrt-rtx here" in error
    assert "has not run yet" in error
    assert (bundle / "model.plan").stat().st_size > 1_000_000


def test_trt_is_one_line_that_is_refused_where_neither_engine_is_installed(tmp_path, capsys, monkeypatch):
    for package in ("tensorrt", "tensorrt_rtx"):
        monkeypatch.setitem(sys.modules, package, None)
    assert run(["pick", "--flops", "15M", "--export", "trt", "--offline", "--out", str(tmp_path)]) == 6
    assert "TensorRT for RTX is not installed" in (error := capsys.readouterr().err)
    assert 'pip install "robust-zoo[trt]"' in error
    assert not [*tmp_path.iterdir()]


def test_a_bundle_with_one_byte_altered_is_refused(unverified, tmp_path, capsys):
    bundle = copy(unverified, tmp_path)
    model = bundle / "model.onnx"
    content = bytearray(model.read_bytes())
    content[len(content) // 2] ^= 1
    model.write_bytes(content)
    assert run(["verify", str(bundle)]) == 5
    assert "model.onnx" in capsys.readouterr().err


def test_the_engine_classifies_as_the_float_model_does(unverified, cifar):
    x = to_float(cifar.split("test").images[:100])
    name = json.loads((unverified / "manifest.json").read_text())["source"]["name"]
    session = onnxruntime.InferenceSession(str(unverified / "model.onnx"), providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {"images": x.numpy()})
    assert np.abs(logits - load(name)(x).detach().numpy()).max() < 1e-3


@pytest.mark.slow
def test_with_data_the_export_is_signed_off_and_verify_repeats_it(cifar, tmp_path, capsys):
    assert run([*PICK, "--out", str(tmp_path)]) == 0
    (bundle,) = tmp_path.glob("*--onnxruntime-fp32")
    assert json.loads((bundle / "manifest.json").read_text())["verified"] == "attacked"
    capsys.readouterr()
    assert run(["verify", str(bundle), "--json"]) == 0
    rungs = json.loads(capsys.readouterr().out)["rungs"]
    assert [rung["name"] for rung in rungs] == ["integrity", "parity", "clean", "transfer", "surrogate", "targeted"]
    assert all(rung["holds"] for rung in rungs)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["ard-s7", "fast-ard-s7", "rrm-s7"])
def test_a_model_that_was_just_trained_is_exported_and_verified_like_a_released_one(recipe, cifar, tmp_path, capsys):
    assert run(["train", recipe, "--preset", "smoke", "--out", str(tmp_path / "run"), "-q"]) == 0
    terms = ["-n", "50", "--min-robust", "0", "--margin", "10"]  # a few steps of training leave no accuracy to lose
    model = f"local-dir:{tmp_path / 'run' / 'model'}"
    assert run(["export", model, "--out", str(tmp_path / "bundles"), *terms]) == 0
    (bundle,) = (tmp_path / "bundles").iterdir()
    assert json.loads((bundle / "manifest.json").read_text())["verified"] == "attacked"
    capsys.readouterr()
    assert run(["verify", str(bundle), *terms, "--json"]) == 0
    assert all(rung["holds"] for rung in json.loads(capsys.readouterr().out)["rungs"])


@pytest.mark.slow
def test_an_engine_that_lost_its_robustness_fails_the_gate_though_its_hashes_agree(cifar, unverified, tmp_path, capsys):
    bundle = copy(unverified, tmp_path)
    name = json.loads((bundle / "manifest.json").read_text())["source"]["name"]
    save_onnx(forgetful(load(name), cifar.split("train")), bundle / "model.onnx")
    reseal(bundle)
    assert run(["verify", str(bundle), "--tolerance", "1000"]) == 9
    assert "the engine is worse" in capsys.readouterr().err


def forgetful(model, train):
    """The model after a few steps of training on clean images only: as accurate as before, far less robust."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    rng = np.random.default_rng(0)
    model.train()
    for _ in range(150):
        index = np.sort(rng.integers(0, len(train), 128))
        loss = F.cross_entropy(model(to_float(train.images[index])), torch.from_numpy(train.labels[index]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


def copy(bundle: Path, to: Path) -> Path:
    return Path(shutil.copytree(bundle, to / bundle.name))


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
