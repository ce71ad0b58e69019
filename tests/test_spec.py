from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from zoo.models import build
from zoo.specs import AlexNetSpec, MobileNetV2Spec, ResNetSpec, StagedSpec, VGGSpec, WideResNetSpec, cost, parse_spec
from zoo.specs.staged import downsampling
from zoo.system.errors import UsageError

RESOLUTIONS = {32: (32, 17, 16), 17: (17, 9), 16: (16, 8), 9: (9, 5), 8: (8, 4)}


@st.composite
def staged_specs(draw: st.DrawFn) -> StagedSpec:
    widths, resolutions, before = [], [], 32
    for _ in range(draw(st.integers(1, 3))):
        before = draw(st.sampled_from(RESOLUTIONS.get(before, (before,))))
        resolutions.append(before)
        widths.append(tuple(draw(st.lists(st.integers(1, 12), min_size=1, max_size=3))))
    return StagedSpec(
        widths=tuple(widths),
        resolutions=tuple(resolutions),
        stem=draw(st.integers(1, 12)),
        activation=draw(st.sampled_from(("relu", "silu"))),
        shortcuts=draw(st.booleans()),
    )


def counted(spec) -> tuple[int, int]:
    """MACs and parameters of a real forward pass."""
    model = build(spec).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.rand(1, 3, spec.image_size, spec.image_size))
    return counter.get_total_flops() // 2, sum(parameter.numel() for parameter in model.parameters())


@given(staged_specs())
@settings(max_examples=25)
def test_the_analytic_cost_of_any_staged_net_is_what_a_forward_pass_counts(spec):
    assert cost(spec) == counted(spec)


@pytest.mark.parametrize(
    "spec",
    [
        ResNetSpec(),
        ResNetSpec(stem="7x7", image_size=224, classes=100),
        ResNetSpec(depth=34, classes=100),
        ResNetSpec(depth=50),
        ResNetSpec(depth=50, stem="7x7", image_size=96, classes=9),
        *(VGGSpec(depth=depth) for depth in (11, 13, 16, 19)),
        VGGSpec(depth=11, image_size=72, classes=9),
        AlexNetSpec(classes=9),
        AlexNetSpec(image_size=63),
        WideResNetSpec(depth=16, widen=1),
        WideResNetSpec(depth=10, widen=4),
        MobileNetV2Spec(),
        MobileNetV2Spec(width_mult=0.35, classes=100),
    ],
)
def test_the_analytic_cost_of_the_published_nets_is_what_a_forward_pass_counts(spec):
    assert cost(spec) == counted(spec)


@given(staged_specs())
@settings(max_examples=50)
def test_a_spec_survives_json_and_hashes_alike(spec):
    again = parse_spec(spec.model_dump_json())
    assert again == spec
    assert hash(again) == hash(spec)
    assert parse_spec(spec.to_dict()) == spec


def test_a_spec_cannot_be_changed():
    with pytest.raises(ValueError, match="frozen"):
        ResNetSpec().classes = 3


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ({"arch": "inception"}, r"no architecture is called 'inception' \(known: staged, "),
        ({"arch": "resnett"}, "did you mean 'resnet'"),
        ({"depth": 18}, r"has no 'arch' \(known: staged, "),
        ({"arch": "wideresnet", "depth": 35}, "6n \\+ 4"),
        ({"arch": "staged", "widths": [[8]], "resolutions": [31]}, "resolution 32 to 31"),
        ({"arch": "staged", "widths": [[8], []], "resolutions": [16, 8]}, "at least one block"),
        ({"arch": "staged", "widths": [[8]], "resolutions": [16, 8]}, "as many resolutions"),
        ({"arch": "staged", "widths": [[0]], "resolutions": [16]}, "widths"),
        ({"arch": "resnet", "colour": 1}, "colour"),
        ({"arch": "resnet", "depth": 20}, "depth"),
        ({"arch": "vgg", "image_size": 16}, "image_size"),
        ("{", "not JSON"),
    ],
)
def test_a_bad_spec_is_refused_with_the_place_and_the_reason(data, says):
    with pytest.raises(UsageError, match=says):
        parse_spec(data)


def test_every_reachable_resolution_is_reached():
    for before in (32, 17, 16, 9, 8):
        for after in RESOLUTIONS[before]:
            stride, padding = downsampling(before, after)
            conv = torch.nn.Conv2d(1, 1, 3, stride, padding)
            assert conv(torch.zeros(1, 1, before, before)).shape[-1] == after


def test_normalisation_is_inside_the_model():
    model = build(StagedSpec(widths=((4,),), resolutions=(16,))).eval()
    x = torch.rand(2, 3, 32, 32)
    features = model.features((x - model.mean) / model.std)
    assert torch.equal(model(x), model.head(features))
    assert "mean" not in model.state_dict()


def test_shortcuts_cost_nothing_and_change_the_output():
    widths, resolutions = ((8, 8, 6, 10),), (16,)
    with_them = StagedSpec(widths=widths, resolutions=resolutions)
    without = with_them.model_copy(update={"shortcuts": False})
    assert cost(with_them) == cost(without)
    one, other = build(with_them).eval(), build(without).eval()
    other.load_state_dict(one.state_dict())
    x = torch.rand(1, 3, 32, 32)
    assert not torch.allclose(one(x), other(x))
