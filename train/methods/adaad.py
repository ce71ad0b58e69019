"""AdaAD, adaptive adversarial distillation: Huang et al. 2023, CVPR."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor

from zoo.train.methods.adversary import Objective
from zoo.train.methods.losses import kl
from zoo.train.methods.method import Attack, Method, Needs, Step, Temperature


class AdaAD(Method):
    """alpha t^2 KL(T_t(x') || S_t(x')) + (1 - alpha) t^2 KL(T_t(x) || S_t(x)), where x' maximises the divergence in the
    first term.

    The teacher answers on x', and the inner maximisation goes through the teacher too: a step of it has a forward and a
    backward pass of the teacher beside the student's.
    """

    name: Literal["adaad"] = "adaad"
    alpha: float = Field(1.0, ge=0, le=1, description="share of the adversarial images")
    temperature: Temperature = 1.0
    takes_teacher: ClassVar[bool] = True

    @property
    def forwards(self) -> int:
        return 1 if self.alpha == 1 else 2

    @property
    def needs(self) -> Needs:
        return Needs(clean=False)

    def teacher_passes(self, attack: Attack) -> float:
        return self.forwards + self.attack_passes(attack)

    def objective(self, step: Step) -> Objective:
        teacher, n = step.teacher, len(step.batch.y)
        assert teacher is not None
        return lambda x_adv, logits_adv: n * kl(teacher.logits(x_adv), logits_adv, self.temperature)

    def loss(self, step: Step, x_adv: Tensor) -> Tensor:
        loss = self.alpha * self._divergence(step, x_adv)
        return loss if self.alpha == 1 else loss + (1 - self.alpha) * self._divergence(step, step.batch.x)

    def _divergence(self, step: Step, x: Tensor) -> Tensor:
        assert step.teacher is not None
        return kl(step.teacher(x).logits, step.forward(x), self.temperature)
