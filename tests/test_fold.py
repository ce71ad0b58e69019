from __future__ import annotations

import copy

import pytest
import torch
from test_spec import counted
from torch import nn
from torch.nn.utils import parametrizations

from zoo.evaluation.evaluate import prepare
from zoo.models import ARCHS, build
from zoo.models.classifier import GlobalAveragePool
from zoo.models.fold import fold_batchnorm
from zoo.specs import AlexNetSpec, MobileNetV2Spec, ResNetSpec, StagedSpec, VGGSpec, WideResNetSpec, cost, parse_spec

SPECS = {
    "staged": StagedSpec(widths=((8, 12), (16,), (16,)), resolutions=(16, 8, 4), stem=8),
    "staged-silu": StagedSpec(widths=((8,), (16, 12)), resolutions=(16, 8), stem=8, activation="silu"),
    "resnet": ResNetSpec(),
    "resnet at 64 pixels": ResNetSpec(stem="7x7", image_size=64),
    "resnet of bottleneck blocks": ResNetSpec(depth=50),
    "vgg": VGGSpec(depth=11),
    "alexnet": AlexNetSpec(image_size=64),
    "wideresnet": WideResNetSpec(depth=16, widen=1),
    "mobilenetv2": MobileNetV2Spec(width_mult=0.25),
    "bottleneck": parse_spec(
        {
            "arch": "bottleneck",
            "stem": {"mid": 8, "out": 8},
            "stages": [{"width": 16, "hidden": [8, 8], "stride": 1}, {"width": 24, "hidden": [8], "stride": 2}],
        }
    ),
    "mobilenetv3": parse_spec(
        {
            "arch": "mobilenetv3",
            "stem": 8,
            "stages": [
                {"width": 8, "blocks": [{"kernel": 3, "hidden": 16}], "stride": 1, "activation": "relu", "se": False},
                {"width": 16, "blocks": [{"kernel": 5, "hidden": 24}] * 2, "stride": 2}
                | {"activation": "hardswish", "se": True},
            ],
            "last": 32,
            "mix": 32,
        }
    ),
}
# BatchNorms that follow no convolution stay. In a pre-activation net: one a block, and the last.
LEFT = {"wideresnet": 6 + 1}
WITHOUT = {"alexnet"}  # BatchNorm


def lived_in(model: nn.Module) -> nn.Module:
    """Give every BatchNorm statistics and an affine map as if it had been trained."""
    generator = torch.Generator().manual_seed(3)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor, low, high in (
                (module.weight, 0.5, 1.5),
                (module.bias, -0.3, 0.3),
                (module.running_mean, -0.3, 0.3),
                (module.running_var, 0.5, 2.0),
            ):
                tensor.data.uniform_(low, high, generator=generator)
    return model


def norms(model: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())


@pytest.fixture(params=SPECS, scope="module")
def family(request):
    torch.manual_seed(0)
    return request.param, lived_in(build(SPECS[request.param])).eval()


def test_every_family_is_here():
    assert {*ARCHS} <= {spec.arch for spec in SPECS.values()}, "add a small spec of the new family to SPECS above"


def test_a_family_is_what_its_spec_says_and_costs_what_a_forward_pass_counts(family):
    _, model = family
    assert parse_spec(model.spec.to_dict()) == model.spec
    assert cost(model.spec) == counted(model.spec)


def test_folding_keeps_the_logits(family):
    _, model = family
    size = model.spec.image_size
    x = torch.rand(4, 3, size, size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected, actual = model(x), fold_batchnorm(model)(x)
    assert expected.std() > 1e-3  # else everything agrees
    assert torch.allclose(actual, expected, atol=1e-5 * max(1.0, float(expected.abs().max())), rtol=0)


def test_only_norms_that_follow_no_convolution_are_left(family):
    name, model = family
    assert (norms(model) > 0) == (name not in WITHOUT)
    assert norms(fold_batchnorm(model)) == LEFT.get(name, 0)


def test_the_model_itself_is_left_alone(family):
    _, model = family
    model = copy.deepcopy(model).train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    folded = fold_batchnorm(model)
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert not any(module.training for module in folded.modules())
    assert not any(parameter.requires_grad for parameter in folded.parameters())
    assert folded.spec == model.spec


def test_a_norm_stays_if_its_convolution_has_a_second_reader():
    """The stem of a WideResNet feeds the first norm and the shortcut around it."""
    model = lived_in(build(WideResNetSpec(depth=10, widen=1))).eval()
    assert isinstance(fold_batchnorm(model).features[1].bn1, nn.BatchNorm2d)


def test_unknown_modules_are_copied_unchanged():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.bn = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

        def forward(self, x):
            y = self.conv(x)
            return self.bn(y) + y

    model = lived_in(Odd()).eval()
    x = torch.rand(2, 3, 8, 8)
    assert torch.equal(fold_batchnorm(model)(x), model(x))


class Standardised(nn.Conv2d):
    def forward(self, x):
        flat = self.weight.flatten(1)
        weight = (self.weight - flat.mean(1)[:, None, None, None]) / flat.std(1)[:, None, None, None]
        return nn.functional.conv2d(x, weight, self.bias, self.stride, self.padding)


class Residual(nn.Sequential):
    def forward(self, x):
        return super().forward(x) + self[0](x)


def shared_activation() -> nn.Module:
    """Convolution, ReLU, BatchNorm: the ReLU is one object, and only its first place has a name of its own."""
    act = nn.ReLU()
    return nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), act, nn.Conv2d(6, 6, 3), act, nn.BatchNorm2d(6))


