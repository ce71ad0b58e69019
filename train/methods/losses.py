"""Training losses: pure functions of logits and labels. Logits are [N, K], labels int64 [N]; each returns a scalar."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def natural(logits: Tensor, y: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
    """Cross-entropy on clean images: no robustness of its own."""
    return F.cross_entropy(logits, y, label_smoothing=label_smoothing)


def pgd_at(logits_adv: Tensor, y: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
    """Cross-entropy on adversarial images: the outer problem of Madry et al. 2018, eq. 2.1 (and of N-FGSM)."""
    return F.cross_entropy(logits_adv, y, label_smoothing=label_smoothing)


def trades(logits: Tensor, logits_adv: Tensor, y: Tensor, *, beta: float, label_smoothing: float = 0.0) -> Tensor:
    """CE(x, y) + beta * KL(p(x) || p(x')): TRADES, Zhang et al. 2019, eq. 5, with their beta = 1/lambda."""
    divergence = F.kl_div(
        F.log_softmax(logits_adv, 1), F.log_softmax(logits, 1), reduction="batchmean", log_target=True
    )
    return F.cross_entropy(logits, y, label_smoothing=label_smoothing) + beta * divergence


def mart(logits: Tensor, logits_adv: Tensor, y: Tensor, *, beta: float) -> Tensor:
    """BCE(x', y) + beta * KL(p(x) || p(x')) * (1 - p_y(x)): MART, Wang et al. 2020, eq. 11.

    Their boosted cross-entropy is -log p_y(x') - log(1 - max over k != y of p_k(x')).
    """
    probs_adv = logits_adv.softmax(1)  # [N, K]
    runner_up = probs_adv.scatter(1, y[:, None], 0.0).amax(1)  # [N]
    boosted = F.cross_entropy(logits_adv, y, reduction="none") - torch.log1p(-runner_up.clamp(max=1 - 1e-6))
    divergence = F.kl_div(
        F.log_softmax(logits_adv, 1), F.log_softmax(logits, 1), reduction="none", log_target=True
    ).sum(1)  # [N]
    missing = 1 - logits.softmax(1).gather(1, y[:, None]).squeeze(1)  # [N]
    return (boosted + beta * divergence * missing).mean()


def distilled(logits: Tensor, logits_teacher: Tensor) -> Tensor:
    """KL(p, q) = sum_i p_i log(p_i / q_i), p the student's probabilities and q the teacher's: RNAS-CL, section 3.4.

    The reverse of Hinton's: it asks the student not to be sure where the teacher is not. A mean over the batch.
    """
    p, q = F.log_softmax(logits.float(), 1), F.log_softmax(logits_teacher.float(), 1)
    return F.kl_div(q, p, reduction="batchmean", log_target=True)


def taught(logits: Tensor, logits_teacher: Tensor) -> Tensor:
    """KL(T || S) = sum_i t_i log(t_i / s_i), Hinton's direction: the teacher's soft labels. A mean over the batch."""
    s, t = F.log_softmax(logits.float(), 1), F.log_softmax(logits_teacher.float(), 1)
    return F.kl_div(s, t, reduction="batchmean", log_target=True)


def rslad(logits: Tensor, logits_adv: Tensor, logits_teacher: Tensor) -> Tensor:
    """5/6 KL(T(x) || S(x')) + 1/6 KL(T(x) || S(x)): RSLAD, Zi et al. 2021, with the weights of ProARD."""
    return 5 / 6 * taught(logits_adv, logits_teacher) + 1 / 6 * taught(logits, logits_teacher)
