from __future__ import annotations

import json
import os
import warnings
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from exported import bundle_of
from safetensors.torch import save_file
from torch import nn

from zoo.datasets.cifar10 import CIFAR10
from zoo.export import export_model, exporter, read_bundle, verify_bundle
from zoo.export.bundle.manifest import to_json
from zoo.export.bundle.source import Known
from zoo.export.engines import backend, onnxruntime
from zoo.export.onnx.graph import OPSET, metadata_of, save_onnx
from zoo.export.options import ExportOptions
from zoo.models import Classifier, build
from zoo.specs import MobileNetV2Spec, ResNetSpec, StagedSpec, WideResNetSpec
from zoo.specs.base import CIFAR10_MEAN, CIFAR10_STD
from zoo.system.errors import IntegrityError, MissingDependency, ParityGateFailed, UsageError
from zoo.system.files import sha256_file

SMALL = StagedSpec(widths=((8,), (16,)), resolutions=(16, 8), stem=6)
FAMILIES = {
    "staged": SMALL,
    "silu": StagedSpec(widths=((8, 6), (12,)), resolutions=(32, 16), stem=6, activation="silu"),
    "wideresnet": WideResNetSpec(depth=10, widen=1),
    "mobilenetv2": MobileNetV2Spec(width_mult=0.25),
    "resnet": ResNetSpec(stem="7x7"),  # its images cost a sixteenth of those of 3x3
}


def model_of(spec, seed: int = 0) -> Classifier:
    """A net whose BatchNorms have seen something, so that folding them is not the identity."""
    torch.manual_seed(seed)
    model = build(spec)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.3, 0.3)
            module.running_var.uniform_(0.5, 2.0)
            module.bias.data.uniform_(-0.3, 0.3)
    model.head.weight.data.mul_(30)  # logits of the size that trained nets have
    return model.eval()


