"""Free AT, free adversarial training: Shafahi et al. 2019, arXiv:1904.12843."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from zoo.train.methods.method import Step
from zoo.train.methods.replay import Replayed


class FreeAT(Replayed):
    """CE(x + delta, y) with replays: Algorithm 1. The paper has m = 8, and a step of eps."""

    name: Literal["free-at"] = "free-at"
    m: int = Field(8, ge=1, description="replays of each batch")
    label_smoothing: float = Field(0.0, ge=0, lt=1)

    def loss(self, step: Step, x_adv: Tensor) -> Tensor:
        return F.cross_entropy(step.forward(x_adv).float(), step.batch.y, label_smoothing=self.label_smoothing)
