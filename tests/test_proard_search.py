"""ProARD's predictor, its search and its latency tables, on a made-up truth about the sub-nets of the tiny space."""

from __future__ import annotations

import dataclasses
import itertools
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from micro import micro
from pymoo.indicators.hv import HV

from benchmarks.proard import Textbook
from zoo.export.bench.nets import time_architectures
from zoo.specs import cost
from zoo.system.device import cpu_id
from zoo.system.errors import IntegrityError, NothingMatches, Unreachable, UsageError
from zoo.system.toolchain import toolchain
from zoo.train.proard.labelled import Labels
from zoo.train.proard.latency import ALWAYS, LatencyTable, costs, fit_latency, latency_table
from zoo.train.proard.predictor import Predictor, cross_validated, fit, score
from zoo.train.proard.search import Limits, best, check_range, search
from zoo.train.spaces import space_called
from zoo.weights.tensors import save_weights

IMAGES, SEEDS = 1000, st.integers(0, 2**32 - 1)
TINY = space_called("tiny")


def truth(genes: np.ndarray) -> np.ndarray:
    """Clean and robust accuracy [n, 2]: returns diminish, stages matter unlike, and narrow nets cannot be too deep."""
    depth, width = (
        np.stack([np.array(TINY.genes[g].choices)[genes[:, g]] for g in range(start, 6, 2)], 1) for start in (0, 1)
    )
    wide, deep = np.log(width / width.min(0)), np.sqrt(depth) - 1
    macs = np.log(TINY.macs(genes) / TINY.macs(TINY.smallest))
    thin = np.maximum(0, depth.sum(1) - 7) * np.exp(-wide.mean(1))
    clean = 0.35 * macs + wide @ [0.35, 0.5, 0.2] + deep @ [0.3, 0.55, 0.25] - 0.12 * thin
    robust = (
        0.3 * macs + wide @ [0.6, 0.5, 0.05] + deep @ [0.15, 0.6, 0.1] - 0.15 * thin + 0.15 * wide[:, 0] * deep[:, 1]
    )
    return np.stack([0.52 + 0.32 * (1 - np.exp(-0.55 * clean)), 0.3 + 0.22 * (1 - np.exp(-0.5 * robust))], 1)


def labels_of(genes: np.ndarray, images: int = IMAGES, seed: int = 0) -> Labels:
    """As if measured on so many images."""
    measured = np.random.default_rng(seed).binomial(images, truth(genes)) / images
    return Labels(genes, measured[:, 0], measured[:, 1], images)


@pytest.fixture(scope="module")
def every() -> np.ndarray:
    """All 32,256 sub-nets in a random order."""
    rows = np.array(list(itertools.product(*map(range, TINY.choices))))
    return np.random.default_rng(0).permutation(rows)


@pytest.fixture(scope="module")
def predictor(every) -> Predictor:
    return fit(TINY, labels_of(every[:300]))


@pytest.fixture(scope="module")
def exact(every, predictor) -> np.ndarray:
    """What the predictor says of all sub-nets: MACs, clean and robust error, [32256, 3]."""
    return np.column_stack([TINY.macs(every), 1 - predictor.predict(every)[0]])


def undominated(points: np.ndarray) -> np.ndarray:
    """Places of ``points`` [n, 3] that no other beats: one that is as good in all columns and better in one."""
    order = np.lexsort((points[:, 2], points[:, 1], points[:, 0]))
    front: list[int] = []
    for place in order:
        kept = points[front]
        if not ((kept <= points[place]).all(1) & (kept < points[place]).any(1)).any():
            front.append(place)
    return np.array(front)


def points_of(found) -> np.ndarray:
    return np.column_stack([found.macs, 1 - found.clean, 1 - found.robust])


# -- labels ------------------------------------------------------------------------------------------------------


@given(seed=SEEDS, n=st.integers(0, 5), images=st.integers(1, 10**6))
@settings(max_examples=25)
def test_labels_come_back_from_their_file_as_they_were(tmp_path_factory, seed, n, images):
    rng = np.random.default_rng(seed)
    labels = Labels(TINY.sample(n, rng), rng.random(n), rng.random(n), images)
    path = tmp_path_factory.mktemp("labels") / "labels.json"
    labels.save(path, TINY)
    again = Labels.load(path, TINY)
    assert again.images == images
    for name in ("genes", "clean", "robust"):
        assert np.array_equal(getattr(again, name), getattr(labels, name))
    assert again.genes.dtype == np.int64


