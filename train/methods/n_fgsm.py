"""N-FGSM, adversarial training with one attack step: de Jorge et al. 2022, arXiv:2202.01181."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from zoo.train.methods import adversary
from zoo.train.methods.method import Attack, Method, Step


class NFgsm(Method):
    """CE(x', y), x' one step from stronger noise, not clipped to the ball: eq. 6."""

    name: Literal["n-fgsm"] = "n-fgsm"
    label_smoothing: float = Field(0.0, ge=0, lt=1)

    def check(self, attack: Attack) -> None:
        check_single_step(attack)

    def attacked(self, step: Step) -> Tensor:
        return single_step(step)

    def loss(self, step: Step, x_adv: Tensor) -> Tensor:
        return F.cross_entropy(step.forward(x_adv).float(), step.batch.y, label_smoothing=self.label_smoothing)


def single_step(step: Step) -> Tensor:
    """The images x' [N, C, H, W] of N-FGSM."""
    x, y, noise, _ = step.batch
    return adversary.n_fgsm(step.net, x, y, noise, eps=step.attack.eps, step=step.attack.step)


def check_single_step(attack: Attack) -> None:
    """Refuse what N-FGSM does not do.

    Raises:
        ValueError: with the sentence that the user reads.
    """
    if attack.steps != 1:
        raise ValueError("n-fgsm takes one attack step: leave attack.steps at 1, or choose pgd-at")
    if attack.objective != "ce":
        raise ValueError("n-fgsm ascends the cross-entropy: leave attack.objective at 'ce'")
    if attack.norm != "linf":  # its noise of 2 eps per pixel, and that it need not be clipped, are of l-infinity
        raise ValueError("n-fgsm is defined for attack.norm = 'linf': choose pgd-at for l2")
