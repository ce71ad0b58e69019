"""ONNX graphs and exported programs of the user's own: measured like the models that they were made of."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
import torchvision
from onnx import TensorProto, helper, numpy_helper
from test_own import bare
from torch import Tensor, nn

from zoo.attacks.losses import NoGradient
from zoo.cli.app import run
from zoo.datasets.base import to_float
from zoo.evaluation.evaluate import evaluate
from zoo.evaluation.protocols import protocol
from zoo.export.engines import onnxruntime
from zoo.export.files import OnnxModel, exported_program, file_sha256, own_file
from zoo.export.gradients.onnx import OPERATORS, read
from zoo.export.onnx.graph import save_onnx
from zoo.export.onnx.int8 import to_int8
from zoo.models.fold import in_eval_mode
from zoo.system.errors import IntegrityError, UsageError
from zoo.system.files import sha256_file
from zoo.weights.address import FILE, Address
from zoo.weights.own import own_sha256


def exported(model: nn.Module, path: Path, *, dynamic: bool = True) -> Path:
    shapes = ({0: torch.export.Dim("batch")},) if dynamic else None
    program = torch.export.export(model, (torch.rand(2, 3, 32, 32),), dynamic_shapes=shapes)
    torch.export.save(program, path)
    return path


def graph_of(model: nn.Module, path: Path, batch: int = 0) -> Path:
    """An ONNX file, with one batch size if ``batch`` is above 0."""
    save_onnx(model, path)
    if batch:
        proto = onnx.load(str(path))
        proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value = batch
        onnx.save(proto, str(path))
    return path


def with_cosine(path: Path) -> Path:
    """The same graph, with an operator at its end whose gradient is not known."""
    proto = onnx.load(str(path))
    proto.graph.node.append(helper.make_node("Cos", [proto.graph.output[0].name], ["more"]))
    proto.graph.output[0].CopyFrom(helper.make_tensor_value_info("more", TensorProto.FLOAT, ["batch", 10]))
    onnx.save(proto, str(path))
    return path


def gradient(model: nn.Module, x: Tensor) -> Tensor:
    x = x.clone().requires_grad_()
    logits = model(x)
    (found,) = torch.autograd.grad(F.cross_entropy(logits, logits.argmax(1)), x)
    return found


@pytest.mark.parametrize(("text", "place"), [("net.onnx", "net.onnx"), ("/a b/net.PT2", "/a b/net.PT2")])
def test_a_file_is_an_address(text, place):
    assert Address.parse(text) == Address.parse(text, folders=True) == Address(FILE, place)
    assert str(Address.parse(text)) == text
    assert Address.parse(f"local-dir:{text}").scheme == "local-dir"


@pytest.mark.parametrize("kind", ["graph", "graph of 16", "program"])
@pytest.mark.parametrize("verb", [["eval", "-p", "clean", "-p", "fgsm"], ["sweep", "--eps", "0,8/255"]])
def test_it_is_measured_as_the_model_it_was_made_of(kind, verb, net, folder, toy, found, tmp_path, capsys):
    found(toy)
    if kind == "program":
        path = exported(net, tmp_path / "net.pt2")
    else:
        path = graph_of(net, tmp_path / "net.onnx", 16 * (kind == "graph of 16"))
    measured = []
    for name in (f"local-dir:{folder}", str(path)):
        assert run([verb[0], name, *verb[1:], "-n", "50", "--json"]) == 0
        measured.append(json.loads(capsys.readouterr().out))
    assert bare(measured[0].get("results", {})) == bare(measured[1].get("results", {}))
    assert measured[0].get("curves") == measured[1].get("curves")
    assert measured[1]["name"] == str(path)
    assert measured[1]["weights_sha256"] == sha256_file(path)


def test_an_int8_graph_answers_as_the_engine_does_and_has_gradients_through_its_rounding(robust, split, tmp_path):
    x = to_float(split.images[:32])
    graph_of(robust, tmp_path / "net.onnx")
    to_int8(tmp_path / "net.onnx", x)
    model = OnnxModel(tmp_path / "net.onnx")
    with onnxruntime.load(tmp_path / "net.onnx", threads=1) as engine:
        assert torch.equal(model(x), engine(x))
    torch.testing.assert_close(gradient(model, x), gradient(read(tmp_path / "net.onnx"), x))


def test_a_range_that_is_too_narrow_for_an_attack_hides_nothing_from_it(robust, split, tmp_path):
    graph_of(robust, tmp_path / "net.onnx")
    to_int8(tmp_path / "net.onnx", to_float(split.images[:32]))
    asked = protocol("pgd20").model_copy(update={"n": 100, "eps": 0.12, "step": 0.03})
    int8, float32 = (
        evaluate(one, split.images, split.labels, asked) for one in (OnnxModel(tmp_path / "net.onnx"), robust)
    )
    assert int8.mean() < float32.mean() + 0.1  # without the leak it was 0.8
    assert 0.05 < float32.mean() < 0.5


def test_it_can_be_part_of_a_model_and_its_hash_is_part_of_that_of_the_model(net, tmp_path, toy):
    class Flipped(nn.Module):
        def __init__(self, net: nn.Module) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x.flip(3))

    first = Flipped(OnnxModel(graph_of(net, tmp_path / "net.onnx")))
    split, asked = toy.split("test"), protocol("fgsm").model_copy(update={"n": 60})
    bits = [evaluate(one, split.images, split.labels, asked, flags=set()) for one in (first, Flipped(net))]
    assert bits[0].tolist() == bits[1].tolist()
    assert first.training  # what was given is not changed
    with torch.no_grad():
        next(net.parameters()).add_(0.1)
    assert own_sha256(Flipped(OnnxModel(graph_of(net, tmp_path / "net.onnx")))) != own_sha256(first)


def test_a_large_model_may_hold_it_where_directions_are_taken_in_bfloat16(robust, split, tmp_path, monkeypatch):
    class Purified(nn.Module):
        def __init__(self, net: nn.Module) -> None:
            super().__init__()
            self.purifier = nn.Sequential(nn.Conv2d(3, 96, 3, padding=1), nn.ReLU(), nn.Conv2d(96, 3, 3, padding=1))
            self.net = net

        def forward(self, x: Tensor) -> Tensor:
            return self.net((x + 0.01 * self.purifier(x)).clamp(0, 1))

    monkeypatch.setattr("zoo.evaluation.directions.fast_bf16", lambda device: True)
    monkeypatch.setattr("zoo.evaluation.directions.WORTH", 1000)
    torch.manual_seed(0)
    notes = dict[str, str]()
    models = [Purified(OnnxModel(graph_of(robust, tmp_path / "net.onnx"))), Purified(robust)]
    models[0].purifier = models[1].purifier
    asked = protocol("pgd20").model_copy(update={"n": 60, "eps": 0.1, "step": 0.02})
    taken = (notes, dict[str, str]())
    bits = [
        evaluate(one, split.images, split.labels, asked, flags=set(), notes=its)
        for one, its in zip(models, taken, strict=True)
    ]
    assert notes == {"directions": "bf16"}
    assert (bits[0] == bits[1]).mean() > 0.9


@pytest.mark.parametrize(("kind", "other"), [("Relu", torch.sigmoid), ("Gemm", lambda x, *rest, **form: x[:, :7])])
def test_a_graph_that_computes_something_else_in_pytorch_has_no_gradients(
    net, kind, other, tmp_path, monkeypatch, capsys
):
    graph_of(net, tmp_path / "net.onnx")
    monkeypatch.setitem(OPERATORS, kind, other)
    assert not OnnxModel(tmp_path / "net.onnx")(torch.rand(2, 3, 32, 32, requires_grad=True)).requires_grad
    assert "are not known here (in PyTorch it computes something else)" in capsys.readouterr().err


def test_an_operator_without_a_gradient_is_told_and_only_measured_without_gradients(
    net, toy, found, tmp_path, capsys, monkeypatch
):
    found(toy)
    monkeypatch.chdir(tmp_path)
    with_cosine(graph_of(net, tmp_path / "net.onnx"))
    assert run(["eval", "net.onnx", "-p", "clean", "-p", "square", "-n", "20"]) == 0
    assert "the gradients of 'net.onnx' are not known here (the operator 'Cos')" in capsys.readouterr().err
    assert run(["eval", "net.onnx", "-p", "pgd20", "-n", "200"]) == 2
    assert "attack it with Square" in capsys.readouterr().err
    split = toy.split("test")
    with pytest.raises(NoGradient):
        evaluate(OnnxModel("net.onnx"), split.images, split.labels, protocol("pgd20"))


CLASSIFIERS = """
    alexnet vgg11_bn resnet18 resnext50_32x4d squeezenet1_1 densenet121 shufflenet_v2_x0_5 mobilenet_v2
    mobilenet_v3_small mnasnet0_5 efficientnet_b0 efficientnet_v2_s regnet_y_400mf googlenet convnext_tiny
    vit_b_16 swin_t maxvit_t
