"""What every attack promises, on nets small enough to know the answer."""

from __future__ import annotations

import functools
import itertools
import math
from operator import attrgetter

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from zoo import attacks
from zoo.attacks import broken, fab, inputs, margin
from zoo.attacks.apgd import checkpoints
from zoo.attacks.ball import Ball
from zoo.attacks.fab import project
from zoo.attacks.square import pattern, side_at
from zoo.evaluation.perturb import perturb
from zoo.evaluation.protocols import CORRUPTED, PROTOCOLS, Protocol
from zoo.system.errors import UsageError

CLASSES, SIZE = 10, 16
NORMS = ("linf", "l2")

# Every attack, as cheap as a test of its contract allows.
QUICK = {
    "uniform": attacks.uniform,
    "fgsm": attacks.fgsm,
    "pgd": functools.partial(attacks.pgd, steps=4),
    "pgd-cw": functools.partial(attacks.pgd, steps=4, loss="cw", restarts=2),
    "pgd-full": functools.partial(attacks.pgd, steps=4, restarts=2, early_stop=False),
    "pgd-t": functools.partial(attacks.pgd_targeted, steps=4, targets=3),
    "pgd-t-full": functools.partial(attacks.pgd_targeted, steps=4, targets=3, early_stop=False),
    "mifgsm": functools.partial(attacks.mifgsm, steps=4),
    "apgd-ce": functools.partial(attacks.apgd, steps=8),
    "apgd-dlr": functools.partial(attacks.apgd, steps=8, loss="dlr", restarts=2, early_stop=False),
    "apgd-t": functools.partial(attacks.apgd_targeted, steps=4, targets=3),
    "deepfool": functools.partial(attacks.deepfool, steps=4, targets=3),
    "fab-t": functools.partial(attacks.fab_targeted, steps=4, targets=3, restarts=2),
    "square": functools.partial(attacks.square, queries=30),
    "autoattack": functools.partial(attacks.autoattack, steps=4, targets=3, queries=20),
}
RANDOM = [name for name in QUICK if name not in ("fgsm", "mifgsm", "deepfool", "fab-t")]
_covered = {getattr(one, "func", one) for one in QUICK.values()}
QUICK |= {name: one for name, one in attacks.ATTACKS.items() if one not in _covered}  # a new attack, as it is


