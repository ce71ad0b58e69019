"""What a training step minimises: a recipe's loss on one batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor, nn

from zoo.train.methods import adversary, losses
from zoo.train.methods.distill import Distiller
from zoo.train.recipes.schema import Recipe


class Batch(NamedTuple):
    """Images x [N, C, H, W] in [0, 1], labels y [N], start noise [N, C, H, W] uniform in [-1, 1] for the attack; and
    the rows [N] of the images among the kept versions, if lessons are kept."""

    x: Tensor
    y: Tensor
    noise: Tensor
    rows: Tensor | None


def batch_loss(
    recipe: Recipe,
    net: nn.Module,
    forward: Callable[[Tensor], Tensor],
    batch: Batch,
    distiller: Distiller | None = None,
) -> Tensor:
    """The recipe's loss on one batch: attack ``net``, then score what ``forward`` (``net``, or its data-parallel
    wrapper) makes of it. A distiller adds its share on the clean images; to a loss that has adversarial ones only, it
    adds kl * KL(T(x) || S(x')), the teacher's soft labels for clean images (ARD, Goldblum et al. 2020). The loss is a
    mean over the batch.
    """
    x, y, noise, rows = batch
    train, attack = recipe.train, recipe.attack
    method, smoothing = train.method, train.label_smoothing

    def clean() -> Tensor:
        return (distiller.forward(forward, x) if distiller else forward(x)).float()

    def with_lesson(loss: Tensor, logits: Tensor) -> Tensor:
        return loss + distiller.added(logits, distiller.teacher(x, rows)) if distiller else loss

    if method == "natural":
        logits = clean()
        return with_lesson(losses.natural(logits, y, label_smoothing=smoothing), logits)
    if method == "n-fgsm":
        x_adv = adversary.n_fgsm(net, x, y, noise, eps=attack.eps, step=attack.step)
    else:
        kl = attack.objective == "kl"
        x_adv = adversary.pgd(net, x, y, noise, eps=attack.eps, step=attack.step, steps=attack.steps, kl=kl)
    logits_adv = forward(x_adv).float()
    if method == "trades":
        logits = clean()
        return with_lesson(losses.trades(logits, logits_adv, y, beta=train.beta, label_smoothing=smoothing), logits)
    if method == "mart":
        return losses.mart(clean(), logits_adv, y, beta=train.beta)
    loss = losses.pgd_at(logits_adv, y, label_smoothing=smoothing)
    if distiller is None:
        return loss
    return loss + distiller.settings.kl * losses.taught(logits_adv, distiller.teacher(x, rows).logits)
