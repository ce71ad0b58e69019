"""Training of a dynamic net: several sub-nets a step, on shared weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from zoo.specs import Spec
from zoo.train.methods import adversary
from zoo.train.methods.method import Batch, Method, Step
from zoo.train.methods.replay import Replayed
from zoo.train.proard.elastic import Elastic
from zoo.train.proard.sampling import drawn, least
from zoo.train.proard.sort import sort_hidden
from zoo.train.recipes.schema import Supernet
from zoo.train.run.trainer import Trainer
from zoo.train.spaces import space_called
from zoo.train.teachers.teacher import Answer
from zoo.weights.load import find


class SupernetTrainer(Trainer):
    """A run that trains a dynamic net.

    All sub-nets learn by the recipe's method, from a frozen teacher if it needs one. If the largest sub-net is the
    teacher, it learns by ``supernet.own``. The gradient of a step is the sum over its sub-nets: a mean learns slower.
    """

    net: Elastic
    steady = False
    fused = False  # fused SGD needs gradients of all parameters or none, and a step may use only some blocks

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.space = self.net.space
        self.judged: dict[str, dict[str, float]] = {}

    @property
    def supernet(self) -> Supernet:
        assert self.recipe.supernet is not None
        return self.recipe.supernet

    @property
    def in_place(self) -> bool:
        """Whether the current largest sub-net is the teacher."""
        return self.recipe.teacher is not None and self.recipe.teacher.name == "largest"

    @property
    def teacher_name(self) -> str | None:
        return None if self.in_place else self.earlier_model or super().teacher_name

    def network(self) -> nn.Module:
        return Elastic(space_called(self.supernet.space))

    def begin(self, net: nn.Module, start: str) -> None:
        assert isinstance(net, Elastic)
        net.load_released(find(start, folders=True).tensors())
        if self.supernet.sort:
            sort_hidden(net)

    @property
    def hooked(self) -> nn.Module:
        return self.net.full

    def parallel(self, net: nn.Module) -> nn.Module:
        return net  # train_step reduces the gradients once, after several backward passes

    # -- a step ------------------------------------------------------------------------------------------------

    def drawn(self, step: int) -> list[Spec]:
        """The sub-nets of a step without the largest."""
        key = step if self.supernet.redraw == "step" else step // self.steps_per_epoch
        rng = np.random.default_rng((self.recipe.train.seed, self.position.attempt, key))
        progress = self.progress(self.position.seconds)
        return [self.space.spec(row) for row in drawn(self.space, self.supernet, progress, rng)]

    def subnet_step(self, spec: Spec, batch: Batch, answer: Answer | None) -> Step:
        """``batch`` and the sub-net ``spec``, which is attacked with its batch statistics."""
        live, attacked = self.net.subnet(spec), self.net.subnet(spec, attacked=True)
        return Step(attacked, live, batch, self.recipe.attack, self.parts, self.teacher, answer, live.layers)

    def refined(self, method: Method, step: Step, shared: Tensor | None) -> Tensor:
        """The adversarial images of a sub-net: from an attack on it, or shared ones after ``refine`` PGD steps."""
        if shared is None:
            return method.attacked(step)
        if not self.supernet.refine:
            return shared
        ball = step.attack.ball(step.batch.x)
        how = {"step": step.attack.step, "steps": self.supernet.refine}
        return adversary.pgd(step.net, ball, ball.project(shared), method.objective(step), **how)

    def train_step(self) -> Tensor:
        """Update the shared weights once, or once in each replay. The mean loss of the sub-nets is returned without a
        synchronisation."""
        settings, method, now = self.supernet, self.recipe.method, self.position.step
        batch, others, full = self.batch(now), self.drawn(now), self.net.full.spec
        total = torch.zeros((), device=self.device)
        with self.autocast():
            answer = self.answer(batch.x) if others or self.teacher else None
            learners = [(method, spec, answer) for spec in others]
            if int((now + 1) * settings.largest) > int(now * settings.largest):
                learners.insert(0, (settings.own or method, full, None if self.in_place else answer))
            if isinstance(method, Replayed):
                return self.replay(method, learners, batch) / len(learners)
            shared = None
            if settings.attacker != "each":
                attacker = full if settings.attacker == "largest" else others[-1]
                attacking = method if others else learners[0][0]
                shared = attacking.attacked(self.subnet_step(attacker, batch, answer))
            for learning, spec, soft in learners:
                step = self.subnet_step(spec, batch, soft)
                loss = learning.loss(step, self.refined(learning, step, shared))
                self.accelerator.backward(loss)
                total += loss.detach()
        self.reduce_gradients(self.net)
        if self.parts:
            self.reduce_gradients(self.parts)
        self.update()
        self.position.step += 1
        return total / len(learners)

    def replay(self, method: Replayed, learners: list[tuple[Method, Spec, Answer | None]], batch: Batch) -> Tensor:
        """Update the shared weights in each replay of ``batch``. All sub-nets learn on the same images, which climb the
        sum of their losses. The last sum is returned."""

        def together(x_adv: Tensor) -> Tensor:
            losses = [one.loss(self.subnet_step(spec, batch, soft), x_adv) for one, spec, soft in learners]
            return torch.stack(losses).sum()

        last = torch.zeros((), device=self.device)
        for loss in method.replayed(self.subnet_step(self.net.full.spec, batch, None), together):
            self.accelerator.backward(loss)
            self.reduce_gradients(self.net)
            self.update()
            last = loss.detach()
        self.position.step += 1
        return last

    @torch.no_grad()
    def answer(self, x: Tensor) -> Answer | None:
        """The teacher's answer on clean images, if there is one."""
        if self.in_place:
            return Answer(self.net.subnet(self.net.full.spec, attacked=True)(x).float(), None)
        needs = self.recipe.method.needs
        return self.teacher(x) if self.teacher and needs and needs.clean else None

    # -- judging -----------------------------------------------------------------------------------------------

    @property
    def judges(self) -> dict[str, Spec]:
        """The sub-nets that the guard evaluates: the smallest that the run trains, the middle one and the largest; only
        the largest if the run trains no other."""
        space, settings, judges = self.space, self.supernet, {"largest": self.space.largest}
        if settings.smallest or settings.random:
            low = least(space, settings, 1.0)
            judges = {"smallest": low, "middle": (low + space.largest + 1) // 2, **judges}
        return {name: space.spec(space.canonical(genes)[0]) for name, genes in judges.items()}

    def averaged(self) -> nn.Module:
        """The averaged dynamic net, without statistics: each sub-net gets them when it is frozen."""
        return self.ema.module

    def guarded_accuracy(self, net: nn.Module) -> tuple[float, float]:
        """Clean and PGD accuracy of the middle sub-net, or for the averaged net the mean over :attr:`judges`."""
        assert isinstance(net, Elastic)
        judges = self.judges
        if net is self.net:
            central = "middle" if "middle" in judges else "largest"
            judges = {central: judges[central]}
        for name, spec in judges.items():
            frozen = net.freeze(spec, self.batches.samples(self.recipe.ema.recalibrate))
            clean, pgd = super().guarded_accuracy(frozen)
            self.judged[name] = {"clean": clean, "pgd": pgd}
        clean, pgd = (sum(self.judged[name][key] for name in judges) / len(judges) for key in ("clean", "pgd"))
        return clean, pgd

    def metrics(self) -> dict[str, Any]:
        """Clean and PGD accuracy of the averaged sub-nets in :attr:`judges`."""
        return {f"{name}_{key}": value for name, both in self.judged.items() for key, value in both.items()}

    def weights(self) -> dict[str, Tensor]:
        return self.ema.module.released(self.batches.samples(self.recipe.ema.recalibrate))