def blobs(n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """n images of ten smooth colour patterns in noise, and their classes."""
    generator = torch.Generator().manual_seed(seed)
    patterns = torch.rand(CLASSES, 3, 4, 4, generator=torch.Generator().manual_seed(99))
    patterns = F.interpolate(patterns, size=(SIZE, SIZE), mode="bilinear")
    y = torch.randint(0, CLASSES, (n,), generator=generator)
    noise = torch.randn(n, 3, SIZE, SIZE, generator=generator)
    return (0.5 + 0.35 * (patterns[y] - 0.5) + 0.12 * noise).clamp(0, 1), y


@functools.cache
def trained_net() -> nn.Module:
    """A tiny net, adversarially trained for two seconds: about half of its images resist 8/255 to 16/255."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Conv2d(3, 16, 3, 2, 1),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, 2, 1),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(32 * 16, CLASSES),
        )
        optimiser = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
        images, labels = blobs(3000, seed=1)
        for _ in range(150):
            index = torch.randint(0, len(images), (100,))
            x, y = images[index], labels[index]
            x = (x + torch.empty_like(x).uniform_(-8 / 255, 8 / 255)).requires_grad_()
            (gradient,) = torch.autograd.grad(F.cross_entropy(net(x), y), x)
            x = (x.detach() + 8 / 255 * gradient.sign()).clamp(0, 1)
            optimiser.zero_grad()
            F.cross_entropy(net(x), y).backward()
            optimiser.step()
    return net.eval().requires_grad_(False)


@pytest.fixture(scope="session")
def net() -> nn.Module:
    return trained_net()


@pytest.fixture
def images() -> tuple[torch.Tensor, torch.Tensor]:
    return blobs(60, seed=2)


def tiny_net(channels: int, classes: int = 5, dtype: torch.dtype = torch.float32) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = nn.Conv2d(channels, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten()
        return nn.Sequential(*layers, nn.Linear(16, classes)).eval().to(dtype)


def size_of(delta: torch.Tensor, norm: str) -> torch.Tensor:
    delta = delta.double().flatten(1)
    return delta.abs().amax(1) if norm == "linf" else delta.norm(dim=1)


def robust(model, x_adv, y) -> float:
    with torch.no_grad():
        return 1 - broken(model(x_adv), y).float().mean().item()


# -- inside the ball, inside the box, nothing else touched ------------------------------------------------------


@pytest.mark.parametrize("name", QUICK)
@settings(max_examples=10)
@given(
    norm=st.sampled_from(NORMS),
    eps=st.one_of(st.sampled_from([0.0, 8 / 255, 0.5, 1.0, 3.0]), st.floats(1e-4, 0.3)),
    shape=st.tuples(st.integers(1, 9), st.sampled_from([1, 3]), st.integers(3, 9), st.integers(3, 9)),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    channels_last=st.booleans(),
    seed=st.integers(0, 2**40),
)
def test_adversarial_images_lie_in_the_ball_and_in_the_box(name, norm, eps, shape, dtype, channels_last, seed):
    generator = torch.Generator().manual_seed(seed)
    x = (torch.rand(shape, generator=generator, dtype=dtype) * 1.4 - 0.2).clamp(0, 1)  # many at the box
    y = torch.randint(0, 5, shape[:1], generator=generator)
    x = x.to(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
    eps = min(eps, 1.0) if norm == "linf" else eps
    x_adv = QUICK[name](tiny_net(shape[1], dtype=dtype), x, y, eps=eps, norm=norm, seed=seed)
    assert x_adv.shape == x.shape
    assert x_adv.dtype == x.dtype
    assert x_adv.is_contiguous()
    assert not x_adv.requires_grad
    assert x_adv.min() >= 0
    assert x_adv.max() <= 1
    assert (size_of(x_adv - x, norm) <= eps + 1e-6).all()


@pytest.mark.parametrize("name", QUICK)
def test_the_same_seed_gives_the_same_images_and_another_seed_others(net, images, name):
    x, y = images
    first, again, other = (QUICK[name](net, x, y, eps=16 / 255, seed=seed) for seed in (3, 3, 4))
    assert torch.equal(first, again)
    if name in RANDOM:
        assert not torch.equal(first, other)


@pytest.mark.parametrize("name", QUICK)
def test_model_inputs_and_global_random_state_are_left_as_they_were(images, name):
    x, y = images
    model = tiny_net(3)
    model[0].bias.requires_grad_(False)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    before = x.clone(), y.clone(), torch.get_rng_state(), np.random.get_state()[1].copy()
    QUICK[name](model, x, y % 5, eps=8 / 255)
    assert torch.equal(x, before[0])
    assert torch.equal(y, before[1])
    assert torch.equal(torch.get_rng_state(), before[2])
    assert np.array_equal(np.random.get_state()[1], before[3])
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert [p.requires_grad for p in model.parameters()] == [True, False, True, True]
    assert all(p.grad is None for p in model.parameters())
    assert not model.training


def test_parameters_are_frozen_while_a_model_is_attacked_and_thawed_when_it_fails():
    model = tiny_net(3)
    seen = []

    def failing(module, inputs, outputs):
        seen.append(any(p.requires_grad for p in module.parameters()))
        raise RuntimeError("stop")

    model.register_forward_hook(failing)
    with pytest.raises(RuntimeError, match="stop"):
        attacks.pgd(model, torch.rand(2, 3, 8, 8), torch.tensor([0, 1]), eps=0.1)
    assert seen == [False]
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("name", QUICK)
def test_no_images_give_no_images(name):
    x_adv = QUICK[name](tiny_net(3), torch.empty(0, 3, 8, 8), torch.empty(0, dtype=torch.int64), eps=0.1)
    assert x_adv.shape == (0, 3, 8, 8)


@pytest.mark.parametrize("name", ["pgd", "apgd-ce", "apgd-t", "deepfool", "fab-t", "square"])
def test_a_shrinking_batch_does_not_recompile_the_model_for_every_size(net, name):
    from torch._dynamo.testing import CompileCounter

    torch._dynamo.reset()
    counter = CompileCounter()
    x, y = blobs(120, seed=2)
    steps = {"queries": 400} if name == "square" else {"steps": 12}
    compiled = torch.compile(net, backend=counter, dynamic=True)
    attack = QUICK[name].func
    assert robust(net, attack(compiled, x, y, eps=20 / 255, **steps), y) < 0.5  # so it did shrink
    assert counter.frame_count <= 2  # one graph with gradients, one without


@pytest.mark.parametrize("name", ["pgd", "apgd-ce", "square"])
def test_what_is_drawn_for_an_image_does_not_depend_on_which_others_are_broken(images, name):
    x, y = images[0].double(), images[1]
    net = tiny_net(3, CLASSES, torch.float64)
    with torch.no_grad():
        y = net(x).argmax(1)
    others = y.clone()
    others[:40] = (others[:40] + 1) % CLASSES  # broken from the start: the batch shrinks at once
    attack, eps = QUICK[name], 2e-3
    alone, among = attack(net, x, others, eps=eps, seed=1), attack(net, x, y, eps=eps, seed=1)
    assert not torch.equal(among[40:], x[40:])
    assert torch.allclose(alone[40:], among[40:], atol=1e-12)


# -- planted adversarial examples ---------------------------------------------------------------------------------


class Planted(nn.Module):
    """Linear: the margin of class 0 over class 1 is <w, x> + b, no other class can win."""

    def __init__(self, w: torch.Tensor, b: float) -> None:
        super().__init__()
        self.w, self.b = w, b
        self.eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        half = ((x * self.w).sum((1, 2, 3)) + self.b) / 2
        never = torch.full_like(half, -50.0)
        return torch.stack([half, -half, never, never - 1, never - 2], dim=1)


def least_eps(x: torch.Tensor, w: torch.Tensor, b: float, norm: str) -> torch.Tensor:
    """The size of the smallest change within [0, 1] that makes <w, x> + b zero, by bisection in float64: [N]."""
    x, w = x.double(), w.double()
    sign, pull = w.sign(), w.abs() if norm == "l2" else torch.ones_like(w)
    result = []
    for image in x:
        low, high = 0.0, 1e4
        for _ in range(100):
            middle = (low + high) / 2
            moved = (image - middle * sign * pull).clamp(0, 1)
            low, high = (middle, high) if (moved * w).sum() + b > 0 else (low, middle)
        delta = (image - high * sign * pull).clamp(0, 1) - image
        result.append(size_of(delta[None], norm)[0])
    return torch.stack(result)


def planted(channels: int = 3, size: int = 8, n: int = 12) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Images, some of whose pixels are at the box, and a linear margin that is positive on all of them."""
    generator = torch.Generator().manual_seed(5)
    w = torch.randn(channels, size, size, generator=generator)
    x = (torch.rand(n, channels, size, size, generator=generator) * 1.2 - 0.1).clamp(0, 1)
    return x, w, 1.0 - (x * w).sum((1, 2, 3)).min().item()


FINDERS = {
    "fgsm": (attacks.fgsm, 1.001),
    "pgd": (functools.partial(attacks.pgd, steps=40), 1.02),
    "pgd-cw": (functools.partial(attacks.pgd, steps=40, loss="cw"), 1.02),
    "pgd-t": (functools.partial(attacks.pgd_targeted, steps=40, targets=1), 1.02),
    "mifgsm": (lambda *args, eps, norm: attacks.mifgsm(*args, eps=eps, norm=norm, step=eps / 10, steps=40), 1.02),
    "apgd-ce": (attacks.apgd, 1.02),
    "apgd-dlr": (functools.partial(attacks.apgd, loss="dlr"), 1.02),
    "apgd-t": (functools.partial(attacks.apgd_targeted, targets=1), 1.02),
    "deepfool": (attacks.deepfool, 1.03),
    "fab-t": (functools.partial(attacks.fab_targeted, targets=1), 1.02),
    "square": (functools.partial(attacks.square, queries=1500), 1.1),
    "autoattack": (functools.partial(attacks.autoattack, targets=1, queries=50), 1.02),
}


# Not FGSM in l2: the gradient at the image does not know the box.
@pytest.mark.parametrize(("name", "norm"), sorted(set(itertools.product(FINDERS, NORMS)) - {("fgsm", "l2")}))
def test_an_attack_breaks_exactly_the_images_whose_least_perturbation_is_within_eps(name, norm):
    x, w, b = planted(channels=1, size=5) if name == "square" else planted()
    y, model = torch.zeros(len(x), dtype=torch.int64), Planted(w, b)
    attack, slack = FINDERS[name]
    if (name, norm) == ("square", "l2"):
        slack = 2.0  # its squares of 3 x 3 cannot follow single pixels
    least = least_eps(x, w, b, norm)
    eps = least.sort().values[len(x) // 2].item() * (1 + 1e-6)  # half of the images lie on either side
    fell = broken(model(attack(model, x, y, eps=eps, norm=norm)), y)
    assert not fell[least > eps].any(), "nothing outside the ball"
    fell = broken(model(attack(model, x, y, eps=eps * slack, norm=norm)), y)
    assert fell[least <= eps].all(), "everything well inside"


def test_targets_find_a_class_that_the_cross_entropy_leads_away_from():
    x, y = torch.full((4, 3, 8, 8), 0.5), torch.zeros(4, dtype=torch.int64)

    def model(x):  # brighter images come nearer to class 1 and never reach it, darker ones are in class 2
        t = 5 * (x.mean((1, 2, 3)) - 0.5)  # [-1, 1] within eps
        return torch.stack([0 * t, 0.04 * torch.tanh(5 * t) - 0.05, -7 - 12 * t], 1)

    assert robust(model, attacks.pgd(model, x, y, eps=0.2), y) == 1
    assert robust(model, attacks.pgd_targeted(model, x, y, eps=0.2, targets=1), y) == 1  # class 1 is the likeliest
    assert robust(model, attacks.pgd_targeted(model, x, y, eps=0.2, targets=2), y) == 0


@pytest.mark.parametrize("norm", NORMS)
def test_momentum_takes_pgd_over_a_dip_in_the_loss(norm):
    # Along the one pixel the margin falls, rises a little, and only then falls below zero: plain ascent from the
    # image oscillates in front of the dip.
    def model(x):
        t = x.mean((1, 2, 3)) - 0.5  # [0, 0.4] within eps
        m = 1.0 - 2 * t + 0.6 * torch.exp(-(((t - 0.2) / 0.02) ** 2)) * (t < 0.3)
        m = torch.where(t > 0.3, 0.35 - t, m)
        return torch.stack([m, -m], dim=1)

    x, y = torch.full((1, 1, 1, 1), 0.5), torch.tensor([0])
    stuck = attacks.pgd(model, x, y, eps=0.4, step=0.02, steps=40, norm=norm, random_start=False)
    over = attacks.mifgsm(model, x, y, eps=0.4, step=0.02, steps=40, norm=norm)
    assert not broken(model(stuck), y).any()
    assert broken(model(over), y).all()


@settings(max_examples=60)
@given(st.data())
def test_fabs_projection_is_the_nearest_point_of_box_and_hyperplane(data):
    seed = data.draw(st.integers(0, 2**32))
    norm = data.draw(st.sampled_from(NORMS))
    generator = torch.Generator().manual_seed(seed)
    shape = (4, *data.draw(st.tuples(st.integers(1, 3), st.integers(1, 6), st.integers(1, 6))))
    point = (torch.rand(shape, generator=generator, dtype=torch.float64) * 1.4 - 0.2).clamp(0, 1)
    w = torch.randn(shape, generator=generator, dtype=torch.float64)
    w[torch.rand(shape, generator=generator) < 0.2] = 0
    offset = torch.randn(4, 1, 1, 1, generator=generator, dtype=torch.float64) * data.draw(st.floats(0, 10))
    d = project(point, w, offset, norm)

    assert ((point + d >= -1e-12) & (point + d <= 1 + 1e-12)).all()
    reach = (w * d).sum((1, 2, 3)) + offset.flatten()
    best = torch.where(w * offset > 0, -point, 1 - point) * (w != 0)  # as far as the box lets every pixel go
    feasible = (w.abs() * best.abs()).sum((1, 2, 3)) > offset.abs().flatten() * (1 + 1e-9)
    assert (reach.abs()[feasible] < 1e-5 * (1 + offset.abs().flatten()[feasible])).all()
    assert torch.allclose(d[~feasible], best[~feasible] * (offset[~feasible] != 0), atol=1e-6)
    for i in feasible.nonzero().flatten():
        turned = w[i] * offset[i].sign()
        bias = offset[i].abs().item() - (turned * point[i]).sum().item()
        expected = least_eps(point[i][None], turned, bias, norm)[0]
        assert size_of(d[i][None], norm)[0] == pytest.approx(expected.item(), rel=1e-5, abs=1e-9)


# -- how the attacks compare ------------------------------------------------------------------------------------


class Rippled(nn.Module):
    """A net behind a ripple of its input, whose gradients mislead beyond a small distance."""

    def __init__(self, net: nn.Module, height: float = 1.5, often: int = 40) -> None:
        super().__init__()
        self.net, self.height, self.often = net, height, often

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pace = 2 * torch.pi * self.often
        return self.net(x + self.height * (pace * x).sin() / pace)


@pytest.mark.parametrize(("ripple", "eps"), [(False, 0.02), (False, 0.06), (True, 0.06)])
def test_fab_breaks_as_many_and_asks_seldom_about_points_outside_the_ball(net, images, monkeypatch, ripple, eps):
    (x, y), model = images, Rippled(net).eval() if ripple else net
    broke, asked = [], []
    for often, far in ((1, torch.inf), (fab.OPEN, fab.FAR)):  # every step, and no search is given up; or as it is
        monkeypatch.setattr(fab, "OPEN", often)
        monkeypatch.setattr(fab, "FAR", far)
        counts = []

        def counted(x, counts=counts):
            counts.append(0 if x.requires_grad else len(x))
            return model(x)

        fell = broken(model(attacks.fab_targeted(counted, x, y, eps=eps, steps=40, targets=2)), y)
        broke.append(fell)
        asked.append(sum(counts))
    assert torch.equal(*broke)
    if ripple:
        assert broke[0].any()  # of 60, where most points outside are right
    elif eps == 0.02:
        assert asked[1] < 0.7 * asked[0]


@pytest.mark.parametrize(
    ("kind", "norm", "eps"),
    [
        ("plain", "linf", 0.02),
        ("plain", "l2", 0.3),
        ("flat", "linf", 0.06),
        ("flat", "l2", 1),
        ("ripple", "linf", 0.02),
    ],
)
def test_fab_gives_up_what_is_far_and_no_longer_gets_nearer(net, images, monkeypatch, kind, norm, eps):
    x, y = images
    model = {
        "plain": net,
        "flat": lambda x: (3 * net(x)).softmax(1),  # steps lead far past the boundary, and the way back takes dozens
        "ripple": Rippled(net).eval(),  # distances mean little there: no search is given up
    }[kind]
    broke, passes = [], []
    for far in (torch.inf, fab.FAR):
        monkeypatch.setattr(fab, "FAR", far)
        counts = []

        def counted(x, counts=counts):
            counts.append(len(x) if x.requires_grad else 0)
            return model(x)

        broke.append(broken(model(attacks.fab_targeted(counted, x, y, eps=eps, norm=norm, steps=40, targets=2)), y))
        passes.append(sum(counts))
    assert torch.equal(*broke)
    match kind:
        case "plain":
            assert passes[1] < 0.6 * passes[0]
        case "flat":
            assert broke[0].any()
        case "ripple":
            assert passes[1] == passes[0]


@pytest.mark.parametrize("norm", NORMS)
def test_more_steps_restarts_and_eps_break_more(net, images, norm):
    x, y = images
    eps = 14 / 255 if norm == "linf" else 0.75
    pgd = functools.partial(attacks.pgd, net, x, y, norm=norm)
    one, ten, restarts, full = (
        robust(net, pgd(eps=eps, step=eps / 4, steps=1), y),
        robust(net, pgd(eps=eps, step=eps / 4, steps=10), y),
        robust(net, pgd(eps=eps, step=eps / 4, steps=10, restarts=5), y),
        robust(net, pgd(eps=10 * eps, steps=20), y),
    )
    assert one >= ten >= restarts > full == 0.0
    assert one > restarts


def test_autoattack_breaks_at_least_what_each_part_breaks_and_counts_who_was_first(net):
    x, y = blobs(80, seed=3)
    eps = 15 / 255
    counts: dict[str, float] = {}
    x_adv = attacks.autoattack(net, x, y, eps=eps, steps=20, targets=4, queries=200, counts=counts)
    parts = {
        "apgd-ce": attacks.apgd(net, x, y, eps=eps, steps=20),
        "apgd-t": attacks.apgd_targeted(net, x, y, eps=eps, steps=20, targets=4),
        "fab-t": attacks.fab_targeted(net, x, y, eps=eps, steps=20, targets=4),
        "square": attacks.square(net, x, y, eps=eps, queries=200),
    }
    left = robust(net, x_adv, y)
    assert left < robust(net, x, y)
    assert all(left <= robust(net, x_part, y) for x_part in parts.values())
    assert list(counts) == list(parts)
    first = broken(net(parts["apgd-ce"]), y)
    assert counts["apgd-ce"] == first.sum()
    assert broken(net(x_adv), y)[first].all()
    assert sum(counts.values()) == pytest.approx(len(x) * (1 - left))


def test_autoattack_leaves_out_images_that_are_wrong_to_begin_with(net, images):
    x, y = images
    wrong = y.clone()
    wrong[:20] = (wrong[:20] + 1) % CLASSES
    counts: dict[str, float] = {}
    x_adv = attacks.autoattack(net, x, wrong, eps=0.5, steps=5, queries=5, counts=counts)
    assert torch.equal(x_adv[:20], x[:20])
    assert sum(counts.values()) == 40


def test_stopping_early_breaks_no_fewer_images_and_going_on_leaves_them_more_wrong(net, images):
    x, y = images
    for attack in (functools.partial(attacks.pgd, steps=20), functools.partial(attacks.apgd, steps=20)):
        early, full = (attack(net, x, y, eps=14 / 255, early_stop=flag) for flag in (True, False))
        assert robust(net, early, y) <= robust(net, full, y)
        fell = broken(net(early), y) & broken(net(full), y)
        assert fell.any()
        assert margin(net(full), y)[fell].mean() < 1.3 * margin(net(early), y)[fell].mean() < 0


def test_restarts_return_the_worst_of_each_image(net, images):
    x, y = images
    pgd = functools.partial(attacks.pgd, net, x, y, eps=13 / 255, steps=3, early_stop=False)
    one, two = pgd(restarts=1), pgd(restarts=4)
    fell_one, fell_two = broken(net(one), y), broken(net(two), y)
    assert (fell_two | ~fell_one).all()
    gain = F.cross_entropy(net(two), y, reduction="none") - F.cross_entropy(net(one), y, reduction="none")
    assert (gain[fell_one == fell_two] >= 0).all()
    assert (gain > 0).any()


def test_masked_gradients_stop_pgd_but_not_square_and_autoattack_shows_it(net):
    x, y = blobs(60, seed=4)

    def masked(x):  # logits in steps, as an int8 head gives them: their gradient is zero
        return torch.round(net(x) * 2) / 2

    x, y = x[~broken(masked(x), y)], y[~broken(masked(x), y)]
    eps = 20 / 255
    assert robust(masked, attacks.pgd(masked, x, y, eps=eps, random_start=False), y) == 1.0
    assert robust(masked, attacks.square(masked, x, y, eps=eps, queries=800), y) < 0.5
    counts: dict[str, float] = {}
    attacks.autoattack(masked, x, y, eps=eps, steps=5, queries=800, counts=counts)
    assert counts["square"] > 0.002 * len(x)
    assert counts["square"] > counts["apgd-ce"] + counts["apgd-t"] + counts["fab-t"]


# -- Square and engines -----------------------------------------------------------------------------------------


def test_square_keeps_to_its_queries_and_does_not_query_broken_images(net):
    x, y = blobs(60, seed=2)
    sizes = []

    def counted(x):
        sizes.append(len(x))
        return net(x)

    x_adv = attacks.square(counted, x, y, eps=40 / 255, queries=300)
    left = 60 - int(broken(net(x_adv), y).sum())
    assert left < 30
    assert len(sizes) <= 300
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] < left + 8  # some broken ones may fill the batch


def test_square_counts_ties_as_broken():
    def tied(x):
        return torch.zeros(len(x), 4)

    sizes = []

    def steps(x):  # logits in steps of one; a pixel that goes from one end of the ball to the other is worth one
        sizes.append(len(x))
        return torch.stack([torch.full((len(x),), 107.0), torch.floor(200 * x.mean((1, 2, 3)))], dim=1)

    x, y = torch.full((8, 1, 6, 6), 0.45), torch.zeros(8, dtype=torch.int64)
    assert torch.equal(attacks.square(tied, x, y, eps=0.1), x)
    assert not broken(steps(x), y).any()
    x_adv = attacks.square(steps, x, y, eps=0.1, queries=1000)
    assert broken(steps(x_adv), y).all()
    assert (margin(steps(x_adv), y) == 0).any()
    assert len(sizes) < 1000


@pytest.mark.parametrize("norm", NORMS)
def test_a_reused_output_buffer_does_not_fool_square(net, images, norm):
    x, y = images
    buffer = torch.empty(len(x), CLASSES)

    def engine(x):
        buffer[: len(x)] = net(x)
        return buffer[: len(x)]

    eps = 16 / 255 if norm == "linf" else 2.0
    expected = attacks.square(net, x, y, eps=eps, norm=norm, queries=300)
    assert torch.equal(attacks.square(engine, x, y, eps=eps, norm=norm, queries=300), expected)
    assert 0 < robust(net, expected, y) < 1


def test_square_needs_no_gradients_and_other_attacks_refuse_a_model_without(net, images):
    x, y = images

    def engine(x):
        return torch.from_numpy(net(x.detach()).numpy().copy())

    assert robust(engine, attacks.square(engine, x, y, eps=16 / 255, queries=300), y) < 1
    with pytest.raises(UsageError, match=r"no gradient.*Square"):
        attacks.pgd(engine, x, y, eps=16 / 255)


def test_squares_shrink_on_the_papers_schedule_rescaled_to_the_number_of_queries():
    x = torch.empty(1, 3, 32, 32)
    pixels = {query: side_at(0.8, query, 10_000, x) ** 2 for query in (5, 40, 150, 400, 900, 5000, 9999)}
    expected = {5: 0.8, 40: 0.4, 150: 0.2, 400: 0.1, 900: 0.05, 5000: 0.8 / 128, 9999: 0.8 / 512}
    for query, p in expected.items():
        assert pixels[query] == pytest.approx(max(p * 1024, 1), abs=(p * 1024) ** 0.5 + 1)
    assert all(side_at(0.8, q, 5000, x) == side_at(0.8, 2 * q, 10_000, x) for q in range(1, 5000, 7))


def test_the_l2_pattern_is_two_opposite_bumps_of_norm_one():
    for side_ in (1, 2, 3, 4, 5, 8, 13):
        eta = pattern(side_)
        assert eta.shape == (side_, side_)
        assert eta.norm() == pytest.approx(1)
        half = side_ // 2
        assert (eta[:, :half] > 0).all()
        assert (eta[:, half:] < 0).all()
    bump = pattern(5)[:, 2:] / pattern(5)[0, 2]  # 5 rows, 3 columns, in units of its corner
    first, second, third = 1 / 9, 1 / 9 + 1 / 4, 1 / 9 + 1 / 4 + 1
    assert bump[2, 1] == pytest.approx(third / second) or bump[2, 1] == pytest.approx(third / first)


def test_apgd_checkpoints_are_the_papers():
    assert checkpoints(100) == [0, 22, 41, 57, 70, 80, 87, 93, 99]


# -- protocols --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "protocol", [one for one in PROTOCOLS.values() if one.attack not in CORRUPTED], ids=attrgetter("name")
)
def test_every_released_protocol_runs(net, images, protocol):
    x, y = images[0][:8], images[1][:8]
    if protocol.attack == "autoattack":
        protocol = protocol.model_copy(update={"queries": 20, "steps": 5})
    if protocol.attack == "square":
        protocol = protocol.model_copy(update={"queries": 200})
    if (protocol.steps or 0) * protocol.restarts > 200:
        protocol = protocol.model_copy(
            update={"steps": min(protocol.steps, 100), "restarts": min(protocol.restarts, 5)}
        )
    x_adv = perturb(protocol, net, x, y)
    assert (size_of(x_adv - x, protocol.norm) <= protocol.eps + 1e-6).all()
    assert torch.equal(perturb(protocol, net, x, y), x_adv)


