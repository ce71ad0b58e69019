"""Models that are not robust and would like to look so. All make the decisions of one fragile net."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class Trick(nn.Module):
    """The logits of ``net``, after ``before`` was done to the images and ``after`` to the logits."""

    def __init__(
        self,
        net: nn.Module,
        before: Callable[[Tensor], Tensor] = lambda x: x,
        after: Callable[[Tensor], Tensor] = lambda z: z,
    ) -> None:
        super().__init__()
        self.net, self.before, self.after = net, before, after

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.net(self.before(x)))


class Stateful(nn.Module):
    """Honest at first; after some calls it answers as to the images that it was asked about first."""

    def __init__(self, net: nn.Module, honest: int) -> None:
        super().__init__()
        self.net, self.left = net, honest

    def forward(self, x: Tensor) -> Tensor:
        self.left -= 1
        return self.net(x) if self.left >= 0 else self.net(x * 0 + 0.5)


class Halved(nn.Module):
    """Computes in float16, where large logits become infinite."""

    def __init__(self, net: nn.Module, scale: float) -> None:
        super().__init__()
        self.net, self.scale = net, scale

    def forward(self, x: Tensor) -> Tensor:
        return (self.net(x) * self.scale).half().float()


def levels(x: Tensor, n: int) -> Tensor:
    return (x * n).round() / n


def writing(x: Tensor) -> Tensor:
    """Moves the image that it was handed towards grey."""
    return x.mul_(0.5).add_(0.25) * 2 - 0.5


class Sparse(torch.autograd.Function):
    """The identity, with a gradient for one pixel in sixteen: steps along it pay, but not much."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        sparse = torch.zeros_like(gradient)
        sparse[:, :, ::4, ::4] = gradient[:, :, ::4, ::4]
        return sparse


def noisy(x: Tensor) -> Tensor:
    return x + 0.03 * torch.randn_like(x)


def tied(z: Tensor) -> Tensor:
    """Every logit but the largest equals it, to one bit."""
    return torch.where(z == z.amax(1, keepdim=True), z, z.amax(1, keepdim=True) - 1e-6)


TRICKS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "plain": lambda net: net,
    "masked x 100": lambda net: Trick(net, after=lambda z: 100 * z),
    "masked x 10,000": lambda net: Trick(net, after=lambda z: 1e4 * z),
    "scaled down": lambda net: Trick(net, after=lambda z: 1e-4 * z),
    "softmax outputs": lambda net: Trick(net, after=lambda z: z.softmax(1)),
    "saturated softmax": lambda net: Trick(net, after=lambda z: (40 * z).softmax(1)),
    "saturated sigmoid": lambda net: Trick(net, after=lambda z: torch.sigmoid(60 * (z - z.mean(1, keepdim=True)))),
    "rounded inputs": lambda net: Trick(net, lambda x: levels(x, 48)),
    "rounded logits": lambda net: Trick(net, after=lambda z: levels(z, 4)),
    "random": lambda net: Trick(net, noisy),
    "writing": lambda net: Trick(net, writing),
    "detached": lambda net: Trick(net, lambda x: x.detach() + 0 * x),
    "detached altogether": lambda net: Trick(net, lambda x: x.detach()),
    "wrong gradient": lambda net: Trick(net, Sparse.apply),
    "tied": lambda net: Trick(net, after=tied),
    "not a number": lambda net: Trick(net, after=lambda z: torch.where(z.amax(1, keepdim=True) < 2, torch.nan, z)),
    "float16 overflow": lambda net: Halved(net, 3e4),
    "stateful": lambda net: Stateful(net, 12),
}
