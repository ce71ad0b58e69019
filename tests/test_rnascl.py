"""The search of RNAS-CL: its spaces, its Gumbel choices, the supernet, the search itself. Phases: test_pipeline.py."""

from __future__ import annotations

import itertools
import json
import math
import os
import signal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from zoo.models import build
from zoo.specs import cost
from zoo.system.errors import UsageError
from zoo.train.recipes.schema import parse_recipe
from zoo.train.rnascl.gumbel import gumbel_softmax, temperature
from zoo.train.rnascl.search import CHOICES, WEIGHTS, Searcher
from zoo.train.rnascl.supernet import SuperNet, expected_macs, most_probable
from zoo.train.run.loop import Interrupted, fit
from zoo.train.spaces.rnascl import SPACES, SearchSpace, search_space
from zoo.train.teachers.attention import attention_loss

TINY = SearchSpace("tiny", (2, 1), ((8, 6, 2), (12, 4)), (16, 8), stem_resolution=16, stem=4)
BUDGET = 180_000  # of 59,944 to 304,248
EPOCH = 10  # steps


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    monkeypatch.setitem(SPACES, "tiny", TINY)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# -- spaces ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "macs", "params"),
    [("s3", 6.64, 0.11), ("s5", 11.02, 0.21), ("s7", 15.58, 0.32), ("m", 263, 2.2), ("l", 1043, 8.6), ("i", 233, 2.3)],
)
def test_the_largest_networks_cost_what_the_paper_says_or_what_is_stated_beside_it(name, macs, params):
    largest = cost(search_space(name).largest)
    assert largest.macs / 1e6 == pytest.approx(macs, rel=0.025)
    assert largest.params / 1e6 == pytest.approx(params, abs=0.05)


def test_a_space_knows_its_blocks_its_size_and_its_ends():
    assert TINY.blocks == ((8, 6, 2), (8, 6, 2), (12, 4))
    assert TINY.size == 18
    assert TINY.largest.widths == ((8, 8), (12,))
    assert TINY.smallest.widths == ((2, 2), (4,))
    assert search_space("s7").size == 2**7 * 4**14


def test_what_is_not_in_a_space_is_refused():
    with pytest.raises(UsageError, match="did you mean 's7'"):
        search_space("s77")
    with pytest.raises(UsageError, match="block 1 of space tiny cannot be 12"):
        TINY.spec([8, 12, 12])
    with pytest.raises(UsageError, match="3 blocks: 2 widths"):
        TINY.spec([8, 8])


# -- Gumbel-softmax ----------------------------------------------------------------------------------------------


def test_gumbel_weights_are_one_hot_where_tau_vanishes_and_flat_where_it_is_large():
    v = torch.zeros(500, 5)
    cold, hot = (gumbel_softmax(v, tau, generator=seeded()) for tau in (1e-4, 1e4))
    assert torch.allclose(cold.amax(-1), torch.ones(500), atol=1e-3)
    assert torch.allclose(hot, torch.full((500, 5), 0.2), atol=1e-3)


@pytest.mark.parametrize("tau", [0.1, 5.0])
def test_the_largest_gumbel_weight_is_a_sample_of_the_softmax_and_with_normal_noise_it_is_not(tau):
    v, n = torch.tensor([2.0, 0.0, -1.0, 1.0]), 100_000
    frequencies = {
        noise: gumbel_softmax(v.expand(n, 4), tau, noise=noise, generator=seeded(1)).argmax(1).bincount(minlength=4) / n
        for noise in ("gumbel", "normal")
    }
    p = v.softmax(0)
    tolerance = 4 * (p * (1 - p) / n).sqrt()  # four standard errors
    assert ((frequencies["gumbel"] - p).abs() < tolerance).all()
    assert (frequencies["normal"] - p).abs().max() > 0.05


def test_equal_generators_draw_equal_weights_and_gradients_reach_the_logits():
    v = torch.randn(3, 4, generator=seeded()).requires_grad_()
    one, two = (gumbel_softmax(v, 0.5, generator=seeded(9)) for _ in range(2))
    assert torch.equal(one, two)
    one[:, 0].sum().backward()
    assert v.grad is not None
    assert v.grad.isfinite().all()
    assert v.grad.abs().sum() > 0