def test_a_protocols_options_reach_its_attack(net, images):
    x, y = images
    fields = {"eps": 0.05, "step": 0.02, "steps": 3, "restarts": 2, "loss": "cw", "seed": 9}
    protocol = Protocol(name="p", attack="pgd", **fields)
    assert torch.equal(perturb(protocol, net, x, y), attacks.pgd(net, x, y, **fields))
    full = perturb(protocol, net, x, y, early_stop=False)  # examples to replay
    assert torch.equal(full, attacks.pgd(net, x, y, **fields, early_stop=False))
    l2 = Protocol(name="s", attack="square", norm="l2", eps=1.0, queries=40, seed=9)
    expected = attacks.square(net, x, y, eps=1.0, norm="l2", queries=40, seed=9)
    assert torch.equal(perturb(l2, net, x, y), expected)
    assert perturb(PROTOCOLS["clean"], net, x, y) is x


def test_an_option_that_the_attack_does_not_have_is_refused(net, images):
    protocol = Protocol(name="odd", attack="square", step=0.01, restarts=2)
    with pytest.raises(UsageError, match="'odd' sets restarts, step, which the attack 'square' does not take"):
        perturb(protocol, net, *images)


# -- bad input --------------------------------------------------------------------------------------------------

GOOD = torch.full((2, 3, 8, 8), 0.5)
LABELS = torch.tensor([0, 1])


