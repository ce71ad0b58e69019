"""Fast-ARD, adversarially robust distillation by free adversarial training: Goldblum et al. 2020, arXiv:1905.09747."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor

from zoo.train.methods.ard import ard
from zoo.train.methods.method import Step, Temperature
from zoo.train.methods.replay import Replayed


class FastArd(Replayed):
    """alpha t^2 KL(T_t(x) || S_t(x + delta)) + (1 - alpha) CE(S(x), y) with replays: Algorithm 2.

    As printed, the perturbation climbs the cross-entropy, which needs a backward pass of its own, and the soft labels
    are learnt on clean images. Here they are learnt on x + delta, and delta climbs the same loss, by the same backward
    pass (section 5.4). So with alpha = 1 a run costs what clean distillation costs (Table 10).
    """

    name: Literal["fast-ard"] = "fast-ard"
    alpha: float = Field(1.0, ge=0, le=1, description="share of the soft labels")
    temperature: Temperature = Field(1.0, description="the paper has 30 for CIFAR-10, 5 for CIFAR-100")
    takes_teacher: ClassVar[bool] = True

    @property
    def forwards(self) -> int:
        return 1 if self.alpha == 1 else 2

    def loss(self, step: Step, x_adv: Tensor) -> Tensor:
        return ard(step, x_adv, self.alpha, self.temperature)
