from __future__ import annotations

import pytest
import torch

from zoo.models import build
from zoo.specs import MobileNetV2Spec, ResNetSpec, StagedSpec, WideResNetSpec
from zoo.system.errors import UsageError
from zoo.train.teachers.attention import attention_map, unit_maps
from zoo.train.teachers.hooks import Taps, conv_names
from zoo.train.teachers.teacher import Teacher
from zoo.weights.load import load

STAGED = StagedSpec(widths=((4, 6), (8,)), resolutions=(16, 8), stem=4)
CPU = torch.device("cpu")


def images(n: int = 2, size: int = 32) -> torch.Tensor:
    return torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(0))


def activations(net: torch.nn.Module, x: torch.Tensor) -> dict[str, torch.Tensor]:
    """The output of every convolution, by name, found by other means than the taps'."""
    found: dict[str, torch.Tensor] = {}
    forward, names = torch.nn.Conv2d.forward, {module: name for name, module in net.named_modules()}

    def spying(self: torch.nn.Conv2d, z: torch.Tensor) -> torch.Tensor:
        found[names[self]] = forward(self, z)
        return found[names[self]]

    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(torch.nn.Conv2d, "forward", spying)
        net(x)
    return found


# -- taps --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "spec",
    [ResNetSpec(), WideResNetSpec(depth=10, widen=2), MobileNetV2Spec(width_mult=0.25), STAGED],
    ids=lambda spec: spec.arch,
)
def test_every_convolution_of_every_family_is_tapped_and_its_map_is_that_of_its_activation(spec):
    net, x = build(spec).eval(), images()
    taps = Taps(net)
    assert len(taps.names) == sum(conv.norm or not conv.bias for conv in spec.convs())  # all but the linear head
    with torch.no_grad(), taps.recording():
        net(x)
    expected = activations(net, x)
    assert set(expected) == set(taps.names)
    for name, one in zip(taps.names, taps.maps(), strict=True):
        assert torch.equal(one, attention_map(expected[name])), name


def test_names_are_in_forward_order():
    net = build(STAGED)
    assert conv_names(net) == list(activations(net, images())) == [f"features.{i}.conv" for i in range(4)]


def test_chosen_layers_come_in_the_order_asked_for():
    net, x = build(STAGED).eval(), images()
    taps = Taps(net, ["features.3.conv", "features.0.conv"])
    with torch.no_grad(), taps.recording():
        net(x)
    assert [one.shape for one in taps.maps()] == [(2, 8, 8), (2, 32, 32)]


def test_nothing_is_kept_outside_recording_and_the_model_is_as_it_was():
    net, x = build(STAGED).eval(), images()
    before, state = net(x), {key: value.clone() for key, value in net.state_dict().items()}
    taps = Taps(net)
    assert torch.equal(net(x), before)
    with pytest.raises(KeyError):
        taps.maps()
    with taps.recording():
        assert torch.equal(net(x), before)
    assert net.state_dict().keys() == state.keys()
    assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())


def test_a_pass_replaces_the_maps_of_the_one_before_and_they_are_handed_out_once():
    net, x = build(STAGED).eval(), images()
    taps = Taps(net)
    with torch.no_grad(), taps.recording():
        net(torch.zeros_like(x))
        net(x)
    net(torch.ones_like(x))  # not recorded
    assert torch.equal(taps.maps()[0], attention_map(activations(net, x)["features.0.conv"]))
    with pytest.raises(KeyError):
        taps.maps()


def test_an_unknown_layer_is_refused_with_the_nearest_named():
    with pytest.raises(UsageError, match=r"no convolution 'features\.2\.bn'; did you mean 'features\.2\.conv'"):
        Taps(build(STAGED), ["features.2.bn"])


@pytest.mark.slow
def test_a_compiled_network_gives_the_same_maps_and_gradients_and_only_while_recording():
    torch._dynamo.reset()
    torch.manual_seed(0)
    net, x = build(STAGED), images()
    twin = build(STAGED)
    twin.load_state_dict(net.state_dict())
    taps, expected = Taps(net), Taps(twin)
    net.compile(dynamic=False)
    for _ in range(2):
        net(x)
        twin(x)
        with pytest.raises(KeyError):
            taps.maps()
        for one, those in ((net, taps), (twin, expected)):
            with those.recording():
                one(x)
        maps, eager = taps.maps(), expected.maps()
        for a, b in zip(maps, eager, strict=True):
            assert torch.allclose(a, b, rtol=1e-4, atol=1e-5)
        sum(one.mean() for one in maps).backward()
        sum(one.mean() for one in eager).backward()
    for a, b in zip(net.parameters(), twin.parameters(), strict=True):
        expected_gradient = torch.zeros_like(b) if b.grad is None else b.grad  # compiled, what is not used gets zeros
        gradient = torch.zeros_like(a) if a.grad is None else a.grad
        assert torch.allclose(gradient, expected_gradient, rtol=1e-3, atol=1e-4)


# -- the teacher -------------------------------------------------------------------------------------------------


def test_an_answer_is_the_loaded_models_with_the_unit_maps_of_the_named_layers_only(teacher_folder):
    model, x = load(f"local-dir:{teacher_folder}"), images()
    teacher = Teacher(str(teacher_folder), CPU, size=8)
    assert teacher(x).maps is None
    assert teacher.layers == conv_names(model)
    layers = [teacher.layers[3], teacher.layers[1]]
    teacher.tap(layers)
    answer = teacher(x)
    assert torch.allclose(answer.logits, model(x), atol=1e-5)  # channels last adds in another order
    found = activations(model, x)
    assert torch.allclose(answer.maps, unit_maps([attention_map(found[layer]) for layer in layers], 8), atol=1e-6)
    with pytest.raises(UsageError, match="no convolution"):
        teacher.tap(["features.9.conv"])


def test_a_teacher_is_in_eval_mode_without_gradients_and_never_changes(teacher_folder):
    teacher, x = Teacher(str(teacher_folder), CPU), images().requires_grad_()
    teacher.tap(teacher.layers)
    before = {key: value.clone() for key, value in teacher.model.state_dict().items()}
    answer = teacher(x)
    assert not teacher.model.training
    assert not any(parameter.requires_grad for parameter in teacher.model.parameters())
    assert not answer.logits.requires_grad
    assert not answer.maps.requires_grad
    assert all(torch.equal(value, before[key]) for key, value in teacher.model.state_dict().items())


def test_an_answer_is_float32_under_autocast(teacher_folder):
    teacher = Teacher(str(teacher_folder), CPU)
    teacher.tap(teacher.layers)
    with torch.autocast("cpu", torch.bfloat16):
        answer = teacher(images())
    assert answer.logits.dtype == answer.maps.dtype == torch.float32
    assert torch.allclose(answer.maps, teacher(images()).maps, atol=0.02)


@pytest.mark.slow
def test_a_compiled_teacher_gives_the_same_answer(teacher_folder):
    torch._dynamo.reset()
    answers = []
    for compile in (False, True):
        teacher = Teacher(str(teacher_folder), CPU, compile=compile)
        teacher.tap(teacher.layers)
        answers.append(teacher(images()))
    assert torch.allclose(answers[0].logits, answers[1].logits, rtol=1e-4, atol=1e-4)
    assert torch.allclose(answers[0].maps, answers[1].maps, atol=1e-4)
