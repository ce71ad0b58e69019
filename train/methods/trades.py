"""TRADES: Zhang et al. 2019, arXiv:1901.08573."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from zoo.train.methods.losses import kl
from zoo.train.methods.method import Method, Step


class Trades(Method):
    """CE(x, y) + beta * KL(p(x) || p(x')): eq. 5, with beta = 1/lambda. The paper's attack maximises the divergence:
    ``attack.objective = "kl"``."""

    name: Literal["trades"] = "trades"
    beta: float = Field(6.0, ge=0, description="weight of the divergence")
    label_smoothing: float = Field(0.0, ge=0, lt=1)

    @property
    def forwards(self) -> int:
        return 2

    def loss(self, step: Step, x_adv: Tensor) -> Tensor:
        logits_adv = step.forward(x_adv).float()
        logits = step.forward(step.batch.x).float()
        return trades(logits, logits_adv, step.batch.y, beta=self.beta, label_smoothing=self.label_smoothing)


def trades(logits: Tensor, logits_adv: Tensor, y: Tensor, *, beta: float, label_smoothing: float = 0.0) -> Tensor:
    """Eq. 5 from logits [N, K] on clean and adversarial images and labels [N]; gradients flow into both."""
    return F.cross_entropy(logits, y, label_smoothing=label_smoothing) + beta * kl(logits, logits_adv)
