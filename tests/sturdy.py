"""Synthetic pictures, and a robust and a fragile net that are trained on them in seconds."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from zoo.attacks.ball import Ball
from zoo.datasets.base import to_float
from zoo.models import Classifier, build
from zoo.specs import StagedSpec
from zoo.train.methods.adversary import cross_entropy, pgd, random_start

SPEC = StagedSpec(widths=((8,), (16,), (16,)), resolutions=(16, 8, 4), stem=6)
TEST = 500


def pictures(n: int, seed: int, *, misleading: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 [n, 32, 32, 3] and labels; each class has a strong colour pattern and a faint texture.

    The texture is smaller than eps = 8/255: a net that uses it is accurate but not robust. Misleading images have the
    colours of a random class, so a net learns the texture only.
    """
    world = np.random.default_rng(0)
    loud, faint = world.choice([-60, 60], (10, 2, 2, 3)), world.choice([-7, 7], (10, 4, 4, 3))
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 10, n)
    shown = rng.integers(0, 10, n) if misleading else labels
    images = 128 + rng.integers(-10, 11, (n, 32, 32, 3)) + np.tile(faint[labels], (1, 8, 8, 1))
    images += loud[shown].repeat(16, 1).repeat(16, 2)
    return images.clip(0, 255).astype(np.uint8), labels


def trained(*, robustly: bool) -> Classifier:
    """A net trained with PGD to be robust, or on the texture without attacks to be fragile."""
    images, labels = pictures(1500, seed=1, misleading=not robustly)
    x, y = to_float(images), torch.from_numpy(labels)
    torch.manual_seed(0)
    model, epochs = build(SPEC), 4
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.2, total_steps=epochs * 30)
    for _ in range(epochs):
        for index in torch.randperm(len(x)).split(50):
            batch = x[index]
            if robustly:
                ball, noise = Ball(batch, 8 / 255, "linf"), torch.empty_like(batch).uniform_(-1, 1)
                batch = pgd(model, ball, random_start(ball, noise), cross_entropy(y[index]), step=8 / 255, steps=1)
            model.train()
            optimizer.zero_grad()
            F.cross_entropy(model(batch), y[index]).backward()
            optimizer.step()
            schedule.step()
    return model.eval().requires_grad_(False)