def test_labels_of_another_space_are_refused(tmp_path):
    labels_of(TINY.smallest).save(tmp_path / "labels.json", TINY)
    with pytest.raises(UsageError, match="holds labels of space tiny, not micro: measure those of micro"):
        Labels.load(tmp_path / "labels.json", micro())
    with pytest.raises(Unreachable, match=r"there is no file .* with labels"):
        Labels.load(tmp_path / "none.json", TINY)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda text: text[:40], "is damaged: "),
        (lambda text: text.replace('"robust"', '"sturdy"'), "is damaged at 'subnets.0.robust': Field required"),
        (lambda text: text.replace('"clean": 0', '"clean": 1'), "is damaged at 'subnets.0.clean'"),
        (lambda text: text.replace('"clean": 0', '"clean": NaN, "x": 0'), "is damaged at 'subnets.0.clean'"),
        (lambda text: text.replace('"images": 1000', '"images": 0'), "is damaged at 'images'"),
        (lambda text: text.replace('"stage1.width": 12', '"stage1.width": 13'), "do not fit .* cannot be 13"),
        (lambda text: text.replace('"stage1.width": 12,', ""), "do not fit .* has no value"),
    ],
)
def test_damaged_labels_are_refused(tmp_path, damage, message):
    path = tmp_path / "labels.json"
    labels_of(TINY.smallest).save(path, TINY)
    before = path.read_text()
    path.write_text(damage(before))
    assert path.read_text() != before
    with pytest.raises(IntegrityError, match=message):
        Labels.load(path, TINY)


def test_labels_whose_parts_do_not_fit_are_refused():
    with pytest.raises(UsageError, match=r"genes \[n, G\], two accuracies \[n\]"):
        Labels(TINY.smallest, np.zeros(2), np.zeros(1), 10)


# -- the predictor -----------------------------------------------------------------------------------------------


def test_three_hundred_noisy_labels_rank_unseen_sub_nets(every, predictor):
    unseen = every[300:2300]
    scores = score(predictor, Labels(unseen, *truth(unseen).T, 10**9))  # against the truth itself
    for one in (scores.clean, scores.robust):
        assert one.tau > 0.8
        assert one.mae < 0.01
        assert abs(one.bias) < 0.005


def test_errors_on_measured_sub_nets_are_what_the_spread_and_the_images_allow(every, predictor):
    scores = score(predictor, labels_of(every[300:2300], seed=1))
    for one in (scores.clean, scores.robust):
        assert 0.88 < one.coverage < 0.99


def test_cross_validation_judges_by_unseen_sub_nets_only(every):
    """Labels that are nothing but noise can be learned by heart, and not foretold."""
    rng = np.random.default_rng(0)
    noise = Labels(every[:60], rng.random(60), rng.random(60), IMAGES)
    fast = {"members": 2, "steps": 150, "weight_decay": 0.0}
    assert score(fit(TINY, noise, **fast), noise).clean.tau > 0.5
    scores = cross_validated(TINY, noise, folds=3, **fast)
    assert scores.n == 60
    assert abs(scores.clean.tau) < 0.3
    assert json.loads(json.dumps(scores, default=vars))["robust"]["tau"] == scores.robust.tau
    with pytest.raises(UsageError, match="60 labels cannot be divided into 61 folds"):
        cross_validated(TINY, noise, folds=61)


def test_scores_are_what_they_say(every):
    labels = labels_of(every[:50])
    known = SimpleNamespace(predict=lambda genes: (labels.accuracy + np.array([0.01, -0.2]), np.full((50, 2), 0.001)))
    scores = score(known, labels)
    assert (scores.clean.tau, scores.robust.tau) == (pytest.approx(1), pytest.approx(1))
    assert (scores.clean.mae, scores.robust.mae) == (pytest.approx(0.01), pytest.approx(0.2))
    assert (scores.clean.bias, scores.robust.bias) == (pytest.approx(0.01), pytest.approx(-0.2))
    assert (scores.clean.coverage, scores.robust.coverage) == (1, 0)
    assert scores.clean.spread is None  # it is the same everywhere


