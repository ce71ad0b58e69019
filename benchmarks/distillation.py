"""Distillation: a step of ARD (10 attack steps) against the textbook loop; an epoch of Fast-ARD against one of KD; an
epoch of RRM against natural training and the teacher's forward pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from benchmarks.timing import interleaved, row
from zoo.datasets.base import Dataset
from zoo.datasets.cifar10 import CIFAR10
from zoo.models import build
from zoo.train.recipes.phases import load_recipe
from zoo.train.recipes.schema import Recipe, parse_recipe
from zoo.train.run.trainer import Trainer
from zoo.weights.load import load

TEACHER = "nfgsm-w15-int8"
STEP = 2 / 255
M = 4  # replays


def run() -> list[dict]:
    dataset = CIFAR10.load()
    return [
        ard("trades-s7", "S7", dataset, batches=2),
        ard("ard-mobilenetv2", "MobileNetV2", dataset, compile=False),  # as its preset cpu does
        *fast(dataset),
    ]


def recipe(name: str, method: dict[str, Any], attack: dict[str, Any], **train: Any) -> Recipe:
    """The recipe ``name`` with another method and attack."""
    data = load_recipe(name).model_dump(exclude_unset=True)
    data |= {"method": method, "attack": attack, "train": {**data["train"], "images": 12800, **train}}
    data["teacher"] = None if method["name"] == "natural" else {"name": TEACHER}
    return parse_recipe(data, name)


def steps(trainer: Trainer, batches: int) -> Callable[[], None]:
    """``batches`` updates of the weights."""

    def some() -> None:
        trainer.net.train()
        for _ in range(batches // trainer.recipe.method.replays):
            trainer.train_step()

    return some


def ard(name: str, title: str, dataset: Dataset, batches: int = 1, **train: Any) -> dict:
    method = {"name": "ard", "alpha": 1.0, "temperature": 30.0}
    contestants = {}
    for precision in ("bf16", "fp32"):
        trainer = Trainer(recipe(name, method, {"steps": 10, "step": STEP}, precision=precision, **train), dataset)
        contestants[f"zoo ({precision})"] = steps(trainer, batches)
    contestants["textbook"] = textbook(trainer.recipe, batches)
    seconds = interleaved(contestants, rounds=3, warmup=1)
    what = f"ARD, 10 attack steps, {title}, {batches} x {trainer.recipe.train.batch_size} images"
    return row(what, "zoo (bf16)", seconds, goal={"textbook": 2.5})


def textbook(recipe: Recipe, batches: int) -> Callable[[], None]:
    """Algorithm 1 as tutorials write it: train mode throughout, `backward()` into all gradients."""
    net, teacher, eps, t = build(recipe.arch), load(TEACHER), recipe.attack.eps, 30.0
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    n = recipe.train.batch_size
    x, y = torch.rand(n, 3, 32, 32), torch.randint(10, (n,))

    def some() -> None:
        for _ in range(batches):
            net.train()
            x_adv = (x + torch.empty_like(x).uniform_(-eps, eps)).clamp(0, 1)
            for _ in range(10):
                x_adv = x_adv.detach().requires_grad_()
                F.cross_entropy(net(x_adv), y).backward()
                x_adv = x_adv + STEP * x_adv.grad.sign()
                x_adv = torch.min(torch.max(x_adv, x - eps), x + eps).clamp(0, 1)
            optimizer.zero_grad()
            soft = (teacher(x) / t).softmax(1)
            (t**2 * F.kl_div((net(x_adv.detach()) / t).log_softmax(1), soft, reduction="batchmean")).backward()
            optimizer.step()

    return some


def fast(dataset: Dataset) -> list[dict]:
    """Epochs that see clean images, or replay them: as many updates of the weights each, S7."""
    batches = 2 * M
    taught = Trainer(recipe("trades-s7", {"name": "kd"}, {}), dataset)
    drawn = [taught.batch(number) for number in range(batches)]  # the natural epoch has the augmentation

    def answers() -> None:
        for batch in drawn:
            taught.step(batch)

    methods: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
        "Fast-ARD": ({"name": "fast-ard", "m": M}, {"step": 8 / 255}),
        "KD": ({"name": "kd"}, {}),
        "RRM": ({"name": "rrm"}, {}),
        "natural": ({"name": "natural"}, {}),
    }
    contestants = {
        name: steps(Trainer(recipe("trades-s7", *how, epochs=M), dataset), batches) for name, how in methods.items()
    }
    contestants["teacher's forward"] = answers
    seconds = interleaved(contestants, rounds=5, warmup=2)
    pairs = zip(seconds["natural"], seconds["teacher's forward"], strict=True)
    matching = {"RRM": seconds["RRM"], "natural + teacher's forward": [a + b for a, b in pairs]}
    replays = {"Fast-ARD": seconds["Fast-ARD"], "KD": seconds["KD"]}
    what = f"{batches} updates of S7 with 128 images"
    return [
        row(f"{what}, Fast-ARD with m = {M}", "Fast-ARD", replays, goal={"KD": round(1 / 1.2, 2)}),
        row(f"{what}, RRM", "RRM", matching, goal={"natural + teacher's forward": round(1 / 1.3, 2)}),
    ]
