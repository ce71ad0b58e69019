"""No attack calls a hostile model robust: its accuracy is at most two points above the truth, or it is flagged."""

from __future__ import annotations

import functools
import sys

import numpy as np
import pytest
import torch
from sturdy import TEST, pictures
from torch import nn

from zoo import load
from zoo.attacks import ATTACKS, broken, pgd
from zoo.datasets.base import to_float
from zoo.evaluation.evaluate import evaluate
from zoo.evaluation.protocols import PROTOCOLS, RELEASED, Protocol
from zoo.system.errors import UsageError

from .tricks import TRICKS, Sparse, Trick, noisy

N = 50
FAST = {"apgd50": {"steps": 20}, "deepfool": {"steps": 10}, "autoattack": {"steps": 5, "queries": 100}}
FEW = {"square": {"queries": 50}, "autoattack": {"steps": 5, "queries": 50}, "fab-t": {"steps": 10}}  # of an attack
EASY = ("clean", "noise", "fgsm")  # protocols that a net without tricks withstands too
ALWAYS = ("pgd20", "deepfool", "autoattack")  # also on models that are flagged whatever the attack finds

# What must be noticed, whatever the attack finds. Nothing else may be: a flag is a reproach.
EXPECTED: dict[str, set[str]] = {
    "plain": set(),
    "masked x 100": set(),
    "masked x 10,000": set(),
    "scaled down": set(),
    "softmax outputs": set(),
    "saturated softmax": {"masked", "coarse"},
    "saturated sigmoid": {"coarse"},
    "rounded inputs": {"masked"},
    "rounded logits": {"masked", "coarse"},
    "random": {"random"},
    "writing": {"writes"},
    "detached": {"masked"},
    "detached altogether": {"masked"},
    "wrong gradient": {"masked"},
    "tied": {"masked", "coarse"},
    "not a number": set(),
    "float16 overflow": set(),  # infinite answers count as wrong
    "stateful": {"masked", "stateful"},
}


def under(name: str, n: int = N) -> Protocol:
    return PROTOCOLS[name].model_copy(update={"n": n, **FAST.get(name, {})})


@pytest.fixture(autouse=True)
def fewer_queries(monkeypatch):
    monkeypatch.setitem(sys.modules["zoo.evaluation.evaluate"].SQUARE, "queries", 100)


@pytest.fixture(scope="module")
def world() -> tuple[np.ndarray, np.ndarray]:
    images, labels = pictures(TEST, seed=2)
    return images[:N], labels[:N]


@pytest.fixture(scope="module")
def truth(fragile: nn.Module, world) -> dict[str, float]:
    """The share of images on which each model withstands what is known to break the net inside it."""
    x, y = to_float(world[0]), torch.from_numpy(world[1])
    x_adv = pgd(fragile, x, y, eps=8 / 255, steps=50, loss="cw", early_stop=False)
    return {name: (~broken(make(fragile)(x_adv.clone()), y)).float().mean().item() for name, make in TRICKS.items()}


@pytest.mark.parametrize(
    ("trick", "name"),
    [
        (trick, name)
        for trick in TRICKS
        for name in (*RELEASED, "deepfool")
        if name not in EASY and (name in ALWAYS or not EXPECTED[trick])  # attacks look at a model in the same way
    ],
)
def test_no_trick_looks_more_robust_than_it_is(fragile, world, truth, trick, name):
    flags: set[str] = set()
    found = evaluate(TRICKS[trick](fragile), *world, under(name), flags=flags).mean()
    assert found <= truth[trick] + 0.02 or flags, f"{found:.1%} under {name}, where {truth[trick]:.1%} is right"
    assert flags == EXPECTED[trick]


def test_gradients_are_looked_at_where_attacks_ended_also_if_the_model_normalises_in_place(robust, world):
    flags: set[str] = set()
    model = Trick(robust, lambda x: x.sub_(0.5).div_(0.25) * 0.25 + 0.5)
    found = evaluate(model, *world, under("pgd20"), flags=flags)
    assert flags == {"writes"}
    assert found.sum() == pytest.approx(evaluate(robust, *world, under("pgd20")).sum(), abs=1)


