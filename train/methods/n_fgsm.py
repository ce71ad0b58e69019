"""N-FGSM, adversarial training with one attack step: de Jorge et al. 2022, arXiv:2202.01181."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from zoo.attacks.ball import steepest
from zoo.train.methods import adversary
from zoo.train.methods.method import Attack, Step
from zoo.train.methods.pgd_at import PgdAT


class NFgsm(PgdAT):
    """CE(x', y), with x' from :func:`single_step`."""

    name: Literal["n-fgsm"] = "n-fgsm"

    def check(self, attack: Attack) -> None:
        check_single_step(attack)

    def attacked(self, step: Step) -> Tensor:
        return single_step(step)


def single_step(step: Step) -> Tensor:
    """The images x' [N, C, H, W] of eq. 6: one step from noise of +-2 eps, *not* clipped back to the ball.

    Clipping brings catastrophic overfitting back: x' may lie up to 2 eps + step from x.
    """
    attack, (x, y, noise, _) = step.attack, step.batch
    with adversary.frozen(step.net):
        start = x + 2 * attack.eps * noise
        gradient = adversary.gradient(step.net, start, adversary.cross_entropy(y))
        return (start + attack.step * steepest(gradient, "linf")).clamp_(0, 1)


def check_single_step(attack: Attack) -> None:
    """Raise a ValueError for settings that N-FGSM does not use."""
    if attack.steps != 1:
        raise ValueError("n-fgsm takes one attack step: leave attack.steps at 1, or choose pgd-at")
    if attack.objective != "ce":
        raise ValueError("n-fgsm maximises the cross-entropy: leave attack.objective at 'ce'")
    if attack.norm != "linf":  # noise of 2 eps per pixel without clipping is defined for l-infinity only
        raise ValueError("n-fgsm is defined for attack.norm = 'linf': choose pgd-at for l2")
