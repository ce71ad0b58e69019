"""Walks along the gradients of a float model, each step judged by the engine: the rung "surrogate", and "targeted" for
engines that compute something else than the twin.

BPDA (Athalye et al. 2018, section 4.1): an engine has no gradients, so a model that computes about the same lends it
its own. That model is the twin; but the twin's gradients find nothing in an engine that has come to compute something
else, so there the weights in the artifact itself give gradients too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from zoo.attacks import margin
from zoo.attacks.ball import Ball, steepest
from zoo.attacks.losses import Loss, ascend, cross_entropy, difference, runners_up
from zoo.attacks.pgd import TARGETS
from zoo.attacks.pulse import pulse
from zoo.evaluation.protocols import Protocol
from zoo.evaluation.threat import Norm
from zoo.export.engines.interface import Engine
from zoo.export.engines.twin import Twin
from zoo.export.ladder.rungs import Attack
from zoo.system.errors import UsageError


def surrogate(gradients: nn.Module, twin: Twin, engine: Engine, protocol: Protocol) -> Attack:
    """PGD along the gradients of a float model: the same walks for both, each step judged by who is attacked.

    Args:
        protocol: of the attack ``pgd``, or of ``pgd-t``: then a walk goes towards each of the likeliest wrong classes.
    """
    if protocol.attack not in ("pgd", "pgd-t") or protocol.step is None or protocol.steps is None:
        raise UsageError(f"protocol '{protocol.name}' is not a PGD with a step size and steps")
    walk: dict[str, Any] = {key: getattr(protocol, key) for key in ("eps", "norm", "step", "steps")}

    def attack(x: Tensor, y: Tensor, seed: int, index: np.ndarray, only: Tensor) -> tuple[Tensor, Tensor]:
        targets = runners_up(gradients(x), y, TARGETS) if protocol.attack == "pgd-t" else None
        for_twin, for_engine = surrogate_pgd(
            gradients, (twin, engine), x, y, targets=targets, seed=seed, only=only, **walk
        )
        return for_twin, for_engine

    return attack


def surrogate_pgd(
    gradients: nn.Module,
    engines: Sequence[Engine],
    x: Tensor,
    y: Tensor,
    *,
    eps: float,
    norm: Norm = "linf",
    step: float,
    steps: int,
    seed: int,
    targets: Tensor | None = None,
    only: Tensor | None = None,
) -> list[Tensor]:
    """PGD on each of ``engines`` along ``gradients``: BPDA, a float model f as the backward pass.

    x_{t+1} = Pi(x_t + step * d(grad_x L(f(x_t), y))) from a uniform start in the ball, with d the direction of unit
    ``norm`` that ascends fastest. L is the cross-entropy; with ``targets``, there is a walk for each class k with
    L = z_k - z_y (MultiTargeted, Gowal et al. 2019, section 3). The walk of an image is the same for all engines, so it
    is computed once. Each engine judges the image, the start and every step, until it gets one wrong; the walk ends
    when all did. A twin whose net gives the gradients answers with them.

    Args:
        gradients: f, in eval mode, parameters frozen.
        x: images [N, C, H, W] in [0, 1]; y: labels [N].
        targets: classes [N, T], each image's own.
        only: the images that each engine is attacked on, bool [engines, N]; it gets the others back as they are.

    Returns:
        For each engine the point of each image where the engine's margin was smallest, within eps of x and in [0, 1].
    """
    ball, source = Ball(x, eps, norm), torch.Generator().manual_seed(seed)
    best, least = [x.clone() for _ in engines], torch.stack([margin(engine(x), y) for engine in engines])
    if only is not None:
        least[~only] = -torch.inf  # as if they were wrong already
    judged = list(zip(engines, best, least, strict=True))
    answering = [one for one in judged if isinstance(one[0], Twin) and one[0].model is gradients]
    asked = [one for one in judged if not any(one is other for other in answering)]
    loss: Loss = cross_entropy
    aims: list[tuple[Tensor, ...]] = [(y,)]
    if targets is not None:
        loss, aims = difference, [(y, aim) for aim in targets.unbind(1)]
    for walk, labels in enumerate(aims):
        # Drawn for the whole batch: an image's start does not hang on which others the engines get wrong.
        start = ball.random(source)
        active = (least > 0).any(0).nonzero()[:, 0]
        x_t = start[active]
        for t in range(steps + 1):
            if not len(active):
                break
            pulse((walk + t / (steps + 1)) / len(aims))
            for engine, point, lowest in asked if t < steps else judged:
                standing = lowest[active] > 0
                if standing.any():
                    rows, here = active[standing], x_t[standing]
                    _note(engine(here), here, y, rows, point, lowest)
            standing = (least[:, active] > 0).any(0)
            active, x_t = active[standing], x_t[standing]
            if t < steps and len(active):
                z, _, gradient = ascend(gradients, x_t, loss, *(label[active] for label in labels))
                for _, point, lowest in answering:
                    standing = lowest[active] > 0
                    _note(z[standing], x_t[standing], y, active[standing], point, lowest)
                standing = (least[:, active] > 0).any(0)
                active, x_t, gradient = active[standing], x_t[standing], gradient[standing]
                x_t = ball.select(active).project(x_t + step * steepest(gradient, norm))
    return best


def _note(z: Tensor, x: Tensor, y: Tensor, rows: Tensor, point: Tensor, lowest: Tensor) -> None:
    """Keep those of ``x`` in ``point`` whose margin is the lowest so far; they are the images ``rows``, with logits
    ``z``."""
    m = margin(z, y[rows])
    better = ~(m >= lowest[rows])  # NaN is a break
    point[rows[better]], lowest[rows[better]] = x[better], m[better]