@pytest.mark.parametrize(
    ("x", "y", "says"),
    [
        (GOOD[0], LABELS, r"shape \[N, C, H, W\], not of shape \[3, 8, 8\]"),
        (GOOD.numpy(), LABELS, "not ndarray"),
        ((GOOD * 255).byte(), LABELS, "not torch.uint8: divide by 255"),
        (GOOD.half(), LABELS, "not torch.float16"),
        (GOOD * 255, LABELS, r"values in \[127.5, 127.5\]"),
        (GOOD - 0.6, LABELS, "must lie in"),
        (torch.where(GOOD.cumsum(3) > 3, torch.nan, GOOD), LABELS, "NaN"),
        (torch.where(GOOD.cumsum(3) > 3, torch.inf, GOOD), LABELS, "inf"),
        (GOOD, LABELS.float(), "labels must be a tensor of integers, not torch.float32"),
        (GOOD, LABELS.bool(), "integers"),
        (GOOD, [0, 1], "not list"),
        (GOOD, LABELS[:1], r"2 images need labels of shape \[2\], not \[1\]"),
        (GOOD, -LABELS, "at least 0, but one is -1"),
        (GOOD, LABELS + 4, "a label is 5, but the model has only 5 classes"),
    ],
)
@pytest.mark.parametrize("name", ["pgd", "apgd-ce", "fab-t", "square", "autoattack"])
def test_malformed_images_and_labels_are_refused(x, y, says, name):
    with pytest.raises(UsageError, match=says):
        QUICK[name](tiny_net(3), x, y, eps=0.1)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"eps": -0.1}, "eps must be"),
        ({"eps": float("nan")}, "eps must be"),
        ({"eps": "8/255"}, "eps must be"),
        ({"eps": 8}, "eps must be at most 1, as pixels lie in .0, 1., not 8: 8/255 is eight grey levels"),
        ({"norm": "l1"}, "'linf' or 'l2', not 'l1'"),
        ({"steps": 0}, "steps must be a whole number of at least 1, not 0"),
        ({"steps": 2.5}, "steps must be"),
        ({"restarts": 0}, "restarts must be"),
        ({"step": 0.0}, "step must be"),
        ({"loss": "mse"}, "ce, cw, dlr, not 'mse'"),
        ({"restarts": 3, "random_start": False}, "3 restarts from the same point"),
    ],
)
def test_impossible_options_are_refused(options, says):
    with pytest.raises(UsageError, match=says):
        attacks.pgd(tiny_net(3), GOOD, LABELS, **({"eps": 0.1} | options))


