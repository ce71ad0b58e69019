"""A training step of a dynamic net (four sub-nets, PGD-10, RSLAD), against the plain loop; against students
trained alone; and cutting one sub-net."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.timing import interleaved, row
from zoo import info, list_models
from zoo.datasets.base import Dataset
from zoo.datasets.cifar10 import CIFAR10
from zoo.specs import parse_spec
from zoo.train.methods.rslad import rslad
from zoo.train.proard.dynamic import calibration
from zoo.train.proard.trainer import SupernetTrainer
from zoo.train.recipes.phases import load_recipe
from zoo.train.run.trainer import Trainer

STEPS = 10
SETTINGS = [
    "method=rslad",
    "teacher.name=largest",
    f"attack.steps={STEPS}",
    "attack.step=0.0078",
    "attack.objective=kl",
    "train.images=12800",
    "supernet.smallest=false",
    "supernet.largest=0",
    "supernet.random=4",
]
SHARED = ["supernet.attacker=random", "supernet.refine=2"]


def run() -> list[dict]:
    dataset = CIFAR10.load()
    contestants = {}
    for name, more in {
        "zoo, shared images, 2 steps each (bf16)": ["train.precision=bf16", *SHARED],
        "zoo, each its own (bf16)": ["train.precision=bf16"],
        "zoo, each its own (fp32)": ["train.precision=fp32"],
    }.items():
        trainer = SupernetTrainer(load_recipe("proard-tiny", overrides=[*SETTINGS, *more]), dataset)
        contestants[name] = trainer.train_step
    contestants["plain"] = Plain(trainer)
    seconds = interleaved(contestants, rounds=7, warmup=3)
    what = f"ProARD step, 4 sub-nets of tiny, PGD-{STEPS}, batch of {trainer.recipe.train.batch_size}"
    rows = [row(what, next(iter(contestants)), seconds, goal={"plain": 2.0})]
    return [*rows, sharing(dataset), cutting(trainer)]


class Plain:
    """ProARD as its description reads: each sub-net is attacked by itself, and the teacher, the largest, is asked anew
    for each, with gradients."""

    def __init__(self, trainer: SupernetTrainer) -> None:
        self.trainer, self.net = trainer, trainer.net
        self.optimizer = torch.optim.SGD(self.net.parameters(), lr=0.01, momentum=0.9, weight_decay=3e-5)
        self.step = 0

    def __call__(self) -> None:
        batch = self.trainer.batch(self.step)
        self.optimizer.zero_grad()
        for spec in self.trainer.drawn(self.step):
            teacher = self.net(batch.x)
            x_adv = self.attacked(self.net.subnet(spec), batch.x, teacher)
            live = self.net.subnet(spec)
            rslad(live(batch.x), live(x_adv), teacher).backward()
        self.optimizer.step()
        self.step += 1

    def attacked(self, live: nn.Module, x: Tensor, teacher: Tensor) -> Tensor:
        options = self.trainer.recipe.attack
        x_adv = (x + torch.empty_like(x).uniform_(-options.eps, options.eps)).clamp(0, 1)
        target = teacher.softmax(1).detach()
        for _ in range(options.steps):
            x_adv = x_adv.detach().requires_grad_()
            loss = F.kl_div(live(x_adv).log_softmax(1), target, reduction="sum")
            (gradient,) = torch.autograd.grad(loss, x_adv, retain_graph=True)
            x_adv = x_adv + options.step * gradient.sign()
            x_adv = torch.min(torch.max(x_adv, x - options.eps), x + options.eps).clamp(0, 1)
        return x_adv.detach()


def sharing(dataset: Dataset) -> dict:
    """A step of proard-tiny as it was trained, against a step of each of nine students of its budgets trained alone."""
    settings = ["train.compile=false", "train.images=12800"]
    control = load_recipe("ard-p4-w15", overrides=settings)
    specs = [info(name).spec for name in list_models("proard-tiny@*")]
    alone = [Trainer(control.model_copy(update={"arch": parse_spec(spec)}), dataset) for spec in specs]
    contestants = {
        "zoo, the dynamic net": SupernetTrainer(load_recipe("proard-tiny", overrides=settings), dataset).train_step,
        f"{len(alone)} students alone": lambda: [one.train_step() for one in alone],
    }
    what = f"ProARD, two steps for all budgets of proard-tiny, batch of {control.train.batch_size}, not compiled"
    # Two, since every other one trains the largest.
    twice = {name: lambda step=step: (step(), step()) for name, step in contestants.items()}
    return row(what, "zoo, the dynamic net", interleaved(twice, rounds=7, warmup=2))


def cutting(trainer: SupernetTrainer) -> dict:
    """Extraction and recalibration on 4,096 images of one sub-net: the middle of the space."""
    spec = trainer.judges["middle"]
    images = list(calibration(trainer.dataset))
    contestants = {"zoo": lambda: trainer.net.freeze(spec, images)}
    return row("cut a sub-net and recalibrate it on 4,096 images", "zoo", interleaved(contestants, rounds=5))
