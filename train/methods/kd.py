"""KD, knowledge distillation on clean images: Hinton et al. 2015, arXiv:1503.02531."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from zoo.train.methods.losses import kl
from zoo.train.methods.method import Method, Step, Temperature


class Kd(Method):
    """alpha t^2 KL(T_t(x) || S_t(x)) + (1 - alpha) CE(S(x), y) at temperature t: eq. 3 of Goldblum et al. 2020.

    They take alpha = 1, and t = 30 for CIFAR-10 or 5 for CIFAR-100. The cross-entropy has temperature 1, as in
    :class:`zoo.train.methods.ard.Ard`.
    """

    name: Literal["kd"] = "kd"
    alpha: float = Field(1.0, ge=0, le=1, description="share of the soft labels")
    temperature: Temperature = 1.0
    takes_teacher: ClassVar[bool] = True

    @property
    def attacks(self) -> bool:
        return False

    def loss(self, step: Step, x_adv: Tensor) -> Tensor:
        logits = step.forward(step.batch.x).float()
        soft = self.alpha * kl(step.soft, logits, self.temperature)
        return soft + (1 - self.alpha) * F.cross_entropy(logits, step.batch.y)
