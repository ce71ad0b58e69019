"""A copy in bfloat16 says where an attack goes next; the model itself says what is broken."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sturdy import pictures, trained
from torch import nn

from zoo.attacks import apgd, autoattack, broken, fab_targeted, mifgsm, pgd, pgd_targeted, square
from zoo.attacks.foresight import Foresight
from zoo.attacks.guide import Guided, Rough, fast_bf16
from zoo.attacks.losses import ascend, cross_entropy, estimate, margin
from zoo.evaluation import directions
from zoo.evaluation.evaluate import evaluate, prepare
from zoo.evaluation.measure import measure
from zoo.evaluation.protocols import protocol
from zoo.train.run.precision import precision_on

EPS = 30 / 255  # breaks about half of the images


@pytest.fixture(scope="module")
def net() -> nn.Module:
    return trained(robustly=True)


@pytest.fixture(scope="module")
def shown():
    return pictures(200, seed=2)


@pytest.fixture
def here(monkeypatch) -> None:
    """A device with instructions for bfloat16, on which nets of any size gain from them."""
    monkeypatch.setattr(directions, "fast_bf16", lambda device: True)
    monkeypatch.setattr(directions, "WORTH", 0)


class Plus(nn.Module):
    """Logits of images of one pixel: its value, 0, and what ``off`` adds to the first."""

    def __init__(self, off: float) -> None:
        super().__init__()
        self.off = off

    def forward(self, x):
        z = x.flatten(1)[:, :1] - 0.5
        return torch.cat([z + self.off * torch.sin(1000 * z), torch.zeros_like(z)], 1)


@given(st.lists(st.floats(0, 1, width=32), min_size=1, max_size=9), st.floats(0, 0.2))
def test_what_is_broken_is_what_the_model_gets_wrong_however_far_off_the_guide_is_within_its_slack(values, off):
    x, y = torch.tensor(values)[:, None, None, None], torch.zeros(len(values), dtype=torch.long)
    model = Guided(Plus(0), Plus(off), slack=off)
    expected = broken(model.exact(x), y)
    assert torch.equal(broken(ascend(model, x, cross_entropy, y)[0], y), expected)
    assert torch.equal(broken(estimate(model, x, y), y), expected)


def test_the_model_is_asked_wherever_the_guide_is_not_sure_that_it_is_right():
    x, y = torch.tensor([0.0, 0.4, 0.6, 1.0])[:, None, None, None], torch.zeros(4, dtype=torch.long)
    asked = []

    class Exact(Plus):
        def forward(self, x):
            asked.extend(x.flatten().tolist())
            return super().forward(x)

    for off, wanted in ((0, {0.0, 0.4, 0.6}), (torch.nan, {0.0, 0.4, 0.6, 1.0})):
        asked.clear()
        estimate(Guided(Exact(0), Plus(off), slack=0.2), x, y)
        assert {round(one, 3) for one in asked} == wanted


@pytest.mark.parametrize("attack", [pgd, pgd_targeted, mifgsm, apgd, fab_targeted, square, autoattack])
def test_an_attack_with_a_guide_breaks_about_as_many_images(attack, net, shown, here):
    images, labels = shown
    x = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    y = torch.from_numpy(labels)
    model = prepare(net).eval()
    guided = directions.guided(model, x[:64], y[:64])
    assert isinstance(guided, Guided)
    options = {"steps": 10, "targets": 2, "queries": 150}
    taken = {key: value for key, value in options.items() if key in attack.__wrapped__.__kwdefaults__}
    with torch.no_grad():
        alone, led = (broken(model(attack(one, x, y, eps=EPS, **taken)), y) for one in (model, guided))
    assert alone.any()
    assert abs(int(alone.sum()) - int(led.sum())) <= 5


def test_the_gradient_is_the_guides():
    seen = []

    class Counted(Plus):
        def forward(self, x):
            seen.append(x.requires_grad)
            return super().forward(x)

    x, y = torch.full((3, 1, 1, 1), 0.9), torch.zeros(3, dtype=torch.long)
    guide = Plus(0.0)
    ascend(Guided(Counted(0), guide, 0.1), x, cross_entropy, y)
    assert seen == []  # all is clear
    ascend(Guided(Counted(0), guide, 0.5), x, cross_entropy, y)
    assert seen == [False]  # asked for its decision alone


class Seen(nn.Module):
    """``model`` that counts the images that it is asked about; its logits times ``sign``."""

    def __init__(self, model: nn.Module, sign: int = 1) -> None:
        super().__init__()
        self.model, self.sign, self.images = model, sign, 0

    def forward(self, x):
        self.images += len(x)
        return self.sign * self.model(x)


def test_autoattack_takes_its_directions_from_the_guide(net, shown):
    images, labels = shown
    x, y = torch.from_numpy(images[:16]).permute(0, 3, 1, 2).float() / 255, torch.from_numpy(labels[:16])
    exact, guide = Seen(prepare(net)).eval(), Seen(prepare(net)).eval()
    counts = {"steps": 8, "targets": 2, "queries": 2}
    autoattack(Guided(exact, guide, 0.0).eval(), x, y, eps=2 / 255, **counts)
    assert guide.images >= 16 * 8 * 3  # all steps of APGD
    autoattack(alone := Seen(prepare(net)).eval(), x, y, eps=2 / 255, **counts)
    assert exact.images < alone.images - 16 * 8 * 2


@pytest.mark.parametrize(("norm", "most"), [("linf", 0.7), ("l2", 0.85)])
def test_a_guide_saves_square_queries_and_leads_it_as_far(norm, most, net, shown):
    images, labels = shown
    x, y = torch.from_numpy(images[:32]).permute(0, 3, 1, 2).float() / 255, torch.from_numpy(labels[:32])
    alone, exact = Seen(prepare(net)).eval(), Seen(prepare(net)).eval()
    terms = {"eps": 8 / 255 if norm == "linf" else 0.5, "norm": norm, "queries": 400}
    start = margin(alone.model(x), y)
    far, led = (
        (start - margin(alone.model(square(one, x, y, **terms)), y)).mean()
        for one in (alone, Guided(exact, Rough(exact.model).eval(), 0.1).eval())
    )
    assert led > 0.97 * far
    assert exact.images < most * alone.images


def test_a_guide_with_the_wrong_gradient_misleads_square_only_for_a_while(net, shown):
    images, labels = shown
    x, y = torch.from_numpy(images[:16]).permute(0, 3, 1, 2).float() / 255, torch.from_numpy(labels[:16])
    model = prepare(net).eval()
    start, terms = margin(model(x), y), {"eps": 8 / 255, "queries": 600}
    far, misled = (
        (start - margin(model(square(one, x, y, **terms)), y)).mean()
        for one in (model, Guided(model, Seen(model, sign=-1), 0.1).eval())
    )
    assert misled > 0.8 * far


@settings(max_examples=30)
@given(st.integers(0, 1000))
def test_where_the_guide_is_right_what_is_left_out_would_raise_the_margin(seed):
    torch.manual_seed(seed)
    linear = nn.Sequential(nn.Flatten(), nn.Linear(27, 2)).eval().requires_grad_(False)
    best, candidate, y = torch.rand(99, 3, 3, 3), torch.rand(99, 3, 3, 3), torch.randint(0, 2, (99,))
    foresight = Foresight(Guided(linear, linear, 0.0), 99, best.device)
    assert foresight.worthwhile(candidate, best) is None  # nothing is known yet
    foresight.learn(torch.zeros(99, dtype=torch.bool), None, best, y)
    worthwhile = foresight.worthwhile(candidate, best)
    assert (margin(linear(candidate), y) > margin(linear(best), y))[~worthwhile].all()
    assert 0 < worthwhile.sum() < 99


def test_evaluation_says_that_it_used_a_guide_and_can_do_without(net, shown, here):
    images, labels = shown
    few, notes = protocol("pgd20").model_copy(update={"n": 200, "eps": EPS, "step": EPS / 4}), {}
    led = evaluate(net, images, labels, few, notes=notes)
    assert notes == {"directions": "bf16"}
    alone = evaluate(net, images, labels, few, notes=(none := {}), directions="fp32")
    assert none == {}
    assert np.sum(led != alone) <= 2
    assert 0 < led.sum() < 200


def test_square_has_no_guide_where_the_gradients_of_the_attack_turned_out_wrong(net, shown, here, monkeypatch):
    module, led = sys.modules["zoo.evaluation.evaluate"], []
    true = module.perturb
    monkeypatch.setattr(module, "perturb", lambda p, m, *a, **b: led.append((p.attack, type(m))) or true(p, m, *a, **b))
    monkeypatch.setattr(module, "wrong_gradient", lambda model, x, y: torch.ones_like(y, dtype=torch.bool))
    monkeypatch.setitem(module.SQUARE, "queries", 2)
    evaluate(net, *shown, protocol("pgd20").model_copy(update={"n": 32, "steps": 2}), flags=(flags := set()))
    assert flags == {"masked"}
    assert led[0] == ("pgd", Guided)
    assert led[-1][0] == "square"
    assert led[-1][1] is not Guided


@pytest.mark.parametrize("attack", ["none", "uniform", "fab-t", "deepfool"])
def test_an_attack_without_use_for_a_guide_has_none(attack, net, shown, here):
    few = protocol("clean").model_copy(update={"n": 8, "attack": attack, "eps": EPS})
    evaluate(net, *shown, few, notes=(notes := {}))
    assert notes == {}


def test_a_gpu_computes_in_float32_under_attack(net, shown, monkeypatch):
    seen = []
    module = sys.modules["zoo.evaluation.evaluate"]
    true = module.perturb
    monkeypatch.setattr(
        module, "perturb", lambda *a, **b: seen.append(torch.backends.cudnn.allow_tf32) or true(*a, **b)
    )
    evaluate(net, *shown, protocol("fgsm").model_copy(update={"n": 8}))
    assert seen == [False]
    assert torch.backends.cudnn.allow_tf32


def test_attacks_at_the_same_time_leave_the_gpu_as_it_was(net, shown):
    few = protocol("fgsm").model_copy(update={"n": 8})
    with ThreadPoolExecutor(4) as pool:
        runs = [pool.submit(evaluate, net, *shown, few) for _ in range(8)]
        assert len({one.result().tobytes() for one in runs}) == 1
    assert torch.backends.cudnn.allow_tf32


def test_a_result_names_its_directions(net, toy, here, monkeypatch):
    few = protocol("pgd20").model_copy(update={"n": 64, "steps": 2})
    (with_guide,) = measure(net, "0" * 64, toy, [few])
    (without,) = measure(net, "0" * 64, toy, [few], directions="fp32")
    assert with_guide.result["toolchain"]["directions"] == "bf16"
    assert "directions" not in without.result["toolchain"]


@pytest.mark.parametrize("spoiled", ["weights of float64", "a guide that differs", "gradients that differ", "NaN"])
def test_a_guide_that_is_not_close_is_not_used(spoiled, net, shown, here, monkeypatch):
    images, labels = shown
    x, y = torch.from_numpy(images[:64]).permute(0, 3, 1, 2).float() / 255, torch.from_numpy(labels[:64])
    model = prepare(net).eval()

    class Spoiled(Rough):
        def forward(self, x):
            z = super().forward(x)
            if spoiled == "NaN":
                return z * torch.nan
            if spoiled == "gradients that differ":
                return z + (x - x.detach()).sum((1, 2, 3))[:, None] * torch.arange(z.shape[1])
            return z + torch.arange(z.shape[1])

    if spoiled == "weights of float64":
        model, x = model.double(), x.double()
    else:
        monkeypatch.setattr(directions, "Rough", Spoiled)
    assert directions.guided(model, x, y) is model


def test_a_small_net_or_a_processor_without_instructions_has_no_guide(net, shown, monkeypatch):
    images, labels = shown
    x, y = torch.from_numpy(images[:8]).permute(0, 3, 1, 2).float() / 255, torch.from_numpy(labels[:8])
    model = prepare(net).eval()
    monkeypatch.setattr(directions, "fast_bf16", lambda device: True)
    assert directions.guided(model, x, y) is model
    monkeypatch.setattr(directions, "WORTH", 0)
    monkeypatch.setattr(directions, "fast_bf16", lambda device: False)
    assert directions.guided(model, x, y) is model


@pytest.mark.parametrize(("capability", "fast"), [("avx512_bf16", True), ("avx2", False)])
def test_processors_with_instructions_for_bfloat16(capability, fast, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {capability: True})
    assert fast_bf16(torch.device("cpu")) == fast
    assert precision_on(torch.device("cpu"), "auto") == ("bf16" if fast else "fp32")
