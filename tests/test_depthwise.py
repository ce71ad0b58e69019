"""Strided depthwise convolutions whose gradient is fast compute what they did before."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from zoo.attacks.guide import Rough
from zoo.models import build
from zoo.models.depthwise import Thinned, thin
from zoo.specs import MobileNetV2Spec
from zoo.train.recipes.phases import load_recipe
from zoo.train.run.trainer import Trainer


@settings(max_examples=60)
@given(
    st.integers(1, 9), st.integers(1, 9), st.sampled_from([1, 3, 5]), st.tuples(st.integers(1, 3), st.integers(1, 3)),
    st.integers(0, 3), st.integers(1, 2), st.booleans(),
)  # fmt: skip
def test_it_computes_what_the_convolution_does_and_so_do_its_gradients(h, w, kernel, stride, padding, dilation, bias):
    reach = dilation * (kernel - 1) + 1
    h, w = h + reach, w + reach
    torch.manual_seed(0)
    conv = nn.Conv2d(4, 8, kernel, stride, padding, dilation, groups=4, bias=bias)
    x = torch.rand(2, 4, h, w, requires_grad=True)
    inputs = [x, *conv.parameters()]
    expected = conv(x)
    weights = torch.rand_like(expected)
    gradients = torch.autograd.grad((expected * weights).sum(), inputs)
    thin(conv)
    assert isinstance(conv, Thinned) == (max(stride) > 1)
    found = conv(x)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    for ours, true in zip(torch.autograd.grad((found * weights).sum(), inputs), gradients, strict=True):
        torch.testing.assert_close(ours, true, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(4, 4, 3, 2),
        nn.Conv2d(4, 4, 3, 2, groups=2),
        nn.Conv2d(1, 4, 3, 2),
        nn.Conv2d(4, 4, 3, 2, 1, groups=4, padding_mode="reflect"),
    ],
)
def test_other_convolutions_stay_as_they_are(conv):
    assert type(thin(conv)) is nn.Conv2d


def test_the_copy_that_gives_directions_has_them_and_the_model_does_not():
    model = build(MobileNetV2Spec(width_mult=0.1)).eval()
    state, rough = list(model.state_dict()), Rough(model)
    assert [m for m in rough.modules() if isinstance(m, Thinned)]
    assert not [m for m in model.modules() if isinstance(m, Thinned)]
    assert list(rough.net.state_dict()) == state


@pytest.mark.parametrize(("precision", "thinned"), [("bf16", True), ("fp32", False)])
def test_training_in_bfloat16_on_a_cpu_has_them(precision, thinned, toy):
    recipe = load_recipe("pgd-at-mobilenetv2", preset="smoke", overrides=[f"train.precision={precision}"])
    trainer = Trainer(recipe, toy)
    for net in (trainer.net, trainer.ema.module):
        assert any(isinstance(module, Thinned) for module in net.modules()) == (
            thinned and trainer.device.type == "cpu"
        )
    assert trainer.net.state_dict().keys() == build(recipe.arch).state_dict().keys()
