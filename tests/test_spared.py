"""What the ladder leaves out, and what it must not leave out for an engine to be found out."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import numpy as np
import pytest
import torch
from torch import nn

from zoo.attacks import apgd, pgd_targeted, square
from zoo.attacks.guide import Guided
from zoo.attacks.losses import broken
from zoo.datasets.base import Split, to_float
from zoo.evaluation import directions
from zoo.evaluation.evaluate import prepare
from zoo.evaluation.look import look
from zoo.evaluation.perturb import perturb
from zoo.evaluation.protocols import PROTOCOLS
from zoo.evaluation.statistics import Paired
from zoo.export.engines import backend, onnxruntime
from zoo.export.engines.options import patient
from zoo.export.engines.twin import Twin
from zoo.export.ladder import climb as climbing
from zoo.export.ladder import examples as keeping
from zoo.export.ladder import rungs
from zoo.export.ladder.climb import SQUARE, Trial, climb
from zoo.export.ladder.examples import Examples
from zoo.export.ladder.rungs import black_box, survivors
from zoo.export.ladder.surrogate import surrogate_pgd
from zoo.export.ladder.terms import Terms
from zoo.export.onnx.graph import save_onnx

N = 32
WALK = {"eps": 8 / 255, "step": 2 / 255, "steps": 10, "seed": 0}
STRONG = SQUARE.model_copy(update={"queries": 25, "eps": 88 / 255})


def silent(done, total):
    pass


class Alone(nn.Module):
    """``model``, asked for one image at a time: convolutions of other batch sizes may round otherwise."""

    def __init__(self, model):
        super().__init__()
        self.model = prepare(model)

    def forward(self, x):
        return torch.cat([self.model(one) for one in x.split(1)])


class Asked(Twin):
    """A twin that counts how often it is asked."""

    calls = 0

    def __call__(self, images):
        self.calls += 1
        return super().__call__(images)


class Swayed(Twin):
    """Answers much as its twin, and has a direction of its own in which small steps lead far."""

    def __init__(self, net, sway=0.1):
        super().__init__(Sway(net, sway))

    def differentiable(self, model):
        return self.model


class Sway(nn.Module):
    def __init__(self, net, sway):
        super().__init__()
        signs = torch.randint(0, 2, (3 * 32 * 32,), generator=torch.Generator().manual_seed(0)) * 2 - 1
        self.net, self.direction = net, nn.Parameter(sway * signs.float(), requires_grad=False)

    def forward(self, x):
        z = self.net(x)
        return torch.cat([z[:, :1] + (x.flatten(1) - 0.5) @ self.direction[:, None], z[:, 1:]], 1)


@pytest.fixture(scope="module")
def batch(split):
    return to_float(split.images[:N]), torch.from_numpy(split.labels[:N])


def test_a_twin_answers_with_the_gradients_of_its_own_net_and_bit_for_bit_the_same(fragile, robust, batch):
    net = prepare(fragile)
    own, another = Asked(net), Asked(prepare(fragile))
    by_gradients, engine = surrogate_pgd(net, [own, Twin(robust)], *batch, **WALK)
    by_asking, same_engine = surrogate_pgd(net, [another, Twin(robust)], *batch, **WALK)
    assert torch.equal(by_gradients, by_asking)
    assert torch.equal(engine, same_engine)
    assert broken(own(by_gradients), batch[1]).float().mean() > 0.5
    assert own.calls < another.calls


@pytest.mark.parametrize("share", [0.1, 0.5, 1])
def test_square_finds_in_some_images_what_it_finds_in_all(robust, batch, share):
    net, some = Alone(robust).eval(), torch.rand(N, generator=torch.Generator().manual_seed(0)) < share
    terms = {"eps": 88 / 255, "queries": 25}
    everything, found = square(net, *batch, **terms), square(net, *batch, **terms, only=some)
    fell, falls = broken(net(everything), batch[1]), broken(net(found), batch[1])
    assert torch.equal(falls[some], fell[some])
    assert torch.equal(found[some & ~fell], everything[some & ~fell])  # others fill the batch, and move on
    assert 0.1 < fell.float().mean() < 0.9
    left = (found != batch[0]).flatten(1).any(1) & ~some
    assert left.sum() <= 3  # images that fill the batch


@pytest.mark.parametrize("share", [0, 0.1, 0.5, 1])
def test_walks_from_some_images_are_what_they_are_among_all(fragile, robust, batch, share):
    net, some = Alone(fragile).eval(), torch.rand(N, generator=torch.Generator().manual_seed(1)) < share
    terms, everyone = {"eps": 2 / 255, "steps": 5, "seed": 0}, torch.ones(N, dtype=torch.bool)
    engines = [Twin(net), Twin(Alone(robust).eval())]

    def pair(*only):
        return None if None in only else torch.stack(only)

    walks = (
        lambda only: apgd(net, *batch, **terms, early_stop=False, only=only),
        lambda only: apgd(net, *batch, **terms, restarts=2, only=only),
        lambda only: pgd_targeted(net, *batch, **terms, targets=2, only=only),
        lambda only: pgd_targeted(net, *batch, **terms, targets=1, early_stop=False, only=only),
        lambda only: surrogate_pgd(net, engines, *batch, **terms, step=1 / 255, only=pair(only, everyone))[0],
        lambda only: surrogate_pgd(net, engines, *batch, **terms, step=1 / 255, only=pair(everyone, only))[1],
        lambda only: surrogate_pgd(
            net, engines, *batch, **terms, step=1 / 255, targets=(batch[1][:, None] + 1) % 10, only=pair(everyone, only)
        )[1],
    )
    for walk in walks:
        everything, found = walk(None), walk(some)
        fell = broken(net(everything), batch[1])
        assert torch.equal(broken(net(found), batch[1])[some], fell[some])
        assert torch.equal(found[some & ~fell], everything[some & ~fell])  # others may fill a batch, and move on
        assert torch.equal(found[~some], batch[0][~some])
    assert not torch.equal(everything, batch[0])


def test_square_on_no_image_returns_them_as_they_are(robust, batch):
    calls = []
    found = square(lambda x: calls.append(x), *batch, eps=0.1, queries=9, only=torch.zeros(N, dtype=torch.bool))
    assert torch.equal(found, batch[0])
    assert not calls


def verdicts(twin, engine, split, bits, *, spared):
    attack = black_box(twin, engine, STRONG, bits=bits, spared=spared)
    return survivors(attack, twin, engine, split.images[:N], split.labels[:N], bits, 0, silent)


@pytest.mark.parametrize("seed", range(3))
def test_whatever_images_are_spared_the_gate_is_as_strict_or_stricter(robust, split, seed):
    """The rule would spare few of these; here images are drawn at random, so that many that fall are among them."""
    rng = np.random.default_rng(seed)
    twin, engine = Twin(Alone(robust).eval()), Twin(Alone(robust).eval())
    twin.model.model.head.bias.data += 0.8 * torch.randn(10, generator=torch.Generator().manual_seed(seed))
    bits = (rng.random(N) < 0.9, rng.random(N) < 0.9)
    twin_before, engine_before = verdicts(twin, engine, split, bits, spared=None)
    twin_bits, engine_bits = verdicts(twin, engine, split, bits, spared=rng.random(N) < 0.7)
    assert np.array_equal(engine_bits, engine_before)
    assert np.array_equal(twin_bits[~engine_bits], twin_before[~engine_bits])
    assert (twin_bits >= twin_before).all()
    assert (twin_bits > twin_before).any()  # what is spared would have fallen
    assert engine_bits.sum() < bits[1].sum()
    pair, before = Paired.of(twin_bits, engine_bits), Paired.of(twin_before, engine_before)
    assert pair.b == before.b
    assert pair.upper() >= before.upper()


def test_a_lower_bound_of_the_images_that_only_the_engine_gets_right_never_lowers_what_may_be_lost():
    for n in (50, 268, 1000):
        for b in (0, 1, 5, 20):
            bounds = [Paired(n, b=b, c=c).upper() for c in range(n - b) if c < 40]
            assert bounds == sorted(bounds, reverse=True)


def test_a_twin_is_attacked_once_for_several_engines_and_again_for_other_images(fragile, robust, split, monkeypatch):
    twin, examples, made = Twin.of(fragile), Examples(), []
    pgd = PROTOCOLS["pgd20"].model_copy(update={"steps": 3, "eps": 2 / 255, "step": 0.8 / 255})
    monkeypatch.setattr(rungs, "perturb", lambda *given, **more: made.append(1) or perturb(*given, **more))

    def bits(engine, examples, first=0, seed=0):
        images, labels, everything = split.images[first:N], split.labels[first:N], np.ones(N - first, bool)
        attack = rungs.transfer(twin.model, pgd, examples)
        return survivors(attack, twin, Twin(engine), images, labels, (everything, everything), seed, silent)

    for engine in (fragile, robust):
        shared, alone = bits(engine, examples), bits(engine, None)
        assert np.array_equal(shared, alone)
    assert 0 < shared[0].sum() < N
    assert len(made) == 1 + 2
    bits(robust, examples, first=1)
    bits(robust, examples, seed=1)
    assert len(made) == 5


def test_beyond_its_size_nothing_more_is_kept(batch, monkeypatch):
    monkeypatch.setattr(keeping, "SIZE", 2 * batch[0].nbytes)
    examples = Examples()
    for attack in ("a", "b", "c"):
        assert torch.equal(examples.of(attack, *batch, batch[0].clone), batch[0])
    assert [attack for attack, _ in examples.kept] == ["a", "b"]


def climbed(robust, split, engine=Twin, examples=None, **patched):
    """The rungs of an engine that computes as its twin, in a climb on 40 images."""
    terms = Terms(n=40, margin=0.3, queries=80, tolerance=100)
    few = Split("test", split.images[:64], split.labels[:64])
    trial = Trial(artifact_sha256="0" * 64, files=1, level="attacked", split=few, terms=terms, examples=examples)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in patched.items():
            patch.setattr(climbing, name, value)
        return climb(robust, engine(prepare(robust)), trial).rungs


@pytest.mark.parametrize(
    ("engine", "examples", "ends"), [(Twin, None, True), (Twin, Examples(), False), (Swayed, None, False)]
)
def test_examples_end_at_the_twins_mistakes_only_for_one_engine_that_computes_the_same(
    robust, split, monkeypatch, engine, examples, ends
):
    transfer, stops = rungs.transfer, []
    monkeypatch.setattr(
        rungs, "transfer", lambda *given, **how: stops.append(how["early_stop"]) or transfer(*given, **how)
    )
    climbed(robust, split, engine, examples)
    assert stops == [ends] * 2 + [True] * (engine is Twin)  # PGD-20, APGD-50, and PGD-20 towards targets


def black_box_of(robust, split, **patched):
    """The last of them."""
    return climbed(robust, split, **patched)[-1]


def test_transfer_and_the_twins_square_are_guided_by_a_copy_unless_the_twin_is_flagged(robust, split, monkeypatch):
    def flagged(*given):
        found = look(*given)
        found.flags.add("masked")
        return found

    monkeypatch.setattr(directions, "WORTH", 0)
    trials, attacked, box = [], [], rungs.black_box
    monkeypatch.setattr(rungs, "black_box", lambda one, *given, **how: attacked.append(one) or box(one, *given, **how))
    for fast, patched in ((False, {}), (True, {}), (True, {"look": flagged})):
        monkeypatch.setattr(directions, "fast_bf16", lambda device, fast=fast: fast)
        trials.append({rung.name: rung for rung in climbed(robust, split, WIDE=np.inf, **patched)})
    for name in ("transfer", "targeted", "black-box"):
        found = [rungs_[name].measured for rungs_ in trials]
        assert [one.get("directions") for one in found] == [None, "bf16", None]
        exact, rough, _ = (one["twin"]["accuracy"] for one in found)
        assert abs(exact - rough) <= 0.05  # two of 40 images
    assert all("directions" not in rungs_["surrogate"].measured for rungs_ in trials)
    assert [isinstance(one, Guided) for one in attacked] == [False, True, False]
    walked = {rung.name: rung.measured for rung in climbed(robust, split, Swayed)}
    assert [name for name in walked if "directions" in walked[name]] == ["transfer", "black-box"]
    assert "targeted" in walked


def test_images_with_wide_margins_are_walked_from_once_and_the_bits_are_the_same(robust, split):
    usual, none = climbed(robust, split, WIDE_FOR_WALKS=0.6), climbed(robust, split, WIDE_FOR_WALKS=np.inf)
    assert [rung.bits for rung in usual] == [rung.bits for rung in none]
    assert [rung.measured["spared"] for rung in none if rung.name in ("transfer", "surrogate")] == [0, 0]
    for rung in usual:
        if rung.name in ("transfer", "surrogate"):
            assert 0 < rung.measured["spared"] < 40


def test_an_engine_is_attacked_everywhere_along_its_own_gradients(robust, split):
    """Nothing that follows the twin's gradients finds it out."""
    usual = climbed(robust, split, Swayed)
    none = climbed(robust, split, Swayed, WIDE_FOR_WALKS=np.inf, WIDE_FOR_TARGETS=np.inf)
    kept = {}
    for mine, full in zip(usual, none, strict=True):
        if mine.name in ("transfer", "surrogate", "targeted"):
            assert mine.measured["spared"] > 0
            assert mine.bits == full.bits
            kept[mine.name] = mine.measured["engine"]["accuracy"]
            assert mine.measured.get("gradients") == (None if mine.name == "transfer" else ["twin", "artifact"])
    assert kept["surrogate"] < 0.7 < kept["transfer"]