def test_a_flag_that_nobody_asks_for_is_a_warning(fragile, world):
    with pytest.warns(UserWarning, match="too high: masked: its gradient vanishes") as caught:
        evaluate(TRICKS["rounded inputs"](fragile), *world, under("fgsm"))
    assert caught[0].filename == __file__  # Python shows a warning once for each place


def test_random_answers_are_attacked_in_expectation_and_the_verdict_repeats(fragile, world):
    model = TRICKS["random"](fragile)
    one, two = (evaluate(model, *world, under("pgd20", 30), flags=set()) for _ in range(2))
    assert (one == two).all()


def test_an_offset_that_all_logits_share_does_not_hide_random_answers(fragile, world):
    class Offset(Trick):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) + 1e4 * x.mean((1, 2, 3))[:, None]

    flags: set[str] = set()
    evaluate(Offset(fragile, noisy), *world, under("clean", n=20), flags=flags)
    assert "random" in flags


@pytest.mark.parametrize("attack", ATTACKS)
def test_an_attack_hands_out_copies(fragile, world, attack):
    x, y = to_float(world[0][:8]), torch.from_numpy(world[1][:8])
    honest = Trick(fragile, lambda x: (x * 0.5 + 0.25) * 2 - 0.5).eval()
    run = functools.partial(ATTACKS[attack], x=x, y=y, eps=8 / 255, **FEW.get(attack, {}))
    x_adv = run(TRICKS["writing"](fragile).eval())
    assert torch.equal(x, to_float(world[0][:8]))
    assert float((x_adv - x).abs().max()) <= 8 / 255 + 1e-6
    assert torch.equal(x_adv, run(honest))


def test_answers_that_depend_on_the_batch_are_refused_but_for_images_attacked_one_by_one(fragile, world):
    model = Trick(fragile, lambda x: x + 0.3 * (x[:1] - x))
    with pytest.raises(UsageError, match=r"depends on the others in its batch.*batch_size=1"):
        evaluate(model, *world, under("pgd20"))
    assert evaluate(model, *world, under("pgd20", n=10), batch_size=1).mean() <= 0.1


@pytest.mark.parametrize("scale", [1e-3, 100, 1e4])
@pytest.mark.parametrize("name", ["pgd20", "mifgsm20", "apgd50"])
def test_scaling_the_head_of_a_released_net_changes_nothing(cifar, scale, name):
    images, labels = cifar.split("test").images[:100], cifar.split("test").labels[:100]
    model = load("rnascl-s3-wrt34-2")  # 0.1 % under PGD-20
    with torch.no_grad():
        model.head.weight *= scale
        model.head.bias *= scale
    assert evaluate(model, images, labels, under(name)).mean() <= 0.02


def test_scaling_a_robust_net_finds_it_as_robust_as_it_is(cifar):
    images, labels = cifar.split("test").images[:200], cifar.split("test").labels[:200]
    plain, down, up = (load("ard-p4-w15") for _ in range(3))
    with torch.no_grad():
        for model, scale in ((down, 1e-3), (up, 1e3)):
            model.head.weight *= scale
            model.head.bias *= scale
    expected = evaluate(plain, images, labels, under("pgd20", 200)).mean()
    for model in (down, up):  # the loss of scaled logits is the margin's, which is the stronger on this net
        assert expected - 0.08 <= evaluate(model, images, labels, under("pgd20", 200)).mean() <= expected + 0.01


def test_released_nets_are_looked_at_and_have_no_flags(cifar):
    images, labels = cifar.split("test").images[:64], cifar.split("test").labels[:64]
    for name in ("nfgsm-w15-int8", "ard-p4-w15", "rnascl-s7-wrt34-2-trades", "trades-s3", "proard-tiny@8M"):
        flags: set[str] = set()
        evaluate(load(name), images, labels, under("fgsm"), flags=flags)
        assert not flags, name


def test_a_gradient_that_is_wrong_only_where_the_attack_goes_is_noticed(fragile, world):
    def sparse_off_the_grid(x):
        clean = ((x * 255 - (x * 255).round()).abs().amax((1, 2, 3), keepdim=True) < 1e-3).expand_as(x)
        return torch.where(clean, x, Sparse.apply(x))

    flags: set[str] = set()
    evaluate(Trick(fragile, sparse_off_the_grid), *world, under("pgd20"), flags=flags)
    assert flags == {"masked"}