def test_the_temperature_goes_from_first_to_last_as_the_papers_does():
    assert temperature(0, 5.0, 0.056) == 5.0
    assert temperature(1, 5.0, 0.056) == pytest.approx(0.056)
    for epoch in (10, 50, 99):
        assert temperature(epoch / 100, 5.0, 5 * math.exp(-4.5)) == pytest.approx(5 * math.exp(-0.045 * epoch))


# -- the supernet ------------------------------------------------------------------------------------------------


def supernet(space: SearchSpace = TINY, seed: int = 0) -> SuperNet:
    """A supernet with random weights, biases and BatchNorm statistics."""
    torch.manual_seed(seed)
    net = SuperNet(space)
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, -1.5, 1.5)
            torch.nn.init.normal_(module.bias)
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    torch.nn.init.normal_(net.head.weight)
    torch.nn.init.normal_(net.head.bias)
    return net


def images(n: int = 3, seed: int = 0) -> torch.Tensor:
    return torch.rand(n, 3, 32, 32, generator=seeded(seed))


CHOICE = st.tuples(*(st.integers(0, len(choices) - 1) for choices in TINY.blocks))


@settings(max_examples=30)
@given(choices=CHOICE, seed=st.integers(0, 1000), training=st.booleans())
def test_the_frozen_network_gives_the_logits_of_the_live_one(choices, seed, training):
    net = supernet(seed=seed).train(training)
    net.choose(choices)
    spec, weights = net.freeze(choices)
    assert spec == TINY.spec([known[k] for known, k in zip(TINY.blocks, choices, strict=True)])
    frozen = build(spec)
    frozen.load_state_dict(weights)
    frozen.train(training)
    x = images(seed=seed)
    with torch.no_grad():
        live, static = net(x), frozen(x)
    assert torch.allclose(live, static, atol=1e-4, rtol=1e-4)


def test_freezing_leaves_the_live_network_as_it_was_and_shares_nothing_with_it():
    net = supernet()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    _, weights = net.freeze([0, 0, 0])
    for value in weights.values():
        value.zero_()
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


# -- its cost ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["s3", "s5", "s7", "m", "l", "is", "im", "i", "tiny"])
def test_the_expected_cost_of_one_architecture_is_its_cost(name):
    space = search_space(name)
    for seed in range(5):
        widths = [
            choices[torch.randint(len(choices), (), generator=seeded(seed * 100 + b))]
            for b, choices in enumerate(space.blocks)
        ]
        g = [
            torch.tensor([float(width == one) for one in known], dtype=torch.float64)
            for width, known in zip(widths, space.blocks, strict=True)
        ]
        macs = cost(space.spec(widths)).macs
        assert expected_macs(space, g).item() == macs
        assert expected_macs(space, [one.float() for one in g]).item() == pytest.approx(macs, rel=1e-6)


def everything(space: SearchSpace) -> list[tuple[tuple[int, ...], int]]:
    """Every choice of the space, with its cost."""
    choices = itertools.product(*(range(len(known)) for known in space.blocks))
    return [(one, cost(space.spec([k[i] for k, i in zip(space.blocks, one, strict=True)])).macs) for one in choices]


ALL = everything(TINY)


def test_the_expected_cost_is_the_mean_over_all_architectures_the_choices_being_independent():
    g = [torch.randn(len(choices), generator=seeded(b)).double().softmax(0) for b, choices in enumerate(TINY.blocks)]
    mean = sum(
        macs * torch.stack([weights[k] for weights, k in zip(g, choices, strict=True)]).prod() for choices, macs in ALL
    )
    assert expected_macs(TINY, g).item() == pytest.approx(float(mean), rel=1e-12)


LOGITS = st.tuples(*(st.lists(st.floats(-5, 5), min_size=len(k), max_size=len(k)) for k in TINY.blocks))


