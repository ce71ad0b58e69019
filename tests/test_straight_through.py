"""The int8 graph as a module: it answers as ONNX Runtime does, and its gradients lead where the engine is weak."""

from __future__ import annotations

from functools import cache

import onnx
import onnxruntime as ort
import pytest
import torch
import torch.nn.functional as F
from onnx import TensorProto, helper
from sturdy import pictures
from test_export import FAMILIES, model_of

from zoo.datasets.base import to_float
from zoo.export.engines import onnxruntime
from zoo.export.gradients.onnx import own_gradients
from zoo.export.gradients.steps import Steps
from zoo.export.ladder.climb import Trial, climb
from zoo.export.ladder.terms import Terms
from zoo.export.onnx.graph import INPUT, save_onnx
from zoo.export.onnx.int8 import to_int8
from zoo.system.device import cpu_id
from zoo.train.spaces.dynamic import Space
from zoo.train.spaces.published import mbv3, resnet

SPECS = {
    **FAMILIES,
    "bottleneck": resnet((64, 96), (1, 1), (0.25, 0.5)),
    "mobilenetv3": mbv3((16, 24, 32), (1, 2), last=(64, 80)),
}


def int8(model, images, path, **how):
    save_onnx(model, path)
    to_int8(path, images, **how)


@pytest.fixture(scope="module")
def images(split):
    return to_float(split.images[:96])


@pytest.fixture(scope="module")
def quantised(tmp_path_factory):
    """Of a family: the float model, images, and the int8 graph of it."""

    @cache
    def made(family, **how):
        spec = SPECS[family]
        model = model_of(spec.spec(spec.largest[0]) if isinstance(spec, Space) else spec)
        torch.manual_seed(0)
        x = torch.rand(32, 3, model.spec.image_size, model.spec.image_size)
        path = tmp_path_factory.mktemp(family) / "model.onnx"
        int8(model, x, path, **how)
        return model, x, path

    return made


def apart(a, b):
    return (a - b).square().mean().sqrt()


families = pytest.mark.parametrize(
    "family", [pytest.param(name, marks=pytest.mark.slow if name == "mobilenetv2" else ()) for name in SPECS]
)


@pytest.mark.parametrize("inputs_only", [False, True])
@families
def test_it_computes_the_graph_as_it_is_written(family, inputs_only, quantised):
    model, x, path = quantised(family, inputs_only=inputs_only)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL  # Q/DQ nodes are not fused
    (written,) = ort.InferenceSession(str(path), options, ["CPUExecutionProvider"]).run(None, {INPUT: x.numpy()})
    own = own_gradients(path, model)
    assert isinstance(own, Steps)
    with torch.no_grad():
        logits = torch.from_numpy(written)
        assert apart(own(x), logits) < 0.6 * apart(model(x), logits)  # sums that fall to either side of a step


@pytest.mark.skipif(
    not {"vnni", "neon"} & set(cpu_id(1).split("-")), reason="16-bit sums of int8 kernels saturate on this processor"
)
@families
def test_it_answers_as_the_engine_does(family, quantised):
    model, x, path = quantised(family, inputs_only=False)
    engine, own = onnxruntime.load(path, threads=1), own_gradients(path, model)
    with torch.no_grad():
        assert apart(own(x), engine(x)) < 0.6 * apart(model(x), engine(x))


def test_gradients_are_those_of_the_float_model_but_for_what_is_clipped(robust, images, tmp_path):
    int8(robust, images[:8], tmp_path / "model.onnx")
    own = own_gradients(tmp_path / "model.onnx", robust)

    def gradient(model, x):
        x = x.clone().requires_grad_()
        logits = model(x)
        (found,) = torch.autograd.grad(F.cross_entropy(logits, logits.argmax(1)), x)
        return found.flatten(1)

    assert F.cosine_similarity(gradient(own, images), gradient(robust, images)).mean() > 0.9


def test_a_float_graph_gives_the_float_model_with_its_weights(robust, fragile, images, tmp_path):
    save_onnx(fragile, tmp_path / "model.onnx")
    own = own_gradients(tmp_path / "model.onnx", robust)
    torch.testing.assert_close(own(images), fragile(images), rtol=1e-4, atol=1e-4)


def test_an_unknown_operator_gives_none(robust, images, tmp_path):
    int8(robust, images, tmp_path / "model.onnx")
    proto = onnx.load(str(tmp_path / "model.onnx"))
    proto.graph.node.append(helper.make_node("Cos", [proto.graph.output[0].name], ["more"]))
    proto.graph.output[0].CopyFrom(helper.make_tensor_value_info("more", TensorProto.FLOAT, ["batch", 10]))
    onnx.save(proto, str(tmp_path / "model.onnx"))
    assert own_gradients(tmp_path / "model.onnx", robust) is None


def test_its_walk_finds_what_the_twin_s_misses_in_an_int8_engine(robust, fragile, split, tmp_path):
    int8(fragile, to_float(pictures(96, seed=3)[0]), tmp_path / "model.onnx")
    engine = onnxruntime.load(tmp_path / "model.onnx", threads=1)
    trial = Trial(
        artifact_sha256="0" * 64, files=1, level="attacked", split=split, terms=Terms(n=150, margin=0.02, tolerance=1e6)
    )
    report = climb(robust, engine, trial)
    assert report.failed is not None
    assert report.failed.name == "surrogate"
    assert report.failed.measured["gradients"] == ["twin", "artifact"]
