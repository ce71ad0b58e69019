"""ARD, adversarially robust distillation: Goldblum et al. 2020, arXiv:1905.09747."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from zoo.train.methods.losses import kl
from zoo.train.methods.method import Attack, Method, Step, Temperature
from zoo.train.methods.n_fgsm import check_single_step, single_step


class Ard(Method):
    """On adversarial images, the student learns the teacher's soft labels of clean images.

    With ``alpha`` it is the paper's eq. 1, by Algorithm 1: alpha t^2 KL(T_t(x) || S_t(x')) + (1 - alpha) CE(S(x), y) at
    temperature t, with hard labels on clean images. Without ``alpha`` the hard labels are learnt on adversarial images
    too: ce CE(S(x'), y) + kl t^2 KL(T_t(x) || S_t(x')). In both, x' maximises the student's cross-entropy. Eq. 1 prints
    S_t in both cross-entropies; here they have temperature 1, as in the authors' code. It also prints KL(S_t, T_t), the
    student first; here it is the divergence from the teacher, which PyTorch's KLDivLoss(student, teacher) computes.
    """

    name: Literal["ard"] = "ard"
    inner: Literal["pgd", "n-fgsm"] = Field("pgd", description="the attack that makes x'")
    alpha: float | None = Field(None, ge=0, le=1, description="share of the soft labels, as in the paper")
    temperature: Temperature = Field(1.0, description="the paper has 30 for CIFAR-10, 5 for CIFAR-100")
    ce: float = Field(1.0, ge=0)
    kl: float = Field(1.0, ge=0)
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    takes_teacher: ClassVar[bool] = True

    @property
    def forwards(self) -> int:
        return 1 if self.alpha in (None, 1.0) else 2

    def check(self, attack: Attack) -> None:
        own = sorted({"ce", "kl", "label_smoothing"} & self.model_fields_set)
        if self.alpha is not None and own:
            raise ValueError(f"method.alpha weighs both losses, as in the paper: remove method.{own[0]}, or alpha")
        if not self.ce and not self.kl:
            raise ValueError("method 'ard' has no loss with ce = 0 and kl = 0: set one of them")
        if not self.ce and self.label_smoothing:
            raise ValueError("method.label_smoothing is of the hard labels, which ce = 0 leaves out: remove it")
        if attack.objective != "ce":
            raise ValueError("method 'ard' maximises the cross-entropy: leave attack.objective at 'ce'")
        if self.inner == "n-fgsm":
            check_single_step(attack)

    def attacked(self, step: Step) -> Tensor:
        return single_step(step) if self.inner == "n-fgsm" else super().attacked(step)

    def loss(self, step: Step, x_adv: Tensor) -> Tensor:
        if self.alpha is not None:
            return ard(step, x_adv, self.alpha, self.temperature)
        logits_adv = step.forward(x_adv).float()
        hard = F.cross_entropy(logits_adv, step.batch.y, label_smoothing=self.label_smoothing)
        return self.ce * hard + self.kl * kl(step.soft, logits_adv, self.temperature)


def ard(step: Step, x_adv: Tensor, alpha: float, temperature: float) -> Tensor:
    """alpha t^2 KL(T_t(x) || S_t(x')) + (1 - alpha) CE(S(x), y): eq. 1."""
    loss = alpha * kl(step.soft, step.forward(x_adv), temperature)
    if alpha == 1:
        return loss
    return loss + (1 - alpha) * F.cross_entropy(step.forward(step.batch.x).float(), step.batch.y)
