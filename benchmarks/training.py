"""A training step of PGD-AT (10 attack steps), against the textbook loop on the same net and batch."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from benchmarks.timing import interleaved, row
from zoo.datasets.cifar10 import CIFAR10
from zoo.models import build
from zoo.train.recipes.phases import load_recipe
from zoo.train.run.trainer import Trainer

STEPS_A_ROUND = 5


def run() -> list[dict]:
    settings = ["method=pgd-at", "attack.steps=10", "attack.step=0.00784313725490196", "train.images=12800"]
    dataset = CIFAR10.load()
    contestants = {}
    for precision in ("bf16", "fp32"):
        trainer = Trainer(load_recipe("trades-s7", overrides=[*settings, f"train.precision={precision}"]), dataset)

        def steps(trainer: Trainer = trainer) -> None:
            trainer.net.train()
            for _ in range(STEPS_A_ROUND):
                trainer.train_step()

        contestants[f"zoo ({precision})"] = steps

    recipe = trainer.recipe
    net = build(recipe.arch)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    x = torch.rand(recipe.train.batch_size, 3, 32, 32)
    y = torch.randint(10, (recipe.train.batch_size,))
    eps, step = recipe.attack.eps, recipe.attack.step

    def textbook() -> None:
        """Madry's loop as tutorials write it: train mode throughout, `backward()` into all gradients."""
        for _ in range(STEPS_A_ROUND):
            net.train()
            x_adv = (x + torch.empty_like(x).uniform_(-eps, eps)).clamp(0, 1)
            for _ in range(recipe.attack.steps):
                x_adv = x_adv.detach().requires_grad_()
                F.cross_entropy(net(x_adv), y).backward()
                x_adv = x_adv + step * x_adv.grad.sign()
                x_adv = torch.min(torch.max(x_adv, x - eps), x + eps).clamp(0, 1)
            optimizer.zero_grad()
            F.cross_entropy(net(x_adv.detach()), y).backward()
            optimizer.step()

    seconds = interleaved({**contestants, "textbook": textbook}, rounds=5, warmup=2)
    what = f"PGD-AT, 10 attack steps, S7, {STEPS_A_ROUND} batches of {recipe.train.batch_size}"
    return [row(what, "zoo (bf16)", seconds, goal={"textbook": 2.0})]