def test_no_image_is_spared_where_engine_and_twin_are_apart_or_margins_mean_nothing(robust, split):
    def flagged(*given):
        found = look(*given)
        found.flags.add("masked")
        return found

    class Sure(Twin):
        """Leads by more than the twin, in the attacked images too."""

        def __call__(self, images):
            return 3 * super().__call__(images)

    for engine, patched in ((Sure, {}), (Twin, {"look": flagged}), (Twin, {"COARSE_SHARE": 2})):
        found = {rung.name: rung.measured for rung in climbed(robust, split, engine, **patched)}
        assert found["transfer"]["spared"] == found["surrogate"]["spared"] == 0


def test_the_twin_is_spared_where_its_margin_is_wide_and_the_bits_are_the_same(robust, split):
    usual, none = black_box_of(robust, split), black_box_of(robust, split, WIDE=np.inf)
    assert usual.bits == none.bits
    assert none.measured["twin_spared"] == 0
    assert 0 < usual.measured["twin_spared"] <= 40 * usual.measured["engine"]["accuracy"]


def test_a_twin_whose_gradients_mislead_is_not_spared(robust, split):
    def flagged(*given):
        found = look(*given)
        found.flags.add("masked")
        return found

    assert black_box_of(robust, split, look=flagged).measured["twin_spared"] == 0


