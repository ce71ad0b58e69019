"""Losses that several methods share: pure functions of logits [N, K], each a mean over the batch."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def kl(p: Tensor, q: Tensor) -> Tensor:
    """KL(P || Q) = sum_i P_i log(P_i / Q_i) for the distributions with logits ``p`` and ``q`` [N, K]."""
    log_p, log_q = F.log_softmax(p.float(), 1), F.log_softmax(q.float(), 1)
    return F.kl_div(log_q, log_p, reduction="batchmean", log_target=True)
