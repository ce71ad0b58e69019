"""Quantisation-aware training: what is rounded, how gradients pass, and what a run of it leaves."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_export import FAMILIES

from zoo.datasets.base import to_float
from zoo.export.onnx.graph import save_onnx
from zoo.export.onnx.int8 import to_int8
from zoo.models import build
from zoo.system.errors import UsageError, ZooError
from zoo.train.pipeline import run
from zoo.train.recipes.phases import load_phases
from zoo.train.run.loop import fit
from zoo.train.run.qat import LEVELS, RoundedConv2d, Rounding, floating, quantised
from zoo.weights.load import load
from zoo.weights.tensors import save_weights


@pytest.fixture(scope="module")
def images(split):
    return to_float(split.images[:128])


@pytest.fixture
def rounded(robust, images):
    return quantised(robust, images.split(64))


# -- what is rounded -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_every_architecture_can_be_rounded_and_keeps_its_weights_and_their_names(family):
    torch.manual_seed(0)
    model = build(FAMILIES[family]).eval()
    x = torch.rand(8, 3, model.spec.image_size, model.spec.image_size)
    net = quantised(model, [x])
    left = floating(net)
    assert left.keys() == model.state_dict().keys()
    assert all(torch.equal(left[key], value) for key, value in model.state_dict().items())
    convolutions = [module for module in net.modules() if isinstance(module, torch.nn.Conv2d)]
    assert convolutions
    assert all(type(module) is RoundedConv2d for module in convolutions)
    assert sum(isinstance(module, Rounding) for module in net.modules()) >= len(convolutions)
    difference = (net(x) - model(x)).abs().max() / model(x).std()
    assert 0 < difference < 0.5


def test_the_weights_are_those_of_the_int8_graph(robust, images, tmp_path):
    """BatchNorm scales output channels, and so does rounding per channel: in either order it is the same."""
    save_onnx(robust, tmp_path / "model.onnx")
    to_int8(tmp_path / "model.onnx", images[:64])
    proto = onnx.load(str(tmp_path / "model.onnx"))
    held = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
    feeding = {output: node for node in proto.graph.node for output in node.output}
    graph = [held[feeding[node.input[1]].input[0]] for node in proto.graph.node if node.op_type == "Conv"]
    ours = [module.weight for module in robust.modules() if isinstance(module, torch.nn.Conv2d)]
    assert len(graph) == len(ours) == 4
    for theirs, weight in zip(graph, ours, strict=True):
        step = weight.abs().amax((1, 2, 3), keepdim=True) / 127
        off = np.abs((weight / step).round().numpy() - theirs.astype(np.float32))
        sign = np.abs(-(weight / step).round().numpy() - theirs.astype(np.float32))  # where BatchNorm's scale is < 0
        assert np.minimum(off, sign).max() <= 1  # a tie may fall either way
        assert (np.minimum(off, sign) > 0).mean() < 0.01


@given(
    low=st.floats(-10, 0),
    high=st.floats(0, 10),
    values=st.lists(st.floats(-20, 20, width=32), min_size=1, max_size=50),
)
def test_activations_take_256_values_with_zero_among_them(low, high, values):
    rounding = Rounding()
    rounding.train()
    rounding(torch.tensor([low, high]))
    rounding.eval()
    x = torch.tensor([0.0, *values])
    y = rounding(x)
    step = (rounding.high - rounding.low) / LEVELS
    assert y[0] == 0
    assert len(y.unique()) <= LEVELS + 1
    inside = (x >= rounding.low) & (x <= rounding.high)
    assert ((x - y).abs()[inside] <= step * 1.01 + 1e-6).all()  # half a step, and as much where zero moved the ends
    assert (y >= rounding.low - step - 1e-5).all()
    assert (y <= rounding.high + step + 1e-5).all()


def test_gradients_pass_straight_through_within_the_range_and_stop_outside():
    rounding = Rounding()
    rounding.train()
    rounding(torch.tensor([-1.0, 1.0]))
    rounding.eval()
    x = torch.tensor([-3.0, -0.4, 0.0, 0.7, 3.0], requires_grad=True)
    rounding(x).sum().backward()
    assert x.grad.tolist() == [0, 1, 1, 1, 0]


def test_ranges_follow_the_activations_in_train_mode_only(rounded, images):
    def ranges():
        return torch.stack([module.high for module in rounded.modules() if isinstance(module, Rounding)])

    before = ranges()
    rounded.eval()(images * 0.1)
    assert torch.equal(ranges(), before)
    rounded.train()(images * 0.1)
    assert not torch.equal(ranges(), before)


def test_eight_bits_change_few_decisions(rounded, robust, images):
    agree = (rounded(images).argmax(1) == robust(images).argmax(1)).float().mean()
    assert agree > 0.97


# -- a run -----------------------------------------------------------------------------------------------------


RECIPE = """
name = "tiny-int8"
description = "for tests"
family = "at"
start = "{start}"

[method]
name = "trades"

[train]
epochs = 2
batch_size = 100
images = 500
precision = "fp32"
compile = false
int8 = true

[attack]
step = 0.03
steps = 1

[optimizer]
lr = 0.01

[ema]
recalibrate = 300

[guard]
images = 50
steps = 2
"""


@pytest.fixture
def recipe(robust, tmp_path):
    """A recipe that starts from the robust net, in a folder that training could have left."""
    folder, path = tmp_path / "robust", tmp_path / "tiny.toml"
    folder.mkdir()
    save_weights(robust.state_dict(), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"name": "sturdy", "spec": robust.spec.to_dict()}))
    path.write_text(RECIPE.format(start=folder))
    return path


def test_fine_tuning_starts_from_a_model_takes_its_architecture_and_leaves_one(recipe, robust, world, tmp_path):
    phases = load_phases(recipe)
    assert phases["train"].arch == robust.spec
    left = run(phases, world, tmp_path / "run")["train"]
    model = load(f"local-dir:{left}")
    before, after = robust.state_dict(), model.state_dict()
    assert after.keys() == before.keys()
    moved = (after["head.weight"] - before["head.weight"]).norm() / before["head.weight"].norm()
    assert 0 < moved < 0.5  # it went on from there
    facts = json.loads((left / "config.json").read_text())["train"]
    assert facts["start"]["name"] == "sturdy"
    assert facts["history"][-1]["clean"] > 0.9


def test_an_interrupted_run_goes_on_with_its_ranges(recipe, world, tmp_path):
    whole = run(load_phases(recipe), world, tmp_path / "whole")["train"]

    class Stop(Exception):
        pass

    def stop(phase, step, total, loss):
        if step == 3:  # of six: an epoch is done
            raise Stop

    with pytest.raises(Stop):
        run(load_phases(recipe), world, tmp_path / "parts", tick=stop)
    parts = run(load_phases(recipe), world, tmp_path / "parts", resume=True)["train"]
    assert (whole / "model.safetensors").read_bytes() == (parts / "model.safetensors").read_bytes()


def test_a_start_of_another_architecture_is_refused(recipe, robust, world, tmp_path):
    (settings,) = load_phases(recipe).values()
    other = settings.model_copy(update={"arch": robust.spec.model_copy(update={"stem": 8})})
    with pytest.raises(UsageError, match="another architecture"):
        fit(other, world, tmp_path / "run", start=settings.start)


@pytest.mark.parametrize(("change", "message"), [("train.precision=bf16", "fp32"), ("start=nowhere", "nowhere")])
def test_a_recipe_that_cannot_be_trained_is_refused(recipe, change, message):
    with pytest.raises(ZooError, match=message):
        load_phases(recipe, overrides=[change])
