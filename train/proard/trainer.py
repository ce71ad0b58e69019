"""Training of a dynamic net: several sub-nets a step, on shared weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.specs import Spec
from zoo.train.methods import adversary, losses
from zoo.train.methods.objective import Batch
from zoo.train.proard.elastic import Elastic
from zoo.train.proard.sampling import drawn, least
from zoo.train.proard.sort import sort_hidden
from zoo.train.recipes.schema import Supernet
from zoo.train.run.trainer import Trainer
from zoo.train.spaces import space_called
from zoo.train.teachers.teacher import Teacher
from zoo.weights.load import find


class SupernetTrainer(Trainer):
    """A run that trains a dynamic net.

    A frozen teacher gives all sub-nets soft labels; without one the largest learns by the recipe's method and gives
    them to the others. A step's gradient is the sum over its sub-nets: their mean learns more slowly.
    """

    net: Elastic
    fused = False  # a step leaves blocks untouched, and fused SGD wants gradients of all parameters or none

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.space = self.net.space
        self.judged: dict[str, dict[str, float]] = {}
        self.teacher: Teacher | None = None
        if self.taught_by is not None:
            self.teacher = self.find_teacher(self.taught_by)

    @property
    def supernet(self) -> Supernet:
        assert self.recipe.supernet is not None
        return self.recipe.supernet

    @property
    def taught_by(self) -> str | None:
        if self.supernet.teacher in ("largest", "none"):
            return None
        return self.earlier_model or self.supernet.teacher

    def network(self) -> nn.Module:
        return Elastic(space_called(self.supernet.space))

    def begin(self, net: nn.Module, start: str) -> None:
        assert isinstance(net, Elastic)
        net.load_released(find(start, folders=True).tensors())
        if self.supernet.sort:
            sort_hidden(net)

    def parallel(self, net: nn.Module) -> nn.Module:
        return net  # gradients come from several backward passes: train_step reduces them once

    # -- a step ------------------------------------------------------------------------------------------------

    def drawn(self, step: int) -> list[Spec]:
        """The sub-nets of a step, without the largest."""
        key = step if self.supernet.redraw == "step" else step // self.steps_per_epoch
        rng = np.random.default_rng((self.recipe.train.seed, self.position.attempt, key))
        progress = self.progress(self.position.seconds)
        return [self.space.spec(row) for row in drawn(self.space, self.supernet, progress, rng)]

    def attack(self, spec: Spec, batch: Batch, taught: Tensor | None = None) -> Tensor:
        """Adversarial images by the recipe's attack on the sub-net ``spec``, with its batch statistics."""
        live, options = self.net.subnet(spec, attacked=True), self.recipe.attack
        x, y, noise, _ = batch
        if self.recipe.train.method == "n-fgsm":
            return adversary.n_fgsm(live, x, y, noise, eps=options.eps, step=options.step)
        reach = {"eps": options.eps, "step": options.step}
        return adversary.pgd(
            live, x, y, noise, **reach, steps=options.steps, kl=options.objective == "kl", taught=taught
        )

    def refined(self, spec: Spec, batch: Batch, shared: Tensor, taught: Tensor | None) -> Tensor:
        """The shared adversarial images after a few steps of PGD on this sub-net."""
        settings, options = self.supernet, self.recipe.attack
        if settings.attacker == "each":
            return self.attack(spec, batch, taught)
        if not settings.refine:
            return shared
        live, x = self.net.subnet(spec, attacked=True), batch.x
        start = ((shared - x) / options.eps).clamp_(-1, 1)
        reach = {"eps": options.eps, "step": options.step}
        return adversary.pgd(
            live, x, batch.y, start, **reach, steps=settings.refine, kl=options.objective == "kl", taught=taught
        )

    def train_step(self) -> Tensor:
        """One update of the shared weights; returns the mean loss of its sub-nets, without waiting for it."""
        settings, net, full = self.supernet, self.net, self.net.full.spec
        batch = self.batch(self.position.step)
        others = self.drawn(self.position.step)
        largest = int((self.position.step + 1) * settings.largest) > int(self.position.step * settings.largest)
        count = len(others) + largest
        total = torch.zeros((), device=self.device)
        with self.autocast():
            soft = self.soft_labels(batch.x) if others or self.teacher else None
            taught = None if soft is None or settings.loss != "rslad" else F.log_softmax(soft, 1)
            shared = batch.x
            if settings.attacker != "each":
                attacker = full if settings.attacker == "largest" else others[-1]
                shared = self.attack(attacker, batch, taught)
            if largest:
                lesson, aim = (None, None) if self.teacher is None else (soft, taught)
                loss = self.taught_loss(full, batch, self.refined(full, batch, shared, aim), lesson)
                self.accelerator.backward(loss)
                total += loss.detach()
            for spec in others:
                loss = self.taught_loss(spec, batch, self.refined(spec, batch, shared, taught), soft)
                self.accelerator.backward(loss)
                total += loss.detach()
        if self.accelerator.num_processes > 1:
            for parameter in net.parameters():
                if parameter.grad is not None:
                    parameter.grad = self.accelerator.reduce(parameter.grad, "mean")
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.ema.update_parameters(net)
        self.position.step += 1
        return total / count

    @torch.no_grad()
    def soft_labels(self, x: Tensor) -> Tensor | None:
        """The teacher's logits [N, K] on clean images, if there is one."""
        if self.supernet.teacher == "none":
            return None
        if self.teacher is not None:
            return self.teacher(x).logits
        return self.net.subnet(self.net.full.spec, attacked=True)(x).float()

    def own_loss(self, spec: Spec, batch: Batch, x_adv: Tensor) -> Tensor:
        """The recipe's loss of a sub-net that nobody teaches."""
        train, live = self.recipe.train, self.net.subnet(spec)
        logits_adv = live(x_adv).float()
        if train.method == "trades":
            logits = live(batch.x).float()
            smooth = {"beta": train.beta, "label_smoothing": train.label_smoothing}
            return losses.trades(logits, logits_adv, batch.y, **smooth)
        return losses.pgd_at(logits_adv, batch.y, label_smoothing=train.label_smoothing)

    def taught_loss(self, spec: Spec, batch: Batch, x_adv: Tensor, soft: Tensor | None) -> Tensor:
        """The loss of a sub-net that learns soft labels ``soft`` [N, K]; without any, the recipe's own."""
        settings = self.supernet
        if soft is None:
            return self.own_loss(spec, batch, x_adv)
        live = self.net.subnet(spec)
        if settings.loss == "rslad":
            return losses.rslad(live(batch.x), live(x_adv), soft)
        logits_adv = live(x_adv).float()
        hard = losses.pgd_at(logits_adv, batch.y, label_smoothing=self.recipe.train.label_smoothing)
        return (1 - settings.soft) * hard + settings.soft * losses.taught(logits_adv, soft)

    # -- judging -----------------------------------------------------------------------------------------------

    @property
    def judges(self) -> dict[str, Spec]:
        """The sub-nets by which a run is judged, of those that it trains by its end: the smallest, the one in the
        middle of all choices, the largest; where it trains the largest alone, that one."""
        space, settings, judges = self.space, self.supernet, {"largest": self.space.largest}
        if settings.smallest or settings.random:
            low = least(space, settings, 1.0)
            judges = {"smallest": low, "middle": (low + space.largest + 1) // 2, **judges}
        return {name: space.spec(space.canonical(genes)[0]) for name, genes in judges.items()}

    def averaged(self) -> nn.Module:
        """The averaged dynamic net: its sub-nets have statistics only once they are frozen."""
        return self.ema.module

    def guarded_accuracy(self, net: nn.Module) -> tuple[float, float]:
        """Clean and PGD accuracy of the middle sub-net; of the averaged net, the mean over all that judge it."""
        assert isinstance(net, Elastic)
        judges = self.judges
        if net is self.net:
            central = "middle" if "middle" in judges else "largest"
            judges = {central: judges[central]}
        for name, spec in judges.items():
            frozen = net.freeze(spec, self.samples(self.recipe.ema.recalibrate))
            clean, pgd = super().guarded_accuracy(frozen)
            self.judged[name] = {"clean": clean, "pgd": pgd}
        told = [self.judged[name] for name in judges]
        return sum(one["clean"] for one in told) / len(told), sum(one["pgd"] for one in told) / len(told)

    def metrics(self) -> dict[str, Any]:
        """Clean and PGD accuracy of the averaged sub-nets by which the run is judged."""
        return {f"{name}_{key}": value for name, one in self.judged.items() for key, value in one.items()}

    def weights(self) -> dict[str, Tensor]:
        return self.ema.module.released(self.samples(self.recipe.ema.recalibrate))
