"""One gradient attack with three hooks, and the published attacks built on it.

The hooks are functions: ``loss(z, *labels)`` is maximised, ``direction(gradient, memory)`` turns a gradient into a
step of unit size and may keep state, ``start(ball, source)`` returns the start of a climb.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from zoo.attacks.ball import DIMS, Ball, steepest
from zoo.attacks.batch import survivors
from zoo.attacks.inputs import NO_ATTACK, Kind, Model, Norm, attack, generator
from zoo.attacks.losses import Loss, ascend, broken, difference, loss_called, rough, runners_up, slope
from zoo.attacks.pulse import portion, pulse
from zoo.system.errors import UsageError

Direction = Callable[[Tensor, Tensor | None], tuple[Tensor, Tensor | None]]
Start = Callable[[Ball, torch.Generator], Tensor]

TARGETS = 9  # as in AutoAttack


@attack("fgsm", Kind(climbs=False))
def fgsm(
    model: Model, x: Tensor, y: Tensor, *, eps: float, norm: Norm = "linf", loss: str = "ce", seed: int = 0
) -> Tensor:
    """FGSM, Goodfellow et al. 2015: x + eps * sign(gradient), one step from the image. The seed is not used.

    >>> model, x = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 4)).eval(), torch.rand(2, 3, 4, 4)
    >>> y = model(x).argmax(1)
    >>> model(fgsm(model, x, y, eps=0.5)).argmax(1) == y
    tensor([False, False])

    Args:
        model: images [N, C, H, W] in [0, 1] to logits [N, K].
        x: images [N, C, H, W]; y: labels [N].
        loss: "ce", "cw" or "dlr".

    Raises:
        UsageError: an argument is not as above, or the model is in train mode.
    """
    return gradient_attack(model, x, y, eps=eps, norm=norm, step=eps, steps=1, loss=loss_called(loss), seed=seed)


@attack("pgd")
def pgd(
    model: Model,
    x: Tensor,
    y: Tensor,
    *,
    eps: float,
    norm: Norm = "linf",
    step: float | None = None,
    steps: int = 20,
    restarts: int = 1,
    loss: str = "ce",
    random_start: bool = True,
    early_stop: bool = True,
    seed: int = 0,
) -> Tensor:
    """PGD, Madry et al. 2018: repeat x <- project(x + step * sign(gradient)) (in l2, gradient / its norm).

    >>> model, x = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 4)).eval(), torch.rand(2, 3, 4, 4)
    >>> y = model(x).argmax(1)
    >>> model(pgd(model, x, y, eps=0.5, steps=10)).argmax(1) == y
    tensor([False, False])

    Args:
        model: images [N, C, H, W] in [0, 1] to logits [N, K].
        x: images [N, C, H, W]; y: labels [N].
        step: size of a step in the norm; by default 2.5 eps / steps, enough to cross the ball.
        restarts: each from a new random start, on the images not broken yet. The result is the worst point of each
            image: a misclassified one if there is any, then the one with the highest loss.
        loss: "ce", "cw" or "dlr".
        early_stop: stop at the first misclassified point of an image, which is enough for robust accuracy and twice
            as fast. Without it every image takes all the steps, which is better for examples to replay on another
            model.

    Raises:
        UsageError: an argument is not as above, or the model is in train mode; or there are restarts without a
            random start.
    """
    if restarts > 1 and not random_start:
        raise UsageError(f"{restarts} restarts from the same point are the same attack: set random_start=True")
    return gradient_attack(
        model,
        x,
        y,
        eps=eps,
        norm=norm,
        step=2.5 * eps / steps if step is None else step,
        steps=steps,
        loss=loss_called(loss),
        start=Ball.random if random_start else from_image,
        labels=[(y,)] * restarts,
        early_stop=early_stop,
        seed=seed,
    )


@attack("pgd-t")
def pgd_targeted(
    model: Model,
    x: Tensor,
    y: Tensor,
    *,
    eps: float,
    norm: Norm = "linf",
    step: float | None = None,
    steps: int = 20,
    targets: int = TARGETS,
    early_stop: bool = True,
    only: Tensor | None = None,
    seed: int = 0,
) -> Tensor:
    """PGD on z_t - z_y, once for each of the ``targets`` likeliest wrong classes t (or all, if there are fewer), from
    new random starts: the MultiTargeted attack of Gowal et al. 2019, "An Alternative Surrogate Loss for PGD-based
    Adversarial Testing", section 3, with z the logits.

    >>> model, x = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 4)).eval(), torch.rand(2, 3, 4, 4)
    >>> y = model(x).argmax(1)
    >>> model(pgd_targeted(model, x, y, eps=0.5, steps=10)).argmax(1) == y
    tensor([False, False])

    Args:
        model: images [N, C, H, W] in [0, 1] to logits [N, K].
        x: images [N, C, H, W]; y: labels [N].
        step: size of a step in the norm; by default 2.5 eps / steps.
        early_stop: stop at the first misclassified point of an image. Without it every image takes all the steps
            towards every target.
        only: the images to attack, bool [N]; each takes the steps that it takes in a full batch. The others are
            returned as they are.

    Returns:
        Adversarial images [N, C, H, W]: a misclassified point if there is any, else the end with the highest loss.

    Raises:
        UsageError: an argument is not as above, or the model is in train mode.
    """
    return gradient_attack(
        model,
        x,
        y,
        eps=eps,
        norm=norm,
        step=2.5 * eps / steps if step is None else step,
        steps=steps,
        loss=difference,
        start=Ball.random,
        labels=[(y, target) for target in runners_up(model(x), y, targets).unbind(1)],
        early_stop=early_stop,
        only=only,
        seed=seed,
    )


@attack("mifgsm")
def mifgsm(
    model: Model,
    x: Tensor,
    y: Tensor,
    *,
    eps: float,
    norm: Norm = "linf",
    step: float | None = None,
    steps: int = 20,
    decay: float = 1.0,
    loss: str = "ce",
    early_stop: bool = True,
    seed: int = 0,
) -> Tensor:
    """MI-FGSM, Dong et al. 2018, eq. 6 and 7: sign steps along g <- decay * g + gradient / its l1 norm. No seed.

    >>> model, x = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 4)).eval(), torch.rand(2, 3, 4, 4)
    >>> y = model(x).argmax(1)
    >>> model(mifgsm(model, x, y, eps=0.5, steps=10)).argmax(1) == y
    tensor([False, False])

    Args:
        model: images [N, C, H, W] in [0, 1] to logits [N, K].
        x: images [N, C, H, W]; y: labels [N].
        step: alpha, by default eps / steps.
        decay: mu, the weight of the previous gradients.
        loss, early_stop: as for :func:`pgd`.

    Raises:
        UsageError: an argument is not as above, or the model is in train mode.
    """

    def momentum(gradient: Tensor, memory: Tensor | None) -> tuple[Tensor, Tensor]:
        largest = gradient.abs().amax(DIMS, keepdim=True)  # [N, 1, 1, 1]
        gradient = torch.where(gradient.abs().sum(DIMS, keepdim=True).isinf(), gradient / largest, gradient)
        l1 = gradient.abs().sum(DIMS, keepdim=True).clamp_min(torch.finfo(gradient.dtype).tiny)
        g = gradient / l1 if memory is None else decay * memory + gradient / l1
        return steepest(g, norm), g

    return gradient_attack(
        model,
        x,
        y,
        eps=eps,
        norm=norm,
        step=eps / steps if step is None else step,
        steps=steps,
        loss=loss_called(loss),
        direction=momentum,
        early_stop=early_stop,
        seed=seed,
    )


@attack("uniform", NO_ATTACK)
def uniform(model: Model, x: Tensor, y: Tensor, *, eps: float, norm: Norm = "linf", seed: int = 0) -> Tensor:
    """Noise drawn uniformly from the ball, independent of the model: it should break few images.

    >>> model, x = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 4)).eval(), torch.rand(2, 3, 4, 4)
    >>> float((uniform(model, x, model(x).argmax(1), eps=0.1) - x).abs().max()) > 0.05
    True

    Raises:
        UsageError: an argument is not as above, or the model is in train mode.
    """
    return Ball(x, eps, norm).random(generator(seed, "uniform", x.device))


def from_image(ball: Ball, source: torch.Generator) -> Tensor:
    """Start from the image itself."""
    return ball.x


def gradient_attack(
    model: Model,
    x: Tensor,
    y: Tensor,
    *,
    eps: float,
    norm: Norm,
    step: float,
    steps: int,
    loss: Loss,
    direction: Direction | None = None,
    start: Start = from_image,
    labels: Sequence[tuple[Tensor, ...]] | None = None,
    early_stop: bool = True,
    only: Tensor | None = None,
    seed: int = 0,
) -> Tensor:
    """The worst point [N, C, H, W] of each image over one climb for each of ``labels``, by default in the steepest
    direction.

    Args:
        labels: what the loss takes beside the logits, [N] each, y first; by default y alone, once.
        only: the images to attack, bool [N]; the others are returned as they are.
    """
    direction = direction or (lambda gradient, memory: (steepest(gradient, norm), None))
    labels = [(y,)] if labels is None else labels
    ball = Ball(x, eps, norm)
    worst, worst_loss = x.clone(), x.new_full((len(x),), -torch.inf)  # [N, C, H, W], [N]
    fell = torch.zeros_like(y, dtype=torch.bool)  # [N]
    wanted = ~fell if only is None else only.to(x.device)
    for climb, given in enumerate(labels):
        # Drawn for the whole batch, so that the noise of an image does not depend on which others are broken.
        x0 = start(ball, generator(seed, f"pgd {climb}", x.device))
        todo = (wanted & ~fell if early_stop else wanted).nonzero().squeeze(1)
        if not len(todo):
            break
        own = tuple(label[todo] for label in given)
        with portion(climb / len(labels), (climb + 1) / len(labels)):
            x_adv = _climb(model, x0[todo], own, ball.select(todo), step, steps, loss, direction, early_stop)
        if len(labels) == 1:
            worst[todo] = x_adv
            return worst
        z = model(x_adv)
        losses, falls = loss(z, *own), broken(z, y[todo])
        was, best = fell[todo], worst_loss[todo]
        better = (falls & ~was) | ((falls == was) & (losses > best))
        worst[todo] = torch.where(better[:, None, None, None], x_adv, worst[todo])
        worst_loss[todo] = torch.where(better, losses, best)
        fell[todo] = was | falls
    return worst


def _climb(
    model: Model,
    x: Tensor,
    labels: tuple[Tensor, ...],
    ball: Ball,
    step: float,
    steps: int,
    loss: Loss,
    direction: Direction,
    early_stop: bool,
) -> Tensor:
    """From x, ``steps`` times: x <- project(x + step * direction(gradient)). Returns the last x [N, C, H, W], or,
    with ``early_stop``, the first that is misclassified. The loss takes ``labels``, of which the first are y."""
    result, index = x.clone(), torch.arange(len(x), device=x.device)
    done = torch.zeros_like(labels[0], dtype=torch.bool)
    memory: Tensor | None = None
    for k in range(steps):
        pulse(k / steps)
        if not early_stop:
            _, gradient = slope(rough(model), x, loss, *labels)
        else:
            z, _, gradient = ascend(model, x, loss, *labels)
            done |= broken(z, labels[0])
            keep = survivors(done)
            if keep is not None:
                result[index] = x
                x, ball, index, done = x[keep], ball.select(keep), index[keep], done[keep]
                labels = tuple(label[keep] for label in labels)
                gradient, memory = gradient[keep], memory if memory is None else memory[keep]
                if not len(index):
                    return result
        towards, memory = direction(gradient, memory)
        rate = (~done).to(x.dtype) * step  # broken images no longer move
        x = ball.project(torch.addcmul(x, towards, rate[:, None, None, None]))
    result[index] = x
    return result
