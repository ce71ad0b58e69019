"""The inner maximisation: the few steps that make a training batch adversarial.

Unlike the attacks of ``zoo.attacks``, which judge a model, these never look whether they succeeded.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@contextmanager
def frozen(model: nn.Module, *, training: bool = False) -> Iterator[None]:
    """No parameter gradients inside, a third of the backward pass; and eval mode, unless ``training``: attacks
    crafted in BN train mode are weaker and move the statistics."""
    before = model.training
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    model.train(training)
    for parameter in trainable:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)
        model.train(before)


def _ascend(model: nn.Module, x: Tensor, y: Tensor, clean: Tensor | None) -> Tensor:
    """Sign of the gradient at ``x`` of the cross-entropy, or of KL(clean || .) where clean log-probs are given."""
    x = x.detach().requires_grad_()
    logits = model(x).float()
    if clean is None:
        loss = F.cross_entropy(logits, y, reduction="sum")
    else:
        loss = F.kl_div(F.log_softmax(logits, 1), clean, reduction="sum", log_target=True)
    (gradient,) = torch.autograd.grad(loss, x)
    return gradient.sign()


def pgd(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    noise: Tensor,
    *,
    eps: float,
    step: float,
    steps: int,
    kl: bool = False,
    taught: Tensor | None = None,
) -> Tensor:
    """l-infinity PGD from ``x + eps * noise``, noise in [-1, 1] (Madry et al. 2018; TRADES' objective with ``kl``).

    Shapes: x and noise [N, C, H, W], y [N]; returns x' [N, C, H, W] within eps of x and in [0, 1].

    Args:
        taught: log-probabilities [N, K] to lead away from, a teacher's (RSLAD), in place of the model's own.
    """
    with frozen(model):
        clean = taught
        if kl and clean is None:
            with torch.no_grad():
                clean = F.log_softmax(model(x).float(), 1)
        x_adv = (x + eps * noise).clamp_(0, 1)
        for _ in range(steps):
            x_adv = x_adv + step * _ascend(model, x_adv, y, clean)
            x_adv = torch.minimum(torch.maximum(x_adv, x - eps), x + eps).clamp_(0, 1)
    return x_adv


def n_fgsm(model: nn.Module, x: Tensor, y: Tensor, noise: Tensor, *, eps: float, step: float) -> Tensor:
    """One step from noise of +-2 eps, *not* clipped back to the ball: N-FGSM, de Jorge et al. 2022, eq. 6.

    Clipping is what brings catastrophic overfitting back: x' may lie up to 2 eps + step from x.
    """
    with frozen(model):
        start = x + 2 * eps * noise
        return (start + step * _ascend(model, start, y, None)).clamp_(0, 1)