def test_an_attack_in_inference_mode_finds_the_same(net, images):
    x, y = images
    expected = attacks.pgd(net, x, y, eps=16 / 255, steps=3)
    with torch.inference_mode():
        assert torch.equal(attacks.pgd(net, x, y, eps=16 / 255, steps=3), expected)
        assert torch.equal(attacks.pgd(net, x + 0, y + 0, eps=16 / 255, steps=3), expected)


def test_a_model_made_in_inference_mode_is_attacked_by_square_alone(images):
    x, y = images
    with torch.inference_mode():
        made = tiny_net(x.shape[1])
    assert attacks.square(made, x, y % 3, eps=0.1, queries=5).shape == x.shape
    with pytest.raises(UsageError, match=r"made in torch\.inference_mode\(\): make it outside"):
        attacks.pgd(made, x, y % 3, eps=0.1)
    assert all(parameter.requires_grad for parameter in made.parameters())


@pytest.mark.parametrize(
    ("attack", "option", "values"),
    [
        (attacks.mifgsm, "decay", (math.nan, math.inf, -1.0)),
        (attacks.deepfool, "overshoot", (math.nan, -2)),
        (attacks.square, "p_init", (math.nan, 0, -0.1, 1.5)),
    ],
)
def test_options_of_single_attacks_that_would_weaken_them_are_refused(attack, option, values):
    for value in values:
        with pytest.raises(UsageError, match=f"{option} must be a finite number"):
            attack(tiny_net(3), GOOD, LABELS, eps=0.1, **{option: value})


