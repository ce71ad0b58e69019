"""The rungs: what is measured of an engine against its float twin. ``climb.py`` decides which are climbed.

An engine has no gradients, and quantisation masks them. Replaying the twin's adversarial examples is therefore
an optimistic bound; walking along the gradients of a float model while the engine judges every step (BPDA, Athalye
et al. 2018, section 4.1) is a tighter one. That model is the twin; but the twin's gradients find nothing in an engine
that has come to compute something else, so there the weights in the artifact itself give gradients too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.attacks import broken, margin
from zoo.attacks.ball import Ball, steepest
from zoo.attacks.pulse import heard, images_done, portion, pulse
from zoo.datasets.base import to_float
from zoo.evaluation.perturb import perturb
from zoo.evaluation.protocols import Protocol
from zoo.evaluation.threat import Norm
from zoo.export.engines.interface import Engine
from zoo.export.engines.twin import Twin
from zoo.system.errors import UsageError

BATCH = 250  # images attacked at once
PARITY_IMAGES = 64

Tick = Callable[[int, int], None]  # images done, images in all
Bits = tuple[np.ndarray, np.ndarray]  # who is right, bool [N]: the twin, the engine
Attack = Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]]  # x, y, seed to images for the twin and the engine


def right(engine: Engine, x: Tensor, y: Tensor) -> np.ndarray:
    """Which images the engine classifies correctly, bool [N]. A tie counts as broken, or an engine with coarse
    logits would look robust."""
    return ~broken(engine(x), y).numpy()


def parity(model: nn.Module, engine: Engine, x: Tensor, sizes: Sequence[int]) -> dict[str, Any]:
    """How far the engine's logits are from the model's, in batches of each of ``sizes``.

    Args:
        model: the float model as it was loaded, nothing folded.
        x: images [N, C, H, W] in [0, 1].

    Returns:
        The largest difference of a logit, of a decision margin (of the class that the model decides for), and
        the share of images with the same decision; the worst over the batch sizes. And how deterministic the engine is:
        by how much its own logits of an image differ between batch sizes, and between two runs of the same batches.
    """
    twin = Twin(model, shape=(x.shape[1], x.shape[2], x.shape[3]))
    reference = torch.cat([twin(part) for part in x.split(64)])  # [N, K]
    decided = reference.argmax(1)
    own_margin = margin(reference, decided)
    logit_differences, margin_changes, agreements = [], [], []
    answers: list[Tensor] = []

    def answered(size: int, n: int) -> Tensor:
        return torch.cat([engine(part) for part in x[:n].split(size)])

    for size in sizes:
        n = min(len(x), max(PARITY_IMAGES, size))  # thousands of batches of 1 would show nothing more
        logits = answered(size, n)
        if logits.shape != reference[:n].shape:
            raise UsageError(f"the engine answers with logits {list(logits.shape)}, not {list(reference[:n].shape)}")
        logit_differences.append((logits - reference[:n]).abs().max())
        margin_changes.append((margin(logits, decided[:n]) - own_margin[:n]).abs().max())
        agreements.append((~broken(logits, decided[:n])).double().mean())
        answers.append(logits[:PARITY_IMAGES])
    again = answered(sizes[-1], min(len(x), max(PARITY_IMAGES, sizes[-1])))[:PARITY_IMAGES]
    return {
        "max_logit_difference": torch.stack(logit_differences).max().item(),  # NaN if there is one
        "max_margin_change": torch.stack(margin_changes).max().item(),
        "agreement": torch.stack(agreements).min().item(),
        "smallest_margin": own_margin.min().item(),
        "difference_between_batches": max((a - answers[0]).abs().max().item() for a in answers),
        "difference_between_runs": (again - answers[-1]).abs().max().item(),
        "batches": list(sizes),
    }


def transfer(twin: Twin, protocol: Protocol) -> Attack:
    """What ``protocol`` (PGD or APGD) makes of the twin, given to both.

    Every image takes every step: points that only just cross the twin's boundary would not cross the engine's.
    """

    def attack(x: Tensor, y: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        seeded = protocol.model_copy(update={"seed": seed})
        x_adv = perturb(seeded, twin.model, x, y, early_stop=False)
        return x_adv, x_adv

    return attack


def surrogate(gradients: nn.Module, twin: Twin, engine: Engine, protocol: Protocol) -> Attack:
    """PGD along the gradients of a float model: the same walks for both, each step judged by who is attacked."""
    if protocol.attack != "pgd" or protocol.step is None or protocol.steps is None:
        raise UsageError(f"protocol '{protocol.name}' is not a PGD with a step size and steps")
    walk: dict[str, Any] = {key: getattr(protocol, key) for key in ("eps", "norm", "step", "steps")}

    def attack(x: Tensor, y: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        with portion(0, 0.5):
            for_twin = surrogate_pgd(gradients, twin, x, y, seed=seed, **walk)
        with portion(0.5, 1):
            return for_twin, surrogate_pgd(gradients, engine, x, y, seed=seed, **walk)

    return attack


def surrogate_pgd(
    gradients: nn.Module,
    engine: Engine,
    x: Tensor,
    y: Tensor,
    *,
    eps: float,
    norm: Norm = "linf",
    step: float,
    steps: int,
    seed: int,
) -> Tensor:
    """PGD on ``engine`` along ``gradients``: BPDA, a float model f as the backward pass.

    x_{t+1} = Pi(x_t + step * d(grad_x CE(f(x_t), y))) from a uniform start in the ball, with d the direction of unit
    ``norm`` that ascends fastest. The engine judges the image, the start and every step; an image that it gets wrong
    drops out there.

    Args:
        gradients: f, in eval mode, parameters frozen.
        x: images [N, C, H, W] in [0, 1]; y: labels [N].

    Returns:
        For each image the point where the engine's margin was smallest, within eps of x and in [0, 1].
    """
    # Drawn for the whole batch: an image's start does not hang on which others the engine gets wrong.
    ball = Ball(x, eps, norm)
    start = ball.random(torch.Generator().manual_seed(seed))
    best, least = x.clone(), margin(engine(x), y)
    active = (least > 0).nonzero()[:, 0]
    x_t = start[active]
    for t in range(steps + 1):
        if not len(active):
            break
        pulse(t / (steps + 1))
        m = margin(engine(x_t), y[active])
        better = ~(m >= least[active])  # NaN is a break
        best[active[better]], least[active[better]] = x_t[better], m[better]
        standing = m > 0
        active, x_t = active[standing], x_t[standing]
        if t < steps and len(active):
            x_t.requires_grad_()
            (gradient,) = torch.autograd.grad(F.cross_entropy(gradients(x_t), y[active], reduction="sum"), x_t)
            x_t = ball.select(active).project(x_t.detach() + step * steepest(gradient, norm))
    return best


def black_box(twin: Twin, engine: Engine, protocol: Protocol) -> Attack:
    """The score-based ``protocol`` on each in turn: no gradients at all."""

    def attack(x: Tensor, y: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        seeded = protocol.model_copy(update={"seed": seed})
        with portion(0, 0.5):
            for_twin = perturb(seeded, twin, x, y)
        with portion(0.5, 1):
            return for_twin, perturb(seeded, engine, x, y)

    return attack


def clean(twin: Engine, engine: Engine, images: np.ndarray, labels: np.ndarray, tick: Tick) -> Bits:
    """Who classifies which image correctly, unperturbed; arguments as for :func:`survivors`."""
    everything = np.ones(len(labels), bool)
    return survivors(lambda x, y, seed: (x, x), twin, engine, images, labels, (everything, everything), 0, tick)


def survivors(
    attack: Attack,
    twin: Engine,
    engine: Engine,
    images: np.ndarray,
    labels: np.ndarray,
    bits: Bits,
    seed: int,
    tick: Tick,
) -> Bits:
    """Worst case so far after one more attack, per image; images that both already get wrong are not attacked.

    Both are attacked on the same images in the same batches, so that they get the same random starts: their
    difference is then the engine's doing, not chance's.

    Args:
        images: uint8 [N, H, W, C]; labels: int64 [N]; bits: who is right so far.
    """
    twin_right, engine_right = bits[0].copy(), bits[1].copy()
    standing = np.flatnonzero(bits[0] | bits[1])
    for start in range(0, len(standing), BATCH):
        index = standing[start : start + BATCH]
        x, y = to_float(images[index]), torch.from_numpy(np.asarray(labels[index], dtype=np.int64))
        with heard(images_done(tick, len(labels) - len(standing) + start, len(index), len(labels))):
            for_twin, for_engine = attack(x, y, seed + start)
        twin_right[index] &= right(twin, for_twin, y)
        engine_right[index] &= right(engine, for_engine, y)
        tick(len(labels) - len(standing) + min(start + BATCH, len(standing)), len(labels))
    return twin_right, engine_right
