"""A training step of PGD-AT (10 attack steps) and of N-FGSM against the textbook loops on the same net and batch, and
against the arithmetic of the machine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from benchmarks.timing import interleaved, row
from zoo.datasets.cifar10 import CIFAR10
from zoo.models import build
from zoo.specs import cost
from zoo.train.recipes.phases import load_recipe
from zoo.train.recipes.schema import Recipe
from zoo.train.run.trainer import Trainer

STEPS_A_ROUND = 5
SIDE = 2048  # of the matrices


def run() -> list[dict]:
    pgd_at = ["method=pgd-at", "attack.steps=10", "attack.step=0.00784313725490196"]
    return [
        compared("PGD-AT, 10 attack steps, S7", "trades-s7", pgd_at, textbook_pgd),
        compared("N-FGSM, nfgsm-w15", "nfgsm-w15", [], textbook_n_fgsm),
    ]


def compared(what: str, name: str, settings: list[str], textbook: Callable[..., Any]) -> dict:
    contestants: dict[str, Callable[[], object]] = {}
    for precision in ("bf16", "fp32"):
        changes = [*settings, "train.images=12800", f"train.precision={precision}"]
        trainer = Trainer(load_recipe(name, overrides=changes), CIFAR10.load())

        def steps(trainer: Trainer = trainer) -> None:
            trainer.net.train()
            for _ in range(STEPS_A_ROUND):
                trainer.train_step()

        contestants[f"zoo ({precision})"] = steps
    recipe = trainer.recipe
    contestants["textbook"] = textbook(recipe)
    contestants["its arithmetic as matrix products in bf16"] = arithmetic(recipe)
    seconds = interleaved(contestants, rounds=5, warmup=2)
    what += f", {STEPS_A_ROUND} batches of {recipe.train.batch_size}"
    return row(what, "zoo (bf16)", seconds, goal={"textbook": 3.0})


def net_of(recipe: Recipe) -> tuple[Any, ...]:
    """A fresh net, its optimizer, and a batch."""
    net, n = build(recipe.arch), recipe.train.batch_size
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    return net, optimizer, torch.rand(n, 3, 32, 32), torch.randint(10, (n,))


def textbook_pgd(recipe: Recipe) -> Callable[[], None]:
    """Madry's loop as tutorials write it: train mode throughout, `backward()` into all gradients."""
    net, optimizer, x, y = net_of(recipe)
    eps, step = recipe.attack.eps, recipe.attack.step

    def some() -> None:
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

    return some


def textbook_n_fgsm(recipe: Recipe) -> Callable[[], None]:
    """One step from noise of 2 eps, not clipped to the ball; train mode throughout, `backward()` into all gradients."""
    net, optimizer, x, y = net_of(recipe)
    eps, step, smoothing = recipe.attack.eps, recipe.attack.step, recipe.method.label_smoothing

    def some() -> None:
        for _ in range(STEPS_A_ROUND):
            net.train()
            start = (x + torch.empty_like(x).uniform_(-2 * eps, 2 * eps)).requires_grad_()
            F.cross_entropy(net(start), y).backward()
            x_adv = (start + step * start.grad.sign()).clamp(0, 1)
            optimizer.zero_grad()
            F.cross_entropy(net(x_adv.detach()), y, label_smoothing=smoothing).backward()
            optimizer.step()

    return some


def arithmetic(recipe: Recipe) -> Callable[[], None]:
    """As many operations in products of large matrices: what the processor could do at best."""
    passes = recipe.method.passes(recipe.attack)
    operations = STEPS_A_ROUND * recipe.train.batch_size * passes * cost(recipe.arch).macs
    a = torch.rand(SIDE, SIDE).bfloat16()
    count = max(1, round(operations / SIDE**3))

    def some() -> None:
        for _ in range(count):
            a @ a

    return some