@pytest.mark.parametrize("name", QUICK)
def test_a_model_in_train_mode_is_refused_even_if_only_a_part_is(name):
    model = tiny_net(3)
    model[2].train()
    with pytest.raises(UsageError, match=r"its part '2'.*model.eval\(\)"):
        QUICK[name](model, GOOD, LABELS, eps=0.1)
    with pytest.raises(UsageError, match=r"the model is in train mode"):
        QUICK[name](model.train(), GOOD, LABELS, eps=0.1)


@pytest.mark.parametrize("name", ["apgd-dlr", "apgd-t", "autoattack"])
def test_the_dlr_loss_needs_four_classes(name):
    with pytest.raises(UsageError, match="at least 4 classes, but the model has 3"):
        QUICK[name](tiny_net(3, classes=3), GOOD, LABELS, eps=0.1)
    QUICK[name](tiny_net(3, classes=4), GOOD, LABELS, eps=0.1)


@pytest.mark.parametrize("name", ["pgd", "apgd-ce", "fab-t", "square", "autoattack"])
def test_logits_of_another_shape_are_refused(name):
    for wrong in (
        lambda x: x.mean((1, 2, 3)),
        lambda x: x,
        lambda x: x.mean((2, 3))[:1],
        lambda x: x.mean((1, 2))[:, :1],
    ):
        with pytest.raises(UsageError, match=r"logits of shape \[2, classes\]"):
            QUICK[name](wrong, GOOD, LABELS, eps=0.1)


