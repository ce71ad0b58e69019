"""The attacks against other people's: the same images where nothing is drawn, the same accuracy where something is."""

from __future__ import annotations

import copy
import sys

import numpy as np
import pytest
import torch
from test_attacks import CLASSES, SIZE, blobs, robust, size_of, trained_net
from torch import nn

from zoo import attacks
from zoo.attacks import broken

N = 120
SQUARE = sys.modules["zoo.attacks.square"]  # the attribute of that name is the attack


@pytest.fixture(scope="module")
def net() -> nn.Module:
    """Moderate logits: neither flat, nor so large that float32 rounds the gradient of the peers' cross-entropy."""
    net = copy.deepcopy(trained_net())
    net[-1].weight *= 0.55
    net[-1].bias *= 0.55
    return net


@pytest.fixture(scope="module")
def images() -> tuple[torch.Tensor, torch.Tensor]:
    return blobs(N, seed=2)


EPS = {"linf": 14 / 255, "l2": 1.0}  # break about half of the images
SQUARE_EPS, QUERIES = {"linf": 22 / 255, "l2": 3.2}, 300  # so does Square


def art_classifier(net: nn.Module):
    estimators = pytest.importorskip("art.estimators.classification")
    return estimators.PyTorchClassifier(
        net, nn.CrossEntropyLoss(), (3, SIZE, SIZE), CLASSES, clip_values=(0, 1), device_type="cpu"
    )


def assert_same_images(ours, theirs, x, norm: str, atol: float = 1e-4) -> None:
    """But for the few pixels whose gradient is so near zero that its sign, or a later one, may differ."""
    assert (size_of(ours - x, norm) > 0.5 * EPS[norm]).all()
    off = (ours - theirs).abs()
    assert (off.amax((1, 2, 3)) < atol).float().mean() > 0.9
    assert (off < atol).float().mean() > 0.99


def assert_within_spread(ours: list[float], theirs: list[float], slack: float) -> None:
    assert 0.02 < np.mean(theirs) < 0.98, "the comparison is empty if all or none of the images are broken"
    assert min(theirs) - slack <= np.mean(ours) <= max(theirs) + slack, f"{ours} against {theirs}"


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("peer", ["foolbox", "torchattacks"])
def test_pgd_agrees_with_its_peers(net, images, norm, peer):
    package, (x, y), eps, step = pytest.importorskip(peer), images, EPS[norm], EPS[norm] / 8
    if peer == "foolbox":
        kind = {"linf": package.attacks.LinfPGD, "l2": package.attacks.L2PGD}[norm]
        model = package.PyTorchModel(net, bounds=(0, 1), device="cpu")
        _, theirs, _ = kind(abs_stepsize=step, steps=20, random_start=False)(model, x, y, epsilons=eps)
    else:
        kind = {"linf": package.PGD, "l2": package.PGDL2}[norm]
        theirs = kind(net, eps=eps, alpha=step, steps=20, random_start=False)(x, y)
    ours = attacks.pgd(net, x, y, eps=eps, norm=norm, step=step, random_start=False, early_stop=False)
    # torchattacks' gradient is of the batch's mean, and its norm has 1e-10 added: confident images get shorter steps.
    assert_same_images(ours, theirs, x, norm, atol=2e-3 if (peer, norm) == ("torchattacks", "l2") else 1e-4)
    assert robust(net, ours, y) == pytest.approx(robust(net, theirs, y), abs=1 / N)