def test_the_same_labels_and_seed_give_the_same_predictor(every):
    labels = labels_of(every[:40])
    one, same, other = (fit(TINY, labels, steps=20, seed=seed) for seed in (1, 1, 2))
    for a, b, c in zip(*(p.predict(every[:50]) for p in (one, same, other)), strict=True):
        assert np.array_equal(a, b)
        assert not np.array_equal(a, c)


@given(seed=SEEDS)
@settings(max_examples=10)
def test_genes_without_effect_change_no_prediction(seed):
    rng = np.random.default_rng(seed)
    space = space_called("mbv3")
    genes = rng.integers(space.choices, size=(30, len(space.genes)))
    predictor = fit(space, Labels(genes[:10], rng.random(10), rng.random(10), 10), members=2, steps=2)
    for raw, canonical in zip(predictor.predict(genes), predictor.predict(space.canonical(genes)), strict=True):
        assert np.array_equal(raw, canonical)


def test_a_predictor_comes_back_from_its_file_as_it_was(every, predictor, tmp_path):
    predictor.save(tmp_path / "predictor.safetensors")
    again = Predictor.load(tmp_path / "predictor.safetensors", TINY)
    for a, b in zip(predictor.predict(every), again.predict(every), strict=True):
        assert np.array_equal(a, b)
        assert (a.shape, a.dtype) == ((len(every), 2), np.float64)


def test_a_predictor_of_another_space_is_refused(predictor, tmp_path):
    path = tmp_path / "predictor.safetensors"
    predictor.save(path)
    with pytest.raises(UsageError, match="is fitted to space tiny, not micro: fit one to labels of micro"):
        Predictor.load(path, micro())
    first, *rest = TINY.genes
    changed = dataclasses.replace(TINY, genes=(dataclasses.replace(first, choices=(1, 2, 4)), *rest))
    with pytest.raises(UsageError, match="is fitted to another definition of space tiny: fit it again"):
        Predictor.load(path, changed)


def test_a_file_that_is_not_a_predictor_is_refused(predictor, tmp_path):
    path = tmp_path / "predictor.safetensors"
    with pytest.raises(Unreachable, match="there is no predictor at"):
        Predictor.load(path, TINY)
    save_weights({"x": torch.zeros(2)}, path)
    with pytest.raises(IntegrityError, match="is not an accuracy-robustness predictor"):
        Predictor.load(path, TINY)
    wide = [(torch.zeros(5, 3, 2), torch.zeros(5, 1, 2))]
    dataclasses.replace(predictor, layers=wide).save(path)
    with pytest.raises(IntegrityError, match="do not make a predictor: fit it again"):
        Predictor.load(path, TINY)
    torch.save({"x": torch.zeros(2)}, path)
    with pytest.raises(IntegrityError, match="is a pickle"):
        Predictor.load(path, TINY)


def test_too_few_labels_are_refused(every):
    with pytest.raises(UsageError, match="needs at least 10 labels and 1 member, not 9 and 5"):
        fit(TINY, labels_of(every[:9]))


# -- the search --------------------------------------------------------------------------------------------------


@given(seed=SEEDS, share=st.floats(0.1, 1), clean=st.floats(0, 0.66), robust=st.floats(0, 0.36))
@settings(max_examples=15)
def test_a_front_is_within_the_limits_and_undominated(predictor, seed, share, clean, robust):
    limits = Limits(max_macs=share * TINY.macs(TINY.largest)[0], min_clean=clean, min_robust=robust)
    found = search(TINY, predictor, limits, candidates=300, population=50, seed=seed)
    assert len(found) > 0
    assert found.macs.max() <= limits.max_macs
    assert found.clean.min() >= clean
    assert found.robust.min() >= robust
    assert np.all(np.diff(found.macs) >= 0)
    assert len(undominated(points_of(found))) == len(found)
    assert np.array_equal(found.genes, TINY.canonical(found.genes))
    assert len(np.unique(found.genes, axis=0)) == len(found)
    assert np.array_equal(found.macs, [cost(TINY.spec(row)).macs for row in found.genes])
    mean, spread = predictor.predict(found.genes)
    assert np.allclose(np.stack([found.clean, found.robust], 1), mean, atol=1e-6)
    assert np.allclose(found.spread, spread, atol=1e-6)
    assert found.latency_ms is None


