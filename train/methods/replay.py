"""Free adversarial training: several updates from one batch, whose backward passes also update the perturbation
(Shafahi et al. 2019, arXiv:1904.12843, Algorithm 1)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import gather
from pydantic import Field
from torch import Tensor, nn

from zoo.attacks.ball import steepest
from zoo.train.methods.method import Attack, Method, Step
from zoo.train.teachers.teacher import Teacher


class Perturbation(nn.Module):
    """The perturbation of this process's share of the last batch [B, C, H, W], from which the next batch starts; zero
    at first. Its state is that of the whole batch, so all processes must ask for it together."""

    delta: Tensor | None = None

    def get_extra_state(self) -> dict[str, Any]:
        if self.delta is None:
            return {"delta": None}
        shares = gather(self.delta).unflatten(0, (PartialState().num_processes, -1))
        return {"delta": shares.transpose(0, 1).flatten(0, 1)}  # shares are interleaved: Trainer.batch

    def set_extra_state(self, state: dict[str, Any]) -> None:
        whole, processes = state["delta"], PartialState()
        self.delta = None if whole is None else whole[processes.process_index :: processes.num_processes]

    def of(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x) if self.delta is None else self.delta.to(x)


class Replayed(Method):
    """A method that replays each batch ``m`` times.

    One backward pass gives the gradients of weights and perturbation. So both have the same loss, the weights descend
    it and the perturbation climbs it, by ``attack.step``. ``train.epochs`` counts replays: an image is drawn epochs / m
    times, and a run costs as much as natural training of as many epochs.
    """

    m: int = Field(4, ge=1, description="replays of each batch")

    @classmethod
    def trains_subnets(cls) -> bool:
        return True  # all share one perturbation

    @property
    def replays(self) -> int:
        return self.m

    def check(self, attack: Attack) -> None:
        if attack.steps != 1:
            raise ValueError(f"{self.name} takes one attack step in each replay: leave attack.steps at 1, and set m")
        if attack.objective != "ce":
            raise ValueError(f"{self.name} climbs its own loss: leave attack.objective at 'ce'")

    def attack_passes(self, attack: Attack) -> int:
        return 0

    def parts(
        self, net: nn.Module, teacher: Teacher | None, *, compile: bool, seed: int, dynamic: bool = False
    ) -> nn.Module:
        return Perturbation()

    def updates(self, step: Step) -> Iterator[Tensor]:
        return self.replayed(step, lambda x_adv: self.loss(step, x_adv))

    def replayed(self, step: Step, loss: Callable[[Tensor], Tensor]) -> Iterator[Tensor]:
        """:meth:`updates` with the given ``loss`` of the images x + delta."""
        assert isinstance(step.parts, Perturbation)
        x, attack, ball = step.batch.x, step.attack, step.attack.ball(step.batch.x)
        x_adv = ball.project(x + step.parts.of(x))
        for _ in range(self.m):
            x_adv = x_adv.detach().requires_grad_()
            yield loss(x_adv)
            assert x_adv.grad is not None
            gradient = x_adv.grad.nan_to_num_(0, 0, 0)
            x_adv = ball.project(x_adv.detach() + attack.step * steepest(gradient, attack.norm))
        step.parts.delta = (x_adv - x).detach()