def test_a_patient_engine_answers_two_callers_at_once_with_the_same_logits_and_says_so(robust, tmp_path, batch):
    path, kind = tmp_path / "model.onnx", backend("onnx")
    save_onnx(robust, path)
    with onnxruntime.load(path) as usual, onnxruntime.load(path, **patient(kind, {"threads": None})) as shared:
        assert torch.equal(usual(batch[0]), shared(batch[0]))
        assert shared.facts == usual.facts | {
            "spinning": False,
            "threads": max(torch.get_num_threads() - 1, 1),
            "callers": 2,
        }
        inside, run = Barrier(2, timeout=30), shared._run

        def together(x):
            inside.wait()
            return run(x)

        shared._run = together
        with ThreadPoolExecutor(2) as pool:
            both = [*pool.map(shared, [batch[0], batch[0][:5]])]
        assert torch.equal(torch.cat(both), torch.cat([usual(batch[0]), usual(batch[0][:5])]))


def test_what_the_user_says_of_a_session_stands(robust, tmp_path):
    path, kind = tmp_path / "model.onnx", backend("onnx")
    save_onnx(robust, path)
    given = {"threads": 2, "config": {"session.intra_op.allow_spinning": "1"}}
    with onnxruntime.load(path, **patient(kind, given)) as engine:
        assert engine.facts["config"] == given["config"]
        assert "spinning" not in engine.facts
    assert patient(backend("litert"), given) == given