"""
REFUSED = ("alexnet", "vgg11_bn")  # by the older exporter, for their pooling
WRITTEN = [(name, new) for name in CLASSIFIERS.split() for new in (True, False) if new or name not in REFUSED]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "dynamo"), WRITTEN)
def test_classifiers_of_torchvision_have_gradients_as_each_exporter_writes_them(name, dynamo, tmp_path):
    torch.manual_seed(0)
    more = {"init_weights": False, "aux_logits": False} if name == "googlenet" else {}
    net = torchvision.models.get_model(name, num_classes=10, **more).eval()
    for layer in net.modules():
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=0.05)  # some heads begin with zeros
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = 1.0
    size = 224 if name in ("vit_b_16", "maxvit_t") else 64
    with torch.no_grad():
        net.train()(torch.rand(8, 3, size, size))  # statistics of its own, or signals and gradients vanish
    net.eval()
    shapes: dict[str, Any] = {"dynamic_shapes": ({0: torch.export.Dim("n")},)}
    if not dynamo:
        shapes = {"input_names": ["x"], "dynamic_axes": {"x": {0: "n"}}}
    torch.onnx.export(
        net, (torch.rand(2, 3, size, size),), f=tmp_path / "net.onnx", dynamo=dynamo, verbose=False, **shapes
    )
    model, x = OnnxModel(tmp_path / "net.onnx", size), torch.rand(3, 3, size, size, requires_grad=True)
    torch.testing.assert_close(model(x), net(x), rtol=1e-3, atol=1e-3 * float(net(x).std()))
    (found,), (true,) = (torch.autograd.grad(one(x)[:, 0].sum(), x) for one in (model, net))
    assert F.cosine_similarity(found.flatten(1), true.flatten(1)).min() > 0.99


def test_an_exported_program_has_no_modes_and_is_attacked_in_any_model(net, tmp_path, toy):
    program = exported_program(exported(net, tmp_path / "net.pt2"))
    split, asked = toy.split("test"), protocol("fgsm").model_copy(update={"n": 60})
    models = (nn.Sequential(program, nn.Dropout()), torch.export.load(tmp_path / "net.pt2").module(), net)
    bits = [evaluate(one, split.images, split.labels, asked).tolist() for one in models]
    assert bits[0] == bits[1] == bits[2]
    with pytest.raises(NotImplementedError, match="eval"):  # PyTorch's refusal: what was given is not changed
        program.eval()


def test_a_program_that_has_modes_keeps_them():
    net = nn.Sequential(nn.Flatten(), nn.Linear(3, 4), nn.Dropout(0.5))
    program = torch.export.export(net.train(), (torch.rand(2, 3),)).module()
    modes = []
    program.train, program.eval = (lambda mode=True: modes.append(mode)), (lambda: modes.append(False))
    in_eval_mode(program)
    assert modes
    assert set(modes) == {False}


def test_weights_beside_a_graph_are_part_of_its_hash(net, tmp_path):
    path = graph_of(net, tmp_path / "net.onnx")
    proto = onnx.load(str(path))
    onnx.save(proto, str(path), save_as_external_data=True, location="weights.bin", size_threshold=64)
    x = torch.rand(3, 3, 32, 32)
    torch.testing.assert_close(OnnxModel(path)(x), net(x), rtol=1e-4, atol=1e-5)
    before, weights = file_sha256(path), bytearray((tmp_path / "weights.bin").read_bytes())
    weights[0] ^= 1
    (tmp_path / "weights.bin").write_bytes(weights)
    assert file_sha256(path) != before
    onnx.save(onnx.load(str(path)), str(path))
    node = helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(np.ones((100, 1), np.float32)))
    proto = onnx.load(str(path))
    proto.graph.node.append(node)
    onnx.save(
        proto,
        str(path),
        save_as_external_data=True,
        location="constants.bin",
        size_threshold=64,
        convert_attribute=True,
    )
    before = file_sha256(path)
    (tmp_path / "constants.bin").write_bytes((tmp_path / "constants.bin").read_bytes()[:-1] + b"x")
    assert file_sha256(path) != before
    (tmp_path / "constants.bin").unlink()
    with pytest.raises(IntegrityError, match=r"constants\.bin' cannot be read, where '.*net\.onnx' keeps weights"):
        file_sha256(path)


def test_what_is_no_classifier_of_the_data_set_is_refused(net, toy, found, tmp_path, monkeypatch, capsys):
    found(toy)
    monkeypatch.chdir(tmp_path)
    graph_of(net, Path("net.onnx"))
    Path("half.onnx").write_bytes(Path("net.onnx").read_bytes()[:1000])
    Path("text.pt2").write_text("weights")
    exported(net, Path("two.pt2"), dynamic=False)
    Path("folder.onnx").mkdir()
    pair = onnx.load("net.onnx")
    pair.graph.input.add().CopyFrom(pair.graph.input[0])
    pair.graph.input[1].name = "more"
    onnx.save(pair, "pair.onnx")
    for name, code, message in (
        ("none.onnx", 2, "there is no file 'none.onnx'"),
        ("folder.onnx", 2, "'folder.onnx' is a folder, not a file"),
        ("half.onnx", 5, "'half.onnx' is not an ONNX graph, or not all of it is here"),
        (
            "pair.onnx",
            5,
            "it takes tensor(float) ['batch', 3, 32, 32], tensor(float) ['batch', 3, 32, 32] and returns",
        ),
        ("text.pt2", 2, "PyTorch cannot load 'text.pt2' as an exported program"),
        ("two.pt2", 2, "'two.pt2' fails on images [1, 3, 32, 32]"),
        ("net.onnx --gpu", 2, "'net.onnx' is run by ONNX Runtime on the CPU: leave --gpu out"),
    ):
        assert run(["eval", *name.split(), "-p", "clean", "-n", "20"]) == code, name
        assert message in capsys.readouterr().err
    assert run(["eval", "net.onnx", "--write"]) == 2
    assert "has no spec, which an entry of the registry has" in capsys.readouterr().err
    for verb in (["export", "net.onnx"], ["bench", "net.onnx"], ["compare", "net.onnx", "nfgsm-w4"]):
        assert run(verb) == 2
        assert "'net.onnx' is a file without a spec, which only zoo eval and zoo sweep" in capsys.readouterr().err
    with pytest.raises(UsageError, match=r"'net\.onnx' must map images \[2, 3, 32, 32\] to logits \[2, 100\]"):
        own_file(Address.parse("net.onnx"), "cifar100").load()
    with pytest.raises(UsageError, match=r"takes images \[N, 3, 32, 32\], not \[N, 3, 224, 224\]"):
        OnnxModel("net.onnx", 224)


@pytest.mark.parametrize("name", ["mynets:make", "net.onnx", "hf-hub:o/r"])
@pytest.mark.parametrize("verb", [["show"], ["push", "--repo-id", "o/r", "--dry-run"]])
def test_verbs_of_the_registry_say_that_an_address_is_no_name(verb, name, capsys):
    assert run([verb[0], name, *verb[1:]]) == 3
    assert f"'{name}' is not in the registry, and only its models are known here" in capsys.readouterr().err
