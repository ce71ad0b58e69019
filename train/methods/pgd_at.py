"""PGD adversarial training: Madry et al. 2018, arXiv:1706.06083."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from zoo.train.methods.method import Method, Step


class PgdAT(Method):
    """CE(x', y) with x' by PGD: the saddle point problem of eq. 2.1."""

    name: Literal["pgd-at"] = "pgd-at"
    label_smoothing: float = Field(0.0, ge=0, lt=1)

    def loss(self, step: Step, x_adv: Tensor) -> Tensor:
        return F.cross_entropy(step.forward(x_adv).float(), step.batch.y, label_smoothing=self.label_smoothing)