def test_genes_without_effect_are_looked_at_once(every):
    space, seen = space_called("mbv3"), []
    known = SimpleNamespace(predict=lambda genes: seen.append(genes) or (np.zeros((len(genes), 2)),) * 2)
    search(space, known, candidates=500, population=100)
    rows = np.concatenate(seen)
    assert len(rows) == len(np.unique(rows, axis=0)) == 500
    assert np.array_equal(rows, space.canonical(rows))


def test_the_same_seed_finds_the_same_to_the_last_bit(predictor):
    one, same, other = (search(TINY, predictor, candidates=600, population=100, seed=seed) for seed in (4, 4, 5))
    for field in ("genes", "macs", "clean", "robust", "spread"):
        assert np.array_equal(getattr(one, field), getattr(same, field))
    assert not np.array_equal(one.genes, other.genes)


def test_ten_thousand_candidates_find_the_exact_front(every, predictor, exact):
    front = exact[undominated(exact)]
    ideal, nadir = front.min(0), front.max(0)
    volume = HV(ref_point=np.full(3, 1.1))
    found = points_of(search(TINY, predictor))
    ratio = volume((found - ideal) / (nadir - ideal)) / volume((front - ideal) / (nadir - ideal))
    assert 0.999 < ratio <= 1 + 1e-6


@pytest.mark.parametrize("budget", [1.34e6, 1.6e6, 2e6])
def test_tight_budgets_are_searched_as_well_as_loose_ones(every, predictor, exact, budget):
    """One in 32,256 sub-nets to one in five hundred are within these."""
    within = np.flatnonzero(exact[:, 0] <= budget)
    front = every[within[undominated(exact[within])]]
    found = search(TINY, predictor, Limits(max_macs=budget))
    assert {tuple(row) for row in found.genes} == {tuple(row) for row in front}


def test_a_space_smaller_than_the_candidates_is_searched_through(every):
    space = micro()
    rows = np.array(list(itertools.product(*map(range, space.choices))))
    rng = np.random.default_rng(0)
    predictor = fit(space, Labels(rows, rng.random(len(rows)), rng.random(len(rows)), 100), steps=50)
    points = np.column_stack([space.macs(rows), 1 - predictor.predict(rows)[0]])
    found = search(space, predictor, population=10)
    assert {tuple(row) for row in found.genes} == {tuple(row) for row in rows[undominated(points)]}


def test_latency_is_the_cost_where_it_is_known(predictor):
    def latency(genes: np.ndarray) -> np.ndarray:
        return 0.01 + 0.1 * genes.sum(1)

    found = search(TINY, predictor, Limits(max_latency_ms=1.0), latency=latency, candidates=500)
    assert np.array_equal(found.latency_ms, latency(found.genes))
    assert found.latency_ms.max() <= 1.0
    assert np.all(np.diff(found.latency_ms) >= 0)
    points = np.column_stack([found.latency_ms, 1 - found.clean, 1 - found.robust])
    assert len(undominated(points)) == len(points)
    assert np.array_equal(found.macs, TINY.macs(found.genes))


def test_the_best_is_that_with_the_highest_prediction(predictor):
    found = search(TINY, predictor, candidates=300)
    assert found.robust[best(found)] == found.robust.max()
    assert found.clean[best(found, by="clean")] == found.clean.max()
    with pytest.raises(UsageError, match="not by 'cleen'; did you mean 'clean'"):
        best(found, by="cleen")


@pytest.mark.parametrize(
    ("limits", "kind", "message"),
    [
        (
            {"max_macs": 1e6},
            NothingMatches,
            "space tiny has no sub-net within 1.0M MACs: its sub-nets have 1.3M to 42.9M",
        ),
        ({"max_macs": 1_336_959}, NothingMatches, "within 1,336,959 MACs: its sub-nets have 1,336,960 to 42,911,616"),
        ({"max_latency_ms": 0.001}, NothingMatches, "no sub-net within 0.001 ms: its sub-nets have 0.5 to"),
        (
            {"min_robust": 0.9},
            NothingMatches,
            r"^no sub-net of space tiny is predicted to have 90.0% robust accuracy: the best has 4\d.\d%$",
        ),
        (
            {"max_macs": 5e6, "min_clean": 0.9, "min_robust": 0.9},
            NothingMatches,
            r"^no sub-net of space tiny within 5.0M MACs is predicted to have 90.0% clean accuracy: the best has [67]",
        ),
    ],
)
def test_limits_that_no_sub_net_meets_are_refused_with_what_there_is(predictor, limits, kind, message):
    latency = (lambda genes: 0.5 + genes.sum(1)) if "max_latency_ms" in limits else None
    with pytest.raises(kind, match=message):
        search(TINY, predictor, Limits(**limits), latency=latency, candidates=400)