@given(logits=LOGITS, budget=st.integers(cost(TINY.smallest).macs, cost(TINY.largest).macs + 1000))
def test_the_most_probable_choice_within_a_budget_is_that_of_a_search_through_all(logits, budget):
    v = [torch.tensor(one, dtype=torch.float64) for one in logits]
    log_p = [one.log_softmax(0) for one in v]

    def chance(choices):
        return sum(p[k].item() for p, k in zip(log_p, choices, strict=True))

    found = most_probable(TINY, v, budget)
    assert dict(ALL)[tuple(found)] <= budget
    assert chance(found) == pytest.approx(max(chance(one) for one, macs in ALL if macs <= budget), abs=1e-9)


def test_with_room_enough_every_block_takes_its_argmax_and_with_too_little_none_is_found():
    space = search_space("s7")
    v = [torch.randn(len(choices), generator=seeded(b)) for b, choices in enumerate(space.blocks)]
    assert most_probable(space, v, cost(space.largest).macs) == [one.argmax().item() for one in v]
    low = cost(space.smallest).macs
    assert most_probable(space, v, low) == [len(choices) - 1 for choices in space.blocks]
    with pytest.raises(ValueError, match="no network of space s7"):
        most_probable(space, v, low - 1)


# -- the search --------------------------------------------------------------------------------------------------


def recipe(teacher_folder, **sections):
    """A search in the tiny space, an epoch of ten steps a second or less."""
    data = {
        "name": "rnascl-tiny",
        "description": "for tests",
        "family": "rnascl",
        "arch": TINY.largest.to_dict(),
        "search": {"space": "tiny", "budget": BUDGET, "lr": 0.1},
        "teacher": {"name": str(teacher_folder)},
        "method": {"name": "rnascl", "hard": "natural", "tutors": "searched", "map_size": 8},
        "train": {
            "epochs": 2,
            "compile": False,
            "precision": "fp32",
            "batch_size": 50,
            "images": 50 * EPOCH,
        },
        "optimizer": {"lr": 0.05},
        "ema": {"recalibrate": 100, "decay": 0.9},
        "guard": {"images": 50, "steps": 1},
    }
    for section, values in sections.items():
        data[section] = {**data.get(section, {}), **values}
    return parse_recipe(data, "test")


def found(path) -> dict:
    """A search.json, but for the clock's part."""
    result = json.loads(path.read_text())
    assert result["effort"].pop("wall_s") > 0
    return result


def test_a_search_leaves_an_architecture_within_the_budget_and_a_tutor_for_every_layer(toy, tmp_path, teacher_folder):
    result = found(fit(recipe(teacher_folder), toy, tmp_path, kind=Searcher, phase="search"))
    spec = TINY.spec([width for stage in result["spec"]["widths"] for width in stage])
    assert result["spec"] == spec.to_dict()
    assert (result["macs"], result["params"]) == cost(spec)
    assert result["macs"] <= result["budget"] == BUDGET
    assert list(result["tutors"]) == [f"features.{i}.conv" for i in range(4)]
    assert set(result["tutors"].values()) <= set(result["teacher_layers"])
    assert result["effort"] == {"name": "search", "epochs": 2, "images_seen": 1000}
    assert [epoch["epoch"] for epoch in result["history"]] == [1, 2]
    assert result["history"][-1]["tau"] == pytest.approx(0.056)
    for epoch in result["history"]:
        assert [len(p) for p in epoch["width_probabilities"]] == [3, 3, 2]
        assert sum(epoch["tutor_probabilities"][0]) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("budget", [90_000, 250_000])
def test_a_search_steers_the_expected_cost_to_its_budget_from_both_sides(toy, tmp_path, teacher_folder, budget):
    settings = recipe(teacher_folder, search={"budget": budget, "latency": 3.0}, train={"epochs": 5})
    seen: list[float] = []
    result = found(fit(settings, toy, tmp_path, kind=Searcher, report=lambda m: seen.append(m["expected_macs"])))
    start = expected_macs(TINY, [torch.full((len(k),), 1 / len(k)) for k in TINY.blocks]).item()
    assert abs(seen[-1] - budget) < 0.35 * abs(start - budget)
    assert [epoch["expected_macs"] for epoch in result["history"]] == seen