def hooked() -> nn.Module:
    conv = nn.Conv2d(3, 6, 3)
    conv.register_forward_hook(lambda module, inputs, output: output.relu())
    return nn.Sequential(conv, nn.BatchNorm2d(6))


ODD = {
    "a shared activation": shared_activation,
    "standardised weights": lambda: nn.Sequential(Standardised(3, 6, 3), nn.BatchNorm2d(6)),
    "a Sequential of its own": lambda: Residual(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6)),
    "a hook": hooked,
    "spectral_norm": lambda: nn.Sequential(parametrizations.spectral_norm(nn.Conv2d(3, 6, 3)), nn.BatchNorm2d(6)),
    "old spectral_norm": lambda: nn.Sequential(nn.utils.spectral_norm(nn.Conv2d(3, 6, 3)), nn.BatchNorm2d(6)),
    "weight_norm": lambda: nn.Sequential(parametrizations.weight_norm(nn.Conv2d(3, 6, 3)), nn.BatchNorm2d(6)),
    "old weight_norm": lambda: nn.Sequential(nn.utils.weight_norm(nn.Conv2d(3, 6, 3)), nn.BatchNorm2d(6)),
    "no running statistics": lambda: nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6, track_running_stats=False)),
}


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize("make", ODD.values(), ids=ODD)
def test_what_is_not_a_plain_convolution_and_a_plain_norm_keeps_its_logits(make):
    torch.manual_seed(0)
    net = make()
    for norm in (module for module in net.modules() if isinstance(module, nn.BatchNorm2d)):
        nn.init.uniform_(norm.bias, -1, 1)
        if norm.running_mean is not None:
            norm.running_mean.uniform_(-0.5, 0.5)
    model = nn.Sequential(net, nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    x = torch.rand(4, 3, 12, 12)
    expected = model(x)  # it has been called before, so that some keep the result of that
    folded = fold_batchnorm(model, x)
    torch.testing.assert_close(folded(x), expected, rtol=1e-4, atol=1e-4)
    assert not any(parameter.requires_grad for parameter in folded.parameters())


def test_a_wrong_fold_is_found_by_its_logits(monkeypatch):
    model = lived_in(build(SPECS["staged"])).eval()
    monkeypatch.setattr("zoo.models.fold.fuse_conv_bn_eval", lambda conv, norm: conv)
    x = torch.rand(2, 3, 32, 32)
    assert torch.equal(fold_batchnorm(model)(x), model(x))
    assert norms(fold_batchnorm(model)) == norms(model)


@pytest.mark.parametrize("hook", [None, lambda module, inputs, output: output.sign()])
def test_what_is_attacked_keeps_its_logits_and_has_gradients_in_channels_last(hook):
    model = lived_in(build(SPECS["staged"])).eval()
    pool = next(module for module in model.modules() if isinstance(module, GlobalAveragePool))
    if hook:
        pool.register_forward_hook(hook)
    seen, prepared = [], prepare(model)
    prepared.features[-2].register_full_backward_hook(lambda module, given, wanted: seen.append(wanted[0]))
    x = torch.rand(4, 3, 32, 32, requires_grad=True)
    z = prepared(x)
    torch.testing.assert_close(z, model(x), rtol=1e-4, atol=1e-4)
    z.sum().backward()
    assert seen[0].is_contiguous(memory_format=torch.channels_last) or hook