def test_a_budget_above_the_space_is_no_limit(predictor):
    free, loose = (search(TINY, predictor, limits, candidates=400) for limits in (None, Limits(max_macs=50e6)))
    assert (free.genes == loose.genes).all()
    assert check_range(TINY, Limits(max_macs=50e6)) == [
        "50.0M MACs is no limit: the largest sub-net of space tiny has 42.9M"
    ]
    assert check_range(TINY, Limits(max_macs=42_911_616)) == []


def test_accuracies_that_no_sub_net_has_at_once_are_refused(exact, predictor):
    clean, robust = (1 - exact[exact[:, 0] <= 20e6, 1:]).max(0)  # of two different sub-nets
    with pytest.raises(
        NothingMatches, match="robust accuracy at once: with such a clean accuracy, the best robust one"
    ):
        search(TINY, predictor, Limits(max_macs=20e6, min_clean=clean, min_robust=robust))


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"max_macs": 0}, "max_macs must be above 0, not 0"),
        ({"max_latency_ms": float("nan")}, "max_latency_ms must be above 0, not nan"),
        ({"min_clean": 45}, "min_clean must be between 0 and 1, not 45"),
        ({"min_robust": -0.1}, "min_robust must be between 0 and 1, not -0.1"),
    ],
)
def test_limits_are_checked(limits, message):
    with pytest.raises(UsageError, match=message):
        Limits(**limits)


def test_a_latency_budget_needs_latencies(predictor):
    with pytest.raises(UsageError, match="a latency budget needs the latencies"):
        search(TINY, predictor, Limits(max_latency_ms=1))
    with pytest.raises(UsageError, match="at least 2 candidates and a population of 2, not 1 and 200"):
        search(TINY, predictor, candidates=1)


def test_the_textbook_that_the_search_is_raced_against_judges_alike(predictor):
    found, textbook = search(TINY, predictor, candidates=100), Textbook(TINY, predictor)
    assert np.allclose(textbook.evaluate(found.genes), points_of(found), atol=1e-6)
    assert textbook.judged == len(found)


# -- latencies ---------------------------------------------------------------------------------------------------

FACTS = {
    "engine": "onnxruntime",
    "runtime": "onnxruntime 0",
    "device": "a-device-1t",
    "threads": 1,
    "batch": 1,
    "warnings": [],
    "toolchain": toolchain(),
    "measured_at": "2026-01-01T00:00:00+00:00",
}