@pytest.mark.parametrize(
    ("craft", "says"),
    [
        (lambda x: torch.full_like(x, 0.5), r"went .* far, with eps = 0\.03"),
        (lambda x: x * torch.nan, r"images in \[0, 1\], not in \[nan"),
        (lambda x: x[:1], r"must return torch.float32 \[8, 3, 8, 8\] on cpu, not torch.float32 \[1, "),
        (lambda x: x.double(), "not torch.float64"),
        (lambda x: None, "not NoneType"),
    ],
)
def test_an_attack_that_breaks_its_promise_is_not_believed(craft, says, monkeypatch):
    monkeypatch.setattr("zoo.attacks.inputs.ATTACKS", {})
    monkeypatch.setattr("zoo.attacks.inputs.KINDS", {})
    wrong = inputs.attack("wrong")(lambda model, x, y, *, eps, norm="linf": craft(x))
    with pytest.raises(RuntimeError, match=f"the attack 'wrong' is wrong: it .*{says}"):
        wrong(tiny_net(3), torch.rand(8, 3, 8, 8), torch.zeros(8, dtype=torch.int64), eps=8 / 255)
    with pytest.raises(TypeError, match="two attacks are called 'wrong'"):
        inputs.attack("wrong")(attacks.pgd)


@pytest.mark.parametrize("odd", [torch.nan, torch.inf, -torch.inf])
def test_logits_that_are_not_finite_count_as_broken_whichever_class_has_them(odd):
    z = torch.tensor([[1.0, 0.0, odd], [odd, 0.0, 0.0], [1.0, odd, odd], [1.0, 0.0, 0.0]])
    assert broken(z, torch.zeros(4).long()).tolist() == [True, True, True, False]


@pytest.mark.parametrize("loss", ["ce", "cw", "dlr"])
def test_apgd_sees_logits_that_overflow_inside_the_ball(loss):
    """Of the right class, so that the cross-entropy there is the least that there is."""

    def overflowing(x):
        s = x.mean((1, 2, 3))
        right = torch.where(s > 0.52, torch.inf, 2 - s)
        return torch.stack([right, s, 0 * s, 0 * s], dim=1)

    x, y = torch.full((3, 3, 8, 8), 0.5), torch.zeros(3, dtype=torch.int64)
    assert not broken(overflowing(x), y).any()
    assert broken(overflowing(attacks.apgd(overflowing, x, y, eps=0.05, steps=10, loss=loss)), y).all()


def test_small_balls_of_large_images_are_no_fault_of_the_attack():
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 224**2, 4)).eval()
    x, y = torch.rand(1, 3, 224, 224), torch.zeros(1, dtype=torch.int64)
    for one in (attacks.mifgsm, attacks.apgd, attacks.pgd):
        for eps in (2e-3, 1e-4):
            one(model, x, y, eps=eps, norm="l2", steps=4)


