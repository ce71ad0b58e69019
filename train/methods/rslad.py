"""RSLAD, robust soft label adversarial distillation: Zi et al. 2021, arXiv:2108.07969."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor

from zoo.train.methods import adversary
from zoo.train.methods.adversary import Objective
from zoo.train.methods.losses import kl
from zoo.train.methods.method import Method, Step, Temperature


class Rslad(Method):
    """alpha t^2 KL(T_t(x) || S_t(x')) + (1 - alpha) t^2 KL(T_t(x) || S_t(x)) without hard labels, where x' maximises
    KL(T_t(x) || S_t(x')): eq. 6 and 7. 5/6 and t = 1 are those of the authors' code."""

    name: Literal["rslad"] = "rslad"
    alpha: float = Field(5 / 6, ge=0, le=1, description="share of the adversarial images")
    temperature: Temperature = 1.0
    takes_teacher: ClassVar[bool] = True

    @property
    def forwards(self) -> int:
        return 2

    def objective(self, step: Step) -> Objective:
        return adversary.divergence(step.soft, self.temperature)

    def loss(self, step: Step, x_adv: Tensor) -> Tensor:
        logits = step.forward(step.batch.x)
        return rslad(logits, step.forward(x_adv), step.soft, self.alpha, self.temperature)


def rslad(logits: Tensor, logits_adv: Tensor, soft: Tensor, alpha: float = 5 / 6, temperature: float = 1.0) -> Tensor:
    """The loss from the student's logits [N, K] on clean and adversarial images and the teacher's on clean ones."""
    return alpha * kl(soft, logits_adv, temperature) + (1 - alpha) * kl(soft, logits, temperature)
