"""ARD, adversarially robust distillation: Goldblum et al. 2020, arXiv:1905.09747."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from zoo.train.methods.losses import kl
from zoo.train.methods.method import Attack, Method, Needs, Step
from zoo.train.methods.n_fgsm import check_single_step, single_step


class Ard(Method):
    """ce * CE(S(x'), y) + kl * KL(T(x) || S(x')) at temperature 1: on adversarial images, the student learns the
    teacher's soft labels of clean images. The paper has the hard labels' loss on clean images; here it is on x' too."""

    name: Literal["ard"] = "ard"
    inner: Literal["pgd", "n-fgsm"] = Field("pgd", description="the attack that makes x'")
    ce: float = Field(1.0, ge=0)
    kl: float = Field(1.0, ge=0)
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    takes_teacher: ClassVar[bool] = True

    @property
    def needs(self) -> Needs:
        return Needs()

    def check(self, attack: Attack) -> None:
        if not self.ce and not self.kl:
            raise ValueError("method 'ard' has no loss with ce = 0 and kl = 0: set one of them")
        if not self.ce and self.label_smoothing:
            raise ValueError("method.label_smoothing is of the hard labels, which ce = 0 leaves out: remove it")
        if self.inner == "n-fgsm":
            check_single_step(attack)

    def attacked(self, step: Step) -> Tensor:
        return single_step(step) if self.inner == "n-fgsm" else super().attacked(step)

    def loss(self, step: Step, x_adv: Tensor) -> Tensor:
        logits_adv = step.forward(x_adv).float()
        hard = F.cross_entropy(logits_adv, step.batch.y, label_smoothing=self.label_smoothing)
        return self.ce * hard + self.kl * kl(step.soft, logits_adv)