def test_fgsm_and_mifgsm_agree_with_torchattacks(net, images):
    torchattacks = pytest.importorskip("torchattacks")
    x, y = images
    eps = EPS["linf"]
    theirs = torchattacks.FGSM(net, eps=eps)(x, y)
    assert_same_images(attacks.fgsm(net, x, y, eps=eps), theirs, x, "linf")
    theirs = torchattacks.MIFGSM(net, eps=eps, alpha=eps / 8, steps=10, decay=1.0)(x, y)
    ours = attacks.mifgsm(net, x, y, eps=eps, step=eps / 8, steps=10, early_stop=False)
    assert_same_images(ours, theirs, x, "linf")


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_deepfool_finds_the_perturbations_that_foolbox_finds(net, images, norm):
    foolbox, (x, y), eps = pytest.importorskip("foolbox"), images, EPS[norm]
    right = ~broken(net(x), y)  # foolbox goes from the likeliest class, not from the label
    x, y = x[right], y[right]
    kind = {"linf": foolbox.attacks.LinfDeepFoolAttack, "l2": foolbox.attacks.L2DeepFoolAttack}[norm]
    model = foolbox.PyTorchModel(net, bounds=(0, 1), device="cpu")
    _, (found, within), _ = kind(steps=50, candidates=10, overshoot=0.02, loss="logits")(
        model, x, y, epsilons=[None, eps]
    )
    ours = attacks.deepfool(net, x, y, eps={"linf": 1.0, "l2": 27.0}[norm], norm=norm)  # far enough to be never cut
    assert robust(net, ours, y) == 0
    assert torch.allclose(size_of(ours - x, norm), size_of(found - x, norm), rtol=1e-3, atol=1e-5)
    assert torch.allclose(ours, found, atol=1e-4)
    cut = attacks.deepfool(net, x, y, eps=eps, norm=norm)
    assert torch.allclose(cut, within, atol=1e-4)
    assert 0.2 < robust(net, cut, y) == pytest.approx(robust(net, within, y), abs=1 / N)


def apgd_of_art(net, x, y, *, norm: str, loss: str, steps: int, restarts: int) -> torch.Tensor:
    evasion = pytest.importorskip("art.attacks.evasion")
    attack = evasion.AutoProjectedGradientDescent(
        art_classifier(net),
        norm={"linf": np.inf, "l2": 2}[norm],
        eps=EPS[norm],
        eps_step=2 * EPS[norm],
        max_iter=steps,
        nb_random_init=restarts,
        batch_size=N,
        loss_type={"ce": "cross_entropy", "dlr": "difference_logits_ratio"}[loss],
        verbose=False,
    )
    np.random.seed(0)
    return torch.from_numpy(attack.generate(x.numpy(), y.numpy()))


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("loss", ["ce", "dlr"])
def test_apgd_agrees_with_art(net, images, norm, loss):
    x, y = images
    theirs = apgd_of_art(net, x, y, norm=norm, loss=loss, steps=15, restarts=1)
    ours = [attacks.apgd(net, x, y, eps=EPS[norm], norm=norm, steps=15, loss=loss, seed=s) for s in range(3)]
    # One seed of theirs, on 120 images: the spread is not known, and rounding moves with the number of threads.
    assert_within_spread([robust(net, each, y) for each in ours], [robust(net, theirs, y)], slack=0.07)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_apgd_with_restarts_agrees_with_art(net, images, norm):
    x, y = images
    options = {"norm": norm, "loss": "ce", "steps": 10}
    theirs = robust(net, apgd_of_art(net, x, y, restarts=8, **options), y)
    ours = [robust(net, attacks.apgd(net, x, y, eps=EPS[norm], restarts=r, **options), y) for r in (1, 8)]
    assert ours[0] - ours[1] > 0.02
    assert_within_spread([ours[1]], [theirs], slack=0.04)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_apgd_agrees_with_torchattacks(net, images, norm):
    torchattacks = pytest.importorskip("torchattacks")
    x, y = images
    eps, seeds = EPS[norm], range(2)
    options = {"norm": {"linf": "Linf", "l2": "L2"}[norm], "eps": eps, "steps": 15, "n_restarts": 1}
    for loss in ("ce", "dlr"):
        theirs = [torchattacks.APGD(net, loss=loss, seed=s, **options)(x, y) for s in seeds]
        ours = [attacks.apgd(net, x, y, eps=eps, norm=norm, steps=15, loss=loss, seed=s) for s in seeds]
        assert_within_spread([robust(net, a, y) for a in ours], [robust(net, a, y) for a in theirs], slack=0.04)
    theirs = torchattacks.APGDT(net, n_classes=CLASSES, seed=0, **options)(x, y)
    ours = [attacks.apgd_targeted(net, x, y, eps=eps, norm=norm, steps=15, seed=s) for s in seeds]
    assert_within_spread([robust(net, a, y) for a in ours], [robust(net, theirs, y)], slack=0.04)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_fab_agrees_with_torchattacks(net, images, norm):
    torchattacks = pytest.importorskip("torchattacks")
    x, y = images[0][:30], images[1][:30]
    eps, their_norm = EPS[norm], {"linf": "Linf", "l2": "L2"}[norm]
    theirs = torchattacks.FAB(
        net, norm=their_norm, eps=eps, steps=15, n_restarts=1, multi_targeted=True, n_classes=CLASSES
    )(x, y)
    within = (size_of(theirs - x, norm) <= eps)[:, None, None, None]  # theirs may lie farther away
    ours = attacks.fab_targeted(net, x, y, eps=eps, norm=norm, steps=15)
    theirs = robust(net, torch.where(within, theirs, x), y)
    assert_within_spread([robust(net, ours, y)], [theirs], 2 / 30)


