"""Parts of inner maximisations: the few steps that make a training batch adversarial.

The attacks of ``zoo.attacks`` judge a model and check their success; these do not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.attacks import losses
from zoo.attacks.ball import Ball, steepest
from zoo.attacks.inputs import without_gradients
from zoo.train.methods.losses import kl

Objective = Callable[[Tensor, Tensor], Tensor]  # images x' and the net's logits on them to a scalar to maximise


def cross_entropy(y: Tensor) -> Objective:
    """CE(x', y), summed over the batch."""
    return lambda x_adv, logits: F.cross_entropy(logits, y, reduction="sum")


def log_odds(y: Tensor) -> Objective:
    """The log-odds of a wrong class, summed over the batch, which do not saturate where logits are large."""
    return lambda x_adv, logits: losses.cross_entropy(logits, y).sum()


def divergence(logits: Tensor, temperature: float = 1.0) -> Objective:
    """KL(p || p(x')), summed over the batch, for the logits [N, K] of p, from the net on clean images (TRADES) or from
    a teacher (RSLAD)."""
    return lambda x_adv, logits_adv: len(logits) * kl(logits, logits_adv, temperature)


@contextmanager
def frozen(model: nn.Module, *, training: bool = False) -> Iterator[None]:
    """Inside, parameters have no gradients (which saves a third of the backward pass) and the model is in eval mode,
    unless ``training``. In train mode, attacks would be weaker and change the BatchNorm statistics."""
    before = model.training
    model.train(training)
    try:
        with without_gradients(model):
            yield
    finally:
        model.train(before)


def gradient(model: nn.Module, x: Tensor, objective: Objective) -> Tensor:
    """Gradient of the objective at the images ``x`` [N, C, H, W]; where it is NaN, 0."""
    x = x.detach().requires_grad_()
    return torch.autograd.grad(objective(x, model(x).float()), x)[0].nan_to_num_(0, 0, 0)


def random_start(ball: Ball, noise: Tensor) -> Tensor:
    """A point of the ball for each image, from noise [N, C, H, W] that is uniform in [-1, 1].

    In l-infinity the point is x + eps * noise. In l2 it is on the sphere in a uniformly drawn direction: in thousands
    of dimensions, nearly all of a ball is near its sphere.
    """
    if ball.norm == "linf":
        return ball.project(ball.x + ball.eps * noise)
    normal = torch.erfinv(noise.clamp(-1 + 1e-6, 1 - 1e-6))  # its direction is uniform
    return ball.project(ball.x + ball.eps * steepest(normal, "l2"))


def pgd(model: nn.Module, ball: Ball, start: Tensor, objective: Objective, *, step: float, steps: int) -> Tensor:
    """Projected gradient ascent from ``start`` [N, C, H, W] within the ball: Madry et al. 2018, section 2.1.

    Returns x' [N, C, H, W] within the ball and in [0, 1]. ``step`` is measured in the ball's norm.
    """
    x_adv = start
    with frozen(model):
        for _ in range(steps):
            x_adv = ball.project(x_adv + step * steepest(gradient(model, x_adv, objective), ball.norm))
    return x_adv