@pytest.mark.parametrize("power", [0.0, 2.0])
def test_the_latency_term_is_the_distance_from_the_budget_as_a_ratio_to_a_power(toy, teacher_folder, power):
    searcher = Searcher(recipe(teacher_folder, search={"latency": power}), toy)
    for choices, macs in ALL:
        n_f = searcher.latency(searcher.net.one_hot(choices)).item()
        assert n_f == pytest.approx(max(macs / BUDGET, BUDGET / macs) ** power, rel=1e-4)


def test_an_interrupted_search_resumes_to_the_same_result_as_one_that_was_not(toy, tmp_path, teacher_folder):
    settings = recipe(teacher_folder)
    whole, step = found(fit(settings, toy, tmp_path / "whole", kind=Searcher)), Searcher.train_step

    def stopping(self):
        if self.position.step == EPOCH + 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Searcher, "train_step", stopping)
        with pytest.raises(Interrupted, match=f"step {EPOCH + 4} of {2 * EPOCH}"):
            fit(settings, toy, tmp_path / "parts", kind=Searcher)
    assert not (tmp_path / "parts" / "search.json").exists()
    assert found(fit(settings, toy, tmp_path / "parts", kind=Searcher, resume=True)) == whole


def test_the_weights_learn_from_one_part_of_a_batch_and_the_logits_from_the_rest(toy, teacher_folder, monkeypatch):
    """Neither update changes the parameters of the other, and one answer of the teacher serves both."""
    searcher, loss_of, calls = Searcher(recipe(teacher_folder), toy), Searcher.loss, []

    def weights():
        return torch.cat([p.detach().flatten() for p in searcher.net.parameters()])

    def spying(self, x, y, answer, key):
        calls.append((key, len(x), len(answer.maps), weights(), self.widths.detach().clone()))
        return loss_of(self, x, y, answer, key)

    monkeypatch.setattr(Searcher, "loss", spying)
    before, logits = weights(), searcher.widths.detach().clone()
    searcher.train_step()
    assert [call[:3] for call in calls] == [(WEIGHTS, 40, 40), (CHOICES, 10, 10)]
    *_, between, unchanged = calls[1]
    assert torch.equal(unchanged, logits)  # the weights' update leaves the logits
    assert not torch.equal(between, before)
    assert torch.equal(weights(), between)  # the logits' update leaves the weights
    assert not torch.equal(searcher.widths, logits)
    assert all(p.requires_grad for p in searcher.net.parameters())
    assert all(p.grad is None for p in searcher.net.parameters())


TWO_PROCESSES = """
from test_rnascl import SPACES, TINY, recipe
from test_training import without_norm
from zoo.train.rnascl.search import Searcher

SPACES["tiny"] = TINY
searcher = Searcher(recipe(Path({teacher!r})), dataset)
without_norm(searcher)
for _ in range(3):
    searcher.net.train()
    searcher.train_step()
report(searcher.accelerator, searcher.widths.tolist() + searcher.tutors.flatten().tolist())
"""


def test_two_processes_search_as_one_does(toy, teacher_folder, on_processes):
    one, two = (on_processes(TWO_PROCESSES, processes, toy.root, teacher=str(teacher_folder)) for processes in (1, 2))
    assert two == pytest.approx(one, abs=2e-5)
    assert max(map(abs, one)) > 0.1


def test_a_layer_finds_the_tutor_that_looks_where_it_does(toy, teacher_folder):
    searcher = Searcher(recipe(teacher_folder), toy)
    x, *_ = searcher.batch(0)
    taught = searcher.teacher(x).maps
    optimizer = torch.optim.Adam([searcher.tutors], lr=0.2)
    for step in range(60):
        g = gumbel_softmax(searcher.tutors, 1.0, generator=seeded(step))
        (gradient,) = torch.autograd.grad(attention_loss(taught[:, [2, 0, 3, 1]], taught, g), searcher.tutors)
        searcher.tutors.grad = gradient
        optimizer.step()
    assert list(searcher.found_tutors().values()) == [searcher.teacher.layers[j] for j in (2, 0, 3, 1)]
