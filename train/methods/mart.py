"""MART, misclassification aware adversarial training: Wang et al. 2020, ICLR."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from zoo.train.methods.method import Method, Step


class Mart(Method):
    """BCE(x', y) + beta * KL(p(x) || p(x')) * (1 - p_y(x)): eq. 11."""

    name: Literal["mart"] = "mart"
    beta: float = Field(6.0, ge=0, description="weight of the divergence")

    @property
    def forwards(self) -> int:
        return 2

    def loss(self, step: Step, x_adv: Tensor) -> Tensor:
        logits_adv = step.forward(x_adv).float()
        return mart(step.forward(step.batch.x).float(), logits_adv, step.batch.y, beta=self.beta)


def mart(logits: Tensor, logits_adv: Tensor, y: Tensor, *, beta: float) -> Tensor:
    """Eq. 11 from logits [N, K] on clean and adversarial images and labels [N].

    The boosted cross-entropy is -log p_y(x') - log(1 - max over k != y of p_k(x')).
    """
    probs_adv = logits_adv.softmax(1)  # [N, K]
    runner_up = probs_adv.scatter(1, y[:, None], 0.0).amax(1)  # [N]
    boosted = F.cross_entropy(logits_adv, y, reduction="none") - torch.log1p(-runner_up.clamp(max=1 - 1e-6))
    divergence = F.kl_div(
        F.log_softmax(logits_adv, 1), F.log_softmax(logits, 1), reduction="none", log_target=True
    ).sum(1)  # [N]
    missing = 1 - logits.softmax(1).gather(1, y[:, None]).squeeze(1)  # [N]
    return (boosted + beta * divergence * missing).mean()
