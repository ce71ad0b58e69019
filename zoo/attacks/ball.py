"""The set that an attack searches: the points of [0, 1] within eps of the image, in l-infinity or l2."""

from __future__ import annotations

import torch
from torch import Tensor

from zoo.attacks.inputs import Norm

DIMS = (1, 2, 3)  # everything but the batch


def norm_of(delta: Tensor, norm: Norm) -> Tensor:
    """The norm of each image of delta [N, C, H, W]: [N, 1, 1, 1]."""
    if norm == "linf":
        return delta.abs().amax(DIMS, keepdim=True)
    return torch.linalg.vector_norm(delta, dim=DIMS, keepdim=True)


def steepest(gradient: Tensor, norm: Norm) -> Tensor:
    """The direction of steepest ascent with unit norm, [N, C, H, W]; zero if the gradient is zero."""
    if norm == "linf":
        return gradient.sign()
    # Scaled by the largest entry first: the squares of a small gradient vanish in float32.
    scaled = gradient / gradient.abs().amax(DIMS, keepdim=True).clamp_min(torch.finfo(gradient.dtype).tiny)
    return scaled / norm_of(scaled, norm).clamp_min(1e-12)


class Ball:
    """The ball of radius ``eps`` around each image of ``x`` [N, C, H, W], intersected with the box [0, 1]."""

    def __init__(self, x: Tensor, eps: float, norm: Norm) -> None:
        self.x, self.eps, self.norm = x, eps, norm
        if norm == "linf":  # the intersection is a box
            self.lower, self.upper = (x - eps).clamp_(min=0), (x + eps).clamp_(max=1)

    def project(self, x: Tensor) -> Tensor:
        """Project to the ball, then to the box; the second step stays in the ball."""
        if self.norm == "linf":
            return x.clamp(self.lower, self.upper)
        delta = x - self.x
        shrink = (self.eps / norm_of(delta, "l2").clamp_min(1e-12)).clamp_(max=1)
        return delta.mul_(shrink).add_(self.x).clamp_(0, 1)

    def random(self, source: torch.Generator) -> Tensor:
        """A point per image, [N, C, H, W], drawn uniformly from the ball, then clamped to the box."""
        x, eps = self.x, self.eps
        if self.norm == "linf":
            delta = torch.empty_like(x).uniform_(-eps, eps, generator=source)
        else:
            towards = steepest(torch.empty_like(x).normal_(generator=source), "l2")
            volume = torch.rand(len(x), 1, 1, 1, generator=source, dtype=x.dtype, device=x.device)
            delta = towards * (eps * volume ** (1 / x[0].numel()))
        return self.project(x + delta)

    def select(self, keep: Tensor) -> Ball:
        """The balls of the images at the indices ``keep`` [M]."""
        return Ball(self.x[keep], self.eps, self.norm)