def images(n: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(n, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def small() -> Classifier:
    return model_of(SMALL)


@pytest.fixture(scope="module")
def small_onnx(small, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("onnx") / "model.onnx"
    save_onnx(small, path, metadata={"name": "small", "macs": "1"})
    return path


@pytest.fixture(scope="module")
def engine(small_onnx):
    return onnxruntime.load(small_onnx, threads=1)


# -- the ONNX file ---------------------------------------------------------------------------------------------


def test_the_same_weights_give_the_same_bytes(small, small_onnx, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.onnx, "export", torch.onnx.export.__wrapped__)  # which tests call once for each net
    save_onnx(model_of(SMALL), tmp_path / "again.onnx", metadata={"macs": "1", "name": "small"})
    assert (tmp_path / "again.onnx").read_bytes() == small_onnx.read_bytes()


def test_the_file_has_the_names_shapes_and_metadata_of_the_contract(small_onnx):
    proto = onnx.load(str(small_onnx))
    onnx.checker.check_model(proto, full_check=True)
    (inputs,), (outputs,) = proto.graph.input, proto.graph.output
    assert (inputs.name, outputs.name) == ("images", "logits")
    batch, *rest = inputs.type.tensor_type.shape.dim
    assert batch.dim_param == outputs.type.tensor_type.shape.dim[0].dim_param != ""
    assert [dim.dim_value for dim in rest] == [3, 32, 32]
    assert [(entry.domain, entry.version) for entry in proto.opset_import] == [("", OPSET)]
    assert metadata_of(small_onnx) == {"name": "small", "macs": "1"}


def test_batchnorm_is_folded_and_normalisation_is_inside(small_onnx):
    proto = onnx.load(str(small_onnx))
    assert "BatchNormalization" not in {node.op_type for node in proto.graph.node}
    held = {entry.name: onnx.numpy_helper.to_array(entry) for entry in proto.graph.initializer}
    assert held["mean"].ravel() == pytest.approx(CIFAR10_MEAN)
    assert held["std"].ravel() == pytest.approx(CIFAR10_STD)


# -- engines ---------------------------------------------------------------------------------------------------


def test_an_engine_loads_only_what_is_a_classifier(tmp_path, small_onnx):
    proto = onnx.load(str(small_onnx))
    proto.graph.output.append(onnx.helper.make_tensor_value_info("relu", onnx.TensorProto.FLOAT, None))
    onnx.save(proto, str(tmp_path / "two.onnx"))
    with pytest.raises(IntegrityError, match="not a classifier"):
        onnxruntime.load(tmp_path / "two.onnx")


@pytest.mark.parametrize("name", ["onnx", "ort", "onnxruntime"])
def test_the_default_engine_has_three_names(name):
    assert backend(name).load_module() is onnxruntime


def test_engines_that_are_not_there_are_told_apart_from_typos():
    with pytest.raises(MissingDependency, match="no Core ML engine") as caught:
        backend("coreml")
    assert caught.value.exit_code == 6
    with pytest.raises(UsageError, match="did you mean 'onnx'"):
        backend("onxx")


# -- bundles from names ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def local_name(small, tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("model")
    save_file(small.state_dict(), folder / "model.safetensors")
    (folder / "config.json").write_text(
        json.dumps({"name": "small-one", "dataset": "cifar10", "classes": CIFAR10.classes, "spec": SMALL.to_dict()})
    )
    return f"local-dir:{folder}"


@pytest.fixture
def no_data(monkeypatch, tmp_path_factory):
    monkeypatch.delenv("ZOO_DATA", raising=False)
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path_factory.mktemp("hub")))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", os.environ["HF_HUB_CACHE"])


@pytest.mark.parametrize(
    ("engine", "asked", "ending"),
    [
        ("onnxruntime", {}, ""),
        ("onnxruntime", {"provider": "cpu", "threads": 2}, ""),
        ("onnxruntime", {"provider": "cuda"}, "--cuda"),
        ("tensorrt-rtx", {"compute_capability": "8.9, 8.6"}, "--sm86-sm89"),
        ("openvino", {}, ""),
    ],
)
def test_a_bundle_for_one_device_has_it_in_its_name(engine, asked, ending):
    try:
        order = ExportOptions(out="out", format=engine, engine_options=asked)
    except MissingDependency as error:
        pytest.skip(str(error))
    assert order.folder("small") == Path(f"out/small--{engine}-fp32{ending}")


def test_without_data_a_bundle_reaches_parity_and_says_so_everywhere(local_name, no_data, tmp_path):
    told: list[str] = []
    bundle = export_model(local_name, out=tmp_path, offline=True, notify=told.append).folder
    assert bundle == tmp_path / "small-one--onnxruntime-fp32"
    assert len(told) == 1
    assert "NOT verified" in told[0]
    assert "ZOO_DATA" in told[0]
    manifest = read_bundle(bundle)
    assert manifest.verified == "parity"
    assert manifest.robustness == told[0]
    assert told[0][1:] in (bundle / "README.md").read_text()
    assert [rung.name for rung in manifest.gates] == ["integrity", "parity"]
    assert verify_bundle(bundle, offline=True).reached == "parity"


def test_wrong_arguments_are_named(local_name, tmp_path):
    with pytest.raises(TypeError, match=r"export_model\(\) has no option called 'formt'; did you mean 'format'"):
        export_model(local_name, out=tmp_path, formt="onnx")
    with pytest.raises(UsageError, match="batch sizes are a sequence of whole numbers from 1 to 4096, not 8"):
        export_model(local_name, out=tmp_path, batches=8)


def test_terms_may_be_given_where_images_are_not_at_hand(local_name, no_data, tmp_path):
    terms = {"margin": 0.02, "min_robust": 0.3, "queries": 50}
    with pytest.warns(UserWarning, match="robustness was NOT verified"):
        done = export_model(local_name, out=tmp_path, **terms)
    assert done.manifest.verified == "parity"
    again = {"out": tmp_path / "again", "verify": "parity"}
    assert export_model(local_name, **again, queries=0).folder.is_dir()
    with pytest.raises(UsageError, match=r"--min-robust \(min_robust=\) is for level 'attacked'"):
        export_model(local_name, **again, min_robust=0.3)


def test_without_data_python_is_warned(local_name, no_data, tmp_path):
    with pytest.warns(UserWarning, match="NOT verified"):
        export_model(local_name, out=tmp_path, offline=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nobody is warned of what was asked for
        export_model(local_name, out=tmp_path, offline=True, verify="parity", force=True)


def test_the_manifest_holds_the_provenance(local_name, no_data, small, tmp_path):
    bundle = export_model(local_name, out=tmp_path, batches=(64, 1, 1), verify="parity", seed=3).folder
    manifest = read_bundle(bundle)
    assert manifest.spec == SMALL
    assert (manifest.source.name, manifest.source.twin) == ("small-one", "twin.safetensors")
    assert manifest.source.file_sha256 == sha256_file(Path(local_name.removeprefix("local-dir:")) / "model.safetensors")
    assert manifest.cost.macs > 0
    assert manifest.io.input.shape == ("batch", 3, 32, 32)
    assert manifest.artifact.opset == OPSET
    assert manifest.artifact.batches == (1, 64)
    assert manifest.artifact.size == (bundle / "model.onnx").stat().st_size
    assert manifest.gates[1].measured["batches"] == [1, 2, 64]
    assert all(rung.artifact_sha256 == manifest.artifact.sha256 and rung.seed == 3 for rung in manifest.gates)
    assert manifest.threat_model.eps == pytest.approx(8 / 255)
    assert metadata_of(bundle / "model.onnx")["tensors_sha256"] == manifest.source.tensors_sha256
    assert "--verify parity" in manifest.command
    assert json.loads(to_json(manifest))["labels"][3] == "cat"


def test_the_probe_lets_another_runtime_be_checked(local_name, no_data, tmp_path):
    bundle = export_model(local_name, out=tmp_path, verify="none").folder
    engine = onnxruntime.load(bundle / "model.onnx", threads=1)
    clean, adversarial = (np.load(bundle / "probe" / f"{kind}.npz") for kind in ("clean", "adversarial"))
    for part in (clean, adversarial):
        assert np.abs(engine(part["images"]).numpy() - part["logits"]).max() < 1e-4
    moved = np.abs(clean["images"] - adversarial["images"]).max(axis=(1, 2, 3))
    assert np.allclose(moved, 8 / 255, atol=1e-6)


def test_the_command_in_the_readme_works(local_name, no_data, tmp_path, capsys, monkeypatch):
    bundle = export_model(local_name, out=tmp_path, verify="none").folder
    code = (bundle / "README.md").read_text().split("```python\n")[1].split("```")[0]
    monkeypatch.chdir(bundle)
    exec(compile(code, "README.md", "exec"), {})
    assert float(capsys.readouterr().out) < 1e-4


def test_options_of_an_engine_are_recorded_and_used_again(local_name, no_data, tmp_path):
    bundle = export_model(local_name, out=tmp_path, engine_options={"provider": "cpu"}, verify="parity").folder
    assert read_bundle(bundle).artifact.options == {"provider": "cpu"}
    assert verify_bundle(bundle, level="parity").reached == "parity"
    with pytest.raises(UsageError, match="'tensorrt-rtx', not 'tpu'"):
        verify_bundle(bundle, level="parity", engine_options={"provider": "tpu"})


def test_a_wrong_conversion_fails_at_parity_and_leaves_nothing(small, tmp_path, monkeypatch):
    """The new exporter has had wrong results on ResNets: here it exports another net."""
    monkeypatch.setattr(exporter, "save_onnx", lambda model, path, **rest: save_onnx(model_of(SMALL, 1), path, **rest))
    with pytest.raises(ParityGateFailed, match="differ from the float model's") as caught:
        bundle_of(small, Known("small", "small"), out=tmp_path, verify="parity")
    assert caught.value.exit_code == 8
    assert not list(tmp_path.iterdir())
    with pytest.raises(ParityGateFailed):
        bundle_of(small, Known("small", "small"), out=tmp_path, verify="parity", keep_failed=True)
    (kept,) = tmp_path.iterdir()
    assert kept.name == "small--onnxruntime-fp32.failed"
    manifest = read_bundle(kept)
    assert manifest.verified == "none"
    assert not manifest.gates[-1].holds


def test_an_engine_that_answers_nan_fails_at_parity(small, tmp_path):
    spoilt = model_of(SMALL)
    spoilt.head.bias.data[0] = float("nan")
    with pytest.raises(ParityGateFailed, match="nan"):
        bundle_of(spoilt, Known("small", "small"), out=tmp_path, verify="parity")
