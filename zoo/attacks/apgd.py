"""Auto-PGD, which adapts its step size. Croce and Hein 2020, "Reliable evaluation of adversarial robustness with an
ensemble of diverse parameter-free attacks", Algorithm 1, with their untargeted and targeted losses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from math import ceil

import torch
from torch import Tensor

from zoo.attacks.ball import Ball, steepest
from zoo.attacks.batch import survivors
from zoo.attacks.inputs import Model, Norm, attack, generator
from zoo.attacks.losses import Loss, ascend, broken, dlr_targeted, estimate, loss_called, runners_up
from zoo.attacks.pulse import portion, pulse

ALPHA = 0.75  # weight of the new step against the momentum
RHO = 0.75  # the step is halved if fewer than this fraction of the steps since the last checkpoint ascended


@attack("apgd")
def apgd(
    model: Model,
    x: Tensor,
    y: Tensor,
    *,
    eps: float,
    norm: Norm = "linf",
    steps: int = 100,
    restarts: int = 1,
    loss: str = "ce",
    early_stop: bool = True,
    seed: int = 0,
    only: Tensor | None = None,
) -> Tensor:
    """APGD on one loss, from random starts; later restarts attack the images not broken yet.

    >>> model, x = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 4)).eval(), torch.rand(2, 3, 4, 4)
    >>> y = model(x).argmax(1)
    >>> model(apgd(model, x, y, eps=0.5, steps=10)).argmax(1) == y
    tensor([False, False])

    Args:
        model: images [N, C, H, W] in [0, 1] to logits [N, K].
        x: images [N, C, H, W]; y: labels [N].
        loss: "ce", "cw" or "dlr" (DLR needs at least 4 classes).
        early_stop: stop at the first misclassified point of an image. Without it every image takes all the steps
            of at least one restart, and ends at its misclassified point with the highest loss.
        only: the images to attack, bool [N]; each takes the steps that it takes in a full batch. The others are
            returned as they are.

    Returns:
        Adversarial images [N, C, H, W]; if none is misclassified, the last restart's point with the highest loss.

    Raises:
        UsageError: an argument is not as above, or the model is in train mode; or there is no such loss, or it
            needs more classes.
    """
    chosen = loss_called(loss)
    tries = [((y,), f"apgd {loss} {restart}") for restart in range(restarts)]
    return _tries(model, x, y, tries, eps, norm, steps, chosen, early_stop, seed, only)


@attack("apgd-t")
def apgd_targeted(
    model: Model,
    x: Tensor,
    y: Tensor,
    *,
    eps: float,
    norm: Norm = "linf",
    steps: int = 100,
    targets: int = 9,
    early_stop: bool = True,
    seed: int = 0,
) -> Tensor:
    """APGD on the targeted DLR loss, once for each of the ``targets`` likeliest wrong classes (or all, if there are
    fewer); images broken with one target are not attacked with the next.

    >>> model, x = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 4)).eval(), torch.rand(2, 3, 4, 4)
    >>> y = model(x).argmax(1)
    >>> model(apgd_targeted(model, x, y, eps=0.5, steps=5)).argmax(1) == y
    tensor([False, False])

    Arguments and result as for :func:`apgd`. The model needs at least 4 classes.

    Raises:
        UsageError: an argument is not as above, or the model is in train mode; or there are fewer than 4
            classes.
    """
    classes = runners_up(model(x), y, targets)  # [N, T]
    tries = [((y, t), f"apgd-t {k}") for k, t in enumerate(classes.unbind(1))]
    return _tries(model, x, y, tries, eps, norm, steps, dlr_targeted, early_stop, seed)


def _tries(
    model: Model,
    x: Tensor,
    y: Tensor,
    tries: Sequence[tuple[tuple[Tensor, ...], str]],
    eps: float,
    norm: Norm,
    steps: int,
    loss: Loss,
    early_stop: bool,
    seed: int,
    only: Tensor | None = None,
) -> Tensor:
    """One climb for each pair (labels of the loss, random stream), on the images not broken yet."""
    ball, result = Ball(x, eps, norm), x.clone()
    todo = torch.arange(len(x), device=x.device) if only is None else only.to(x.device).nonzero()[:, 0]
    for place, (labels, stream) in enumerate(tries):
        if not len(todo):
            break
        x0 = ball.random(generator(seed, stream, x.device))  # for all images, broken or not: see pgd.py
        with portion(place / len(tries), (place + 1) / len(tries)):
            x_adv, fell = _climb(
                model,
                x0[todo],
                y[todo],
                tuple(label[todo] for label in labels),
                ball.select(todo),
                steps,
                loss,
                early_stop,
            )
        result[todo] = x_adv
        todo = todo[~fell]
    return result


@dataclass
class _Images:
    """The state of Algorithm 1 for each image; f is the loss, eta the step size."""

    index: Tensor  # int64 [n], the position in the batch
    y: Tensor  # int64 [n]
    x: Tensor  # [n, C, H, W], x^(k)
    x_before: Tensor  # x^(k-1)
    gradient: Tensor  # of f at x
    f: Tensor  # [n]
    x_max: Tensor  # the best point so far, [n, C, H, W]
    gradient_max: Tensor
    f_max: Tensor  # [n]
    eta: Tensor  # [n, 1, 1, 1]
    ascents: Tensor  # steps that raised f since the last checkpoint, [n]
    f_max_checked: Tensor  # f_max at the last checkpoint, [n]
    halved: Tensor  # at the last checkpoint, bool [n]
    x_broken: Tensor  # the misclassified point of highest loss, [n, C, H, W]
    f_broken: Tensor  # its loss, -inf if there is none yet, [n]

    def select(self, keep: Tensor) -> _Images:
        return _Images(**{field.name: getattr(self, field.name)[keep] for field in fields(self)})


def checkpoints(steps: int) -> list[int]:
    """The iterations w_j = ceil(p_j * steps) at which the step size may be halved: section 3.

    p_0 = 0, p_1 = 0.22, p_(j+1) = p_j + max(p_j - p_(j-1) - 0.03, 0.06).
    """
    p = [0.0, 0.22]
    while p[-1] < 1:
        p.append(p[-1] + max(p[-1] - p[-2] - 0.03, 0.06))
    return [ceil(p_j * steps - 1e-9) for p_j in p if p_j <= 1]


def _recorded(f: Tensor) -> Tensor:
    """Losses [n] of misclassified points, above -inf also where the logits are not finite."""
    return f.nan_to_num(nan=torch.inf, posinf=torch.inf, neginf=torch.finfo(f.dtype).min)


def _climb(
    model: Model,
    x: Tensor,
    y: Tensor,
    labels: tuple[Tensor, ...],
    ball: Ball,
    steps: int,
    loss: Loss,
    early_stop: bool,
) -> tuple[Tensor, Tensor]:
    """Algorithm 1 from x [N, C, H, W]: the final points, and whether each is misclassified, bool [N]."""
    n = len(x)
    result, fell = x.clone(), torch.zeros_like(y, dtype=torch.bool)

    z, f, gradient = ascend(model, x, loss, *labels)
    s = _Images(
        index=torch.arange(n, device=x.device),
        y=y,
        x=x,
        x_before=x,
        gradient=gradient,
        f=f,
        x_max=x.clone(),
        gradient_max=gradient.clone(),
        f_max=f,
        eta=x.new_full((n, 1, 1, 1), 2 * ball.eps),
        ascents=torch.zeros_like(f),
        f_max_checked=f,
        halved=torch.ones_like(fell),
        x_broken=x.clone(),
        f_broken=torch.where(broken(z, y), _recorded(f), -torch.inf),
    )

    def record() -> None:
        falls = s.f_broken > -torch.inf
        fell[s.index] = falls
        result[s.index] = torch.where(falls[:, None, None, None], s.x_broken, s.x_max)

    checks = checkpoints(steps)
    last_check = 0
    for k in range(steps):
        pulse(k / steps)
        if early_stop:
            keep = survivors(s.f_broken > -torch.inf)
            if keep is not None:
                record()
                s, ball, labels = s.select(keep), ball.select(keep), tuple(label[keep] for label in labels)
                if not len(keep):
                    return result, fell

        towards = ball.project(s.x + s.eta * steepest(s.gradient, ball.norm))  # z^(k+1)
        if k:
            moved = torch.lerp(s.x, towards, ALPHA).add_(s.x - s.x_before, alpha=1 - ALPHA)
            towards = ball.project(moved)
        s.x_before, s.x = s.x, towards
        if k < steps - 1:
            z, f, s.gradient = ascend(model, s.x, loss, *labels)
        else:
            z = estimate(model, s.x, labels[0])
            f = loss(z, *labels)

        s.ascents = s.ascents + (f > s.f)
        s.f = f
        better = f > s.f_max
        s.x_max[better], s.gradient_max[better] = s.x[better], s.gradient[better]
        s.f_max = torch.where(better, f, s.f_max)
        height = _recorded(f)
        better = broken(z, s.y) & (height > s.f_broken)
        s.x_broken[better] = s.x[better]
        s.f_broken = torch.where(better, height, s.f_broken)

        if k + 1 in checks[1:]:
            too_few = s.ascents < RHO * (k + 1 - last_check)  # condition 1
            stuck = ~s.halved & (s.f_max == s.f_max_checked)  # condition 2
            s.halved = too_few | stuck
            back = s.halved[:, None, None, None]
            s.eta = torch.where(back, s.eta / 2, s.eta)
            s.x = torch.where(back, s.x_max, s.x)
            s.gradient = torch.where(back, s.gradient_max, s.gradient)
            s.f = torch.where(s.halved, s.f_max, s.f)
            s.f_max_checked, s.ascents, last_check = s.f_max, torch.zeros_like(s.f), k + 1
    record()
    return result, fell