def windows_of_others(shape, index, side, source):
    """Where ART and torchattacks place squares: never on the last row and column, unlike the paper's Algorithm 2."""
    n, c, h, w = shape
    top = torch.randint(0, max(h - side, 1), (n,), generator=source)
    left = torch.randint(0, max(w - side, 1), (n,), generator=source)
    return SQUARE._window(top[index], left[index], side, c)


def square_accuracies(net, x, y, norm: str) -> list[float]:
    options = {"eps": SQUARE_EPS[norm], "norm": norm, "queries": QUERIES}
    return [robust(net, attacks.square(net, x, y, seed=seed, **options), y) for seed in range(3)]


def test_square_agrees_with_art_on_the_squares_that_art_tries_and_beats_it_with_all(net, images, monkeypatch):
    evasion = pytest.importorskip("art.attacks.evasion")
    x, y = (part[:60] for part in images)
    theirs = []
    for seed in range(2):
        np.random.seed(seed)
        attack = evasion.SquareAttack(
            art_classifier(net),
            norm=np.inf,
            eps=SQUARE_EPS["linf"],
            max_iter=QUERIES,
            p_init=0.8,
            nb_restarts=1,
            batch_size=N,
            verbose=False,
        )
        theirs.append(robust(net, torch.from_numpy(attack.generate(x.numpy(), y.numpy())), y))
    assert np.mean(square_accuracies(net, x, y, "linf")) < np.mean(theirs)
    monkeypatch.setattr(SQUARE, "_random_window", windows_of_others)
    assert_within_spread(square_accuracies(net, x, y, "linf"), theirs, slack=0.12)  # they draw once for the whole batch


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_square_agrees_with_torchattacks_on_the_squares_that_it_tries(net, images, norm, monkeypatch):
    torchattacks = pytest.importorskip("torchattacks")
    x, y = (part[:60] for part in images)
    their_norm = {"linf": "Linf", "l2": "L2"}[norm]
    theirs = [
        robust(net, torchattacks.Square(net, norm=their_norm, eps=SQUARE_EPS[norm], n_queries=QUERIES, seed=s)(x, y), y)
        for s in range(2)
    ]
    assert np.mean(square_accuracies(net, x, y, norm)) < np.mean(theirs)
    monkeypatch.setattr(SQUARE, "_random_window", windows_of_others)
    if norm == "l2":  # and they spend the norm of all channels in each of them, where Algorithm 3 has each its own
        norm_ = SQUARE._channel_norm
        monkeypatch.setattr(SQUARE, "_squared_norm", lambda a, b: (norm_(a) ** 2 + norm_(b) ** 2).sum(1, keepdim=True))
    assert_within_spread(square_accuracies(net, x, y, norm), theirs, slack=0.12)
