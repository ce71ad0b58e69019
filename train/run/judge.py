"""How accurate a net is on held-out images while it trains: clean, and under a short PGD."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from zoo.attacks import broken
from zoo.train.methods import adversary
from zoo.train.methods.method import Attack


def accuracies(
    net: nn.Module, x: Tensor, y: Tensor, attack: Attack, *, steps: int, batch_size: int
) -> tuple[float, float]:
    """Clean accuracy of ``net`` on images ``x`` [N, C, H, W] with labels ``y`` [N], and that under PGD with ``steps``
    steps of a quarter of ε, from the same random start each time."""
    seeded = torch.Generator(x.device).manual_seed(0)
    hits = torch.zeros(2, device=x.device)
    with adversary.frozen(net):
        for images, labels in zip(x.split(batch_size), y.split(batch_size), strict=True):
            ball, noise = attack.ball(images), torch.empty_like(images).uniform_(-1, 1, generator=seeded)
            start, objective = adversary.random_start(ball, noise), adversary.log_odds(labels)
            attacked = adversary.pgd(net, ball, start, objective, step=attack.eps / 4, steps=steps)
            with torch.no_grad():
                hits += torch.stack([(~broken(net(seen), labels)).sum() for seen in (images, attacked)])
    clean, robust = (hits / len(y)).tolist()
    return clean, robust