def test_an_attack_that_writes_into_its_images_leaves_the_callers_alone_and_is_not_believed(monkeypatch):
    monkeypatch.setattr("zoo.attacks.inputs.ATTACKS", {})
    monkeypatch.setattr("zoo.attacks.inputs.KINDS", {})
    writing = inputs.attack("writing")(lambda model, x, y, *, eps: x.fill_(0.75))
    x = torch.full((2, 3, 8, 8), 0.5)
    with pytest.raises(RuntimeError, match=r"went 0\.25 far, with eps = 0\.1"):
        writing(tiny_net(3), x, torch.zeros(2, dtype=torch.int64), eps=0.1)
    assert (x == 0.5).all()


def test_an_attack_may_be_given_eps_by_its_place_but_must_take_one(monkeypatch):
    monkeypatch.setattr("zoo.attacks.inputs.ATTACKS", {})
    monkeypatch.setattr("zoo.attacks.inputs.KINDS", {})
    placed = inputs.attack("placed")(lambda model, x, y, eps: x + 0.2)
    model, x, y = tiny_net(3), torch.full((2, 3, 8, 8), 0.5), torch.zeros(2, dtype=torch.int64)
    with pytest.raises(RuntimeError, match=r"went 0\.2 far, with eps = 0\.1"):
        placed(model, x, y, 0.1)
    assert torch.equal(placed(model, x, y, 0), x)
    with pytest.raises(TypeError, match="the attack 'unbounded' must take eps"):
        inputs.attack("unbounded")(lambda model, x, y, *, radius: x)


@pytest.mark.parametrize("name", ["pgd", "mifgsm", "apgd-ce", "deepfool", "fgsm"])
def test_logits_near_the_largest_float_do_not_stop_an_attack(name, net, images):
    class Loud(nn.Module):
        def forward(self, x):
            return 1e37 * net(x)

    x, y = images
    quiet, loud = (int(broken(net(QUICK[name](one, x, y, eps=16 / 255)), y).sum()) for one in (net, Loud().eval()))
    assert loud >= quiet - 3


@pytest.mark.parametrize("wrong", [{"eps": True}, {"eps": 0.1, "steps": True}, {"eps": 0.1, "step": True}])
def test_truth_values_are_no_numbers(wrong, net, images):
    with pytest.raises(UsageError, match=r"must be a .* not True"):
        attacks.pgd(net, *images, **wrong)


def test_a_ball_in_l2_is_no_larger_than_the_box(net, images):
    x, y = images
    with pytest.raises(UsageError, match=r"eps must be at most 27\.71 in l2 for images of this size, not 1e\+20"):
        attacks.square(net, x, y, eps=1e20, norm="l2")


def test_defaults_of_an_attack_bound_it_too(monkeypatch):
    monkeypatch.setattr("zoo.attacks.inputs.ATTACKS", {})
    monkeypatch.setattr("zoo.attacks.inputs.KINDS", {})
    wide = inputs.attack("wide")(lambda model, x, y, *, eps=8 / 255, norm="l2": (x + 0.02).clamp(0, 1))
    with pytest.raises(RuntimeError, match=r"went .* far, with eps = 0\.03"):
        wide(tiny_net(3), torch.full((2, 3, 8, 8), 0.5), torch.zeros(2, dtype=torch.int64))


def test_nan_gradients_do_no_harm():

    def poisoned(x):  # sqrt has an infinite slope at 0: 0 * inf is NaN
        s = (0 * x).sum((1, 2, 3)).sqrt() + x.mean((1, 2, 3))
        return torch.stack([1 - s, s], dim=1)

    for attack in (attacks.pgd, attacks.apgd, attacks.mifgsm, attacks.deepfool, attacks.fab_targeted):
        x_adv = attack(poisoned, GOOD * 0.1, LABELS * 0, eps=0.1)
        assert x_adv.isfinite().all()


def test_an_image_that_square_drives_to_nan_stays_broken():
    def fragile(x):  # NaN for the brighter images, sure of class 0 for the others
        lead = torch.where(x.mean((1, 2, 3)) > 0.505, torch.nan, 1 - x.mean((1, 2, 3)))
        return torch.stack([lead, -torch.ones_like(lead)], dim=1)

    x, y = torch.full((9, 1, 8, 8), 0.5), torch.zeros(9, dtype=torch.int64)
    x_adv = attacks.square(fragile, x, y, eps=0.1, queries=100)
    assert fragile(x_adv).isnan().any(1).all()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", QUICK)
@pytest.mark.parametrize("norm", NORMS)
def test_attacks_run_on_the_images_device_and_are_reproducible_there(name, norm, images):
    x, y = (part.cuda() for part in images)
    model = tiny_net(3, CLASSES).cuda()
    first, again = (QUICK[name](model, x, y, eps=8 / 255, norm=norm, seed=1) for _ in range(2))
    assert first.device == x.device
    assert torch.allclose(first, again, atol=1e-5)
    assert (size_of(first - x, norm) <= 8 / 255 + 1e-6).all()


def test_the_random_start_fills_the_ball():
    x = torch.full((2000, 1, 2, 2), 0.5)
    for norm, inner in (("linf", 0.5**4), ("l2", 0.5**4)):  # the share of half the radius, in four dimensions
        start = Ball(x, 0.2, norm).random(torch.Generator().manual_seed(0))
        sizes = size_of(start - x, norm)
        assert sizes.max() <= 0.2 + 1e-6
        assert (sizes < 0.1).float().mean() == pytest.approx(inner, abs=0.02)
        assert (start - x).mean().abs() < 0.01