def ideal_ms(genes: np.ndarray) -> np.ndarray:
    """Of a device that computes 8 channels at a time, and takes a while for every call and every net."""
    prices = {32: 2e-8, 16: 1e-8, 8: 1.5e-8, 4: 3e-8, 1: 0.0}
    totals = []
    for row in genes:
        total = 0.02
        for conv in TINY.spec(row).convs():
            lanes = -(-conv.c_in // 8) * 8 * -(-conv.c_out // 8) * 8
            total += 0.003 + prices[conv.resolution] * lanes * conv.kernel**2 * conv.resolution**2
        totals.append(total)
    return np.array(totals)


@pytest.fixture(scope="module")
def table(every) -> LatencyTable:
    """Fitted to sixty sub-nets, timed with an error of 2 %."""
    genes = every[:60]
    return fit_latency(TINY, genes, ideal_ms(genes) * np.random.default_rng(0).normal(1, 0.02, 60), FACTS)


def test_sixty_timed_sub_nets_predict_the_others(every, table):
    unseen = every[60:560]
    error = abs(table(unseen) / ideal_ms(unseen) - 1)
    assert table.facts.lanes == 8
    assert error.mean() < 0.02
    assert abs(table.facts.mae - 0.02) < 0.01  # what it says of itself has the stopwatch's own error in it
    assert table.facts.tau > 0.95


def test_a_price_is_never_negative_and_a_larger_choice_never_faster(every, table):
    assert min(table.facts.prices.values()) >= 0
    for gene in range(len(TINY.genes)):
        smaller, larger = every[:200].copy(), every[:200].copy()
        smaller[:, gene] = np.maximum(smaller[:, gene] - 1, 0)
        assert np.all(table(smaller) <= table(larger) + 1e-12)


@pytest.mark.parametrize("name", ["tiny", "resnet", "mbv3"])
def test_a_table_says_what_the_prices_of_all_convolutions_add_up_to(name):
    space = space_called(name)
    genes = space.sample(20, np.random.default_rng(0))
    table = fit_latency(space, genes, space.macs(genes) / 1e8 + 0.1, FACTS)
    for row, ms in zip(genes, table(genes), strict=True):
        parts = costs(space.spec(row).convs(), table.facts.lanes)
        assert ms == pytest.approx(table.facts.prices[ALWAYS] + sum(table.facts.prices[k] * parts[k] for k in parts))


def test_a_table_comes_back_from_its_file_as_it_was(every, table, tmp_path):
    path = tmp_path / "table.json"
    table.save(path)
    again = LatencyTable.load(path, TINY)
    assert again.facts == table.facts
    assert np.array_equal(again(every), table(every))
    with pytest.raises(UsageError, match="holds latencies of space tiny, not micro: measure those of micro"):
        LatencyTable.load(path, micro())
    first, *rest = TINY.genes
    changed = dataclasses.replace(TINY, genes=(dataclasses.replace(first, choices=(1, 2, 4)), *rest))
    with pytest.raises(UsageError, match="belongs to another definition of space tiny: measure it again"):
        LatencyTable.load(path, changed)
    text = path.read_text()
    for damage, message in (
        (text[:99], "is damaged: "),
        (text.replace('"n"', '"m"'), "is damaged at 'n': Field required"),
        (text.replace("MACs, dense 16", "MACs, dense 15"), "is damaged: no price for 'MACs, dense 16'"),
    ):
        path.write_text(damage)
        with pytest.raises(IntegrityError, match=message):
            LatencyTable.load(path, TINY)
    with pytest.raises(Unreachable, match=r"there is no file .* with latencies"):
        LatencyTable.load(tmp_path / "none.json", TINY)
    with pytest.raises(UsageError, match="needs at least 10 timed sub-nets, not 9"):
        fit_latency(TINY, every[:9], np.ones(9), FACTS)


def test_a_machine_is_timed_once_and_again_where_the_tools_have_changed(monkeypatch, tmp_path):
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path))
    asked, said = [], []

    def stopwatch(specs, *, engine, threads):
        asked.append((len(specs), engine, threads))
        return [cost(spec).macs / 1e8 for spec in specs], {**FACTS, "warnings": ["a load of 9"]}

    one = latency_table(TINY, stopwatch, notify=said.append)
    same = latency_table(TINY, stopwatch, notify=said.append)
    assert asked == [(60, "onnxruntime", 1)]
    assert said[1:] == ["these latencies may be too long: a load of 9"]
    assert same.facts == one.facts
    assert one(TINY.largest)[0] == pytest.approx(TINY.macs(TINY.largest)[0] / 1e8, rel=0.01)
    monkeypatch.setattr("zoo.train.proard.latency.toolchain", lambda: {"torch": "99"})
    latency_table(TINY, stopwatch)
    assert len(asked) == 2


def test_architectures_are_timed_on_a_real_engine():
    space = micro()
    specs = [space.spec(row) for row in np.concatenate([space.smallest, space.largest])]
    state, done = torch.random.get_rng_state(), []
    ms, facts = time_architectures(specs, seconds=0.1, progress=lambda *step: done.append(step))
    assert len(ms) == 2
    assert min(ms) > 0
    assert facts["engine"] == "onnxruntime"
    assert facts["device"] == cpu_id(1)
    assert done == [(1, 2), (2, 2)]
    assert torch.equal(torch.random.get_rng_state(), state)
    assert json.loads(json.dumps(facts)) == facts
    genes = space.sample(12, np.random.default_rng(0))
    assert fit_latency(space, genes, ms[0] * space.macs(genes), facts).facts.measured_at == facts["measured_at"]
    with pytest.raises(UsageError, match="one architecture at least"):
        time_architectures([])
