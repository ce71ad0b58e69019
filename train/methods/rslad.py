"""RSLAD, robust soft label adversarial distillation: Zi et al. 2021, arXiv:2108.07969."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch.nn.functional as F
from torch import Tensor

from zoo.train.methods import adversary
from zoo.train.methods.adversary import Objective
from zoo.train.methods.losses import kl
from zoo.train.methods.method import Attack, Method, Needs, Step


class Rslad(Method):
    """5/6 KL(T(x) || S(x')) + 1/6 KL(T(x) || S(x)) without hard labels, where x' maximises KL(T(x) || S(x')): eq. 6
    and 7, with the weights of the authors' code."""

    name: Literal["rslad"] = "rslad"
    takes_teacher: ClassVar[bool] = True

    @property
    def forwards(self) -> int:
        return 2

    @property
    def needs(self) -> Needs:
        return Needs()

    def check(self, attack: Attack) -> None:
        if attack.objective == "ce" and "objective" in attack.model_fields_set:
            raise ValueError("rslad maximises the divergence from its teacher: remove attack.objective = 'ce'")

    def objective(self, step: Step) -> Objective:
        return adversary.divergence(F.log_softmax(step.soft, 1))

    def loss(self, step: Step, x_adv: Tensor) -> Tensor:
        logits = step.forward(step.batch.x)
        return rslad(logits, step.forward(x_adv), step.soft)


def rslad(logits: Tensor, logits_adv: Tensor, soft: Tensor) -> Tensor:
    """The loss from the student's logits [N, K] on clean and adversarial images and the teacher's on clean ones."""
    return 5 / 6 * kl(soft, logits_adv) + 1 / 6 * kl(soft, logits)
