"""Training on clean images."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from zoo.train.methods.method import Method, Step


class Natural(Method):
    """CE(x, y)."""

    name: Literal["natural"] = "natural"
    label_smoothing: float = Field(0.0, ge=0, lt=1)

    @property
    def attacks(self) -> bool:
        return False

    def loss(self, step: Step, x_adv: Tensor) -> Tensor:
        return F.cross_entropy(step.forward(step.batch.x).float(), step.batch.y, label_smoothing=self.label_smoothing)
