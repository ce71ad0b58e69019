"""Losses that several methods share: pure functions of logits [N, K], each a mean over the batch."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def kl(p: Tensor, q: Tensor, temperature: float = 1.0) -> Tensor:
    """KL(P || Q) = sum_i P_i log(P_i / Q_i) for the distributions with logits ``p`` and ``q`` [N, K].

    With a temperature t it is t^2 KL(P_t || Q_t), the logits divided by t: the factor keeps the size of the gradient
    (Hinton et al. 2015, section 2.1).
    """
    log_p, log_q = F.log_softmax(p.float() / temperature, 1), F.log_softmax(q.float() / temperature, 1)
    return temperature**2 * F.kl_div(log_q, log_p, reduction="batchmean", log_target=True)
