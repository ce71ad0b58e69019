"""The search phase of RNAS-CL: widths and tutors by Gumbel-softmax, in one run (section 3.4, eq. 2)."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.specs import StagedSpec, cost
from zoo.system.files import write_atomic
from zoo.train.methods.adversary import frozen
from zoo.train.methods.losses import kl
from zoo.train.methods.rnascl import RnasCL
from zoo.train.recipes.schema import Search
from zoo.train.rnascl.gumbel import gumbel_softmax, temperature
from zoo.train.rnascl.supernet import SuperNet, expected_macs, most_probable
from zoo.train.run.trainer import Trainer
from zoo.train.spaces.rnascl import search_space
from zoo.train.teachers.attention import attention_loss, unit_maps
from zoo.train.teachers.hooks import Taps
from zoo.train.teachers.teacher import Answer, Teacher

WEIGHTS, CHOICES = 0, 1  # what an update changes


class Searcher(Trainer):
    """A run of the search, which trains the supernet's weights and Gumbel logits of widths and tutors.

    Each step updates the weights on the larger part of its batch, then the logits on the rest, with the same loss.
    """

    net: SuperNet
    teacher: Teacher
    steady = False

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.space = self.net.space
        device, settings = self.device, self.search
        self.teacher.tap(self.teacher.layers)
        self.taps = Taps(self.net)
        sizes = [len(choices) for choices in self.space.blocks]
        self.ends = [0, *torch.tensor(sizes).cumsum(0).tolist()]
        # One vector for the widths of all blocks, and a row of tutors for each student layer.
        self.widths = torch.zeros(sum(sizes), device=device, requires_grad=True)
        self.tutors = torch.zeros(len(self.taps.names), len(self.teacher.layers), device=device, requires_grad=True)
        self.choices_optimizer = torch.optim.Adam([self.widths, self.tutors], lr=settings.lr)
        self._attention = (
            torch.compile(self._eager_attention, dynamic=False) if self.recipe.train.compile else self._eager_attention
        )

    @property
    def search(self) -> Search:
        assert self.recipe.search is not None
        return self.recipe.search

    @property
    def method(self) -> RnasCL:
        assert isinstance(self.recipe.method, RnasCL)
        return self.recipe.method

    def network(self) -> nn.Module:
        return SuperNet(search_space(self.search.space))

    def own_parts(self) -> nn.Module | None:
        return None  # the search has its own taps: all teacher layers teach all student layers

    # -- the loss ----------------------------------------------------------------------------------------------

    def blocks(self, v: Tensor) -> list[Tensor]:
        """Split a vector over the width choices of all blocks into blocks."""
        return [v[a:b] for a, b in pairwise(self.ends)]

    def sample(self, key: int) -> tuple[list[Tensor], Tensor]:
        """Gumbel weights g over the choices of each block, and over the tutors [n_s, n_t]."""
        tau = self.tau
        generator = self.batches.generator(self.position.attempt, 2, self.position.step, key)
        noise = self.search.noise
        g = [gumbel_softmax(v, tau, noise=noise, generator=generator) for v in self.blocks(self.widths)]
        return g, gumbel_softmax(self.tutors, tau, noise=noise, generator=generator)

    @property
    def tau(self) -> float:
        return temperature(min(1.0, self.progress(self.position.seconds)), *self.search.tau)

    def latency(self, g: list[Tensor]) -> Tensor:
        """n_f = max(E/B, B/E)^p for expected MACs E and budget B: dimensionless, with its minimum of 1 at E = B."""
        ratio = (expected_macs(self.space, g) / self.search.budget).log().abs()
        return (self.search.latency * ratio).exp()

    def loss(self, x: Tensor, y: Tensor, answer: Answer, key: int) -> Tensor:
        """(CE + kl KL(p, q) + gamma_s L_attn) n_f for new Gumbel weights: RNAS-CL, eq. 2."""
        method = self.method
        with torch.set_grad_enabled(key == CHOICES):
            g, tutors = self.sample(key)
        forward = self.forward if key == WEIGHTS else self.net  # a data-parallel wrapper reduces weights only
        masks = self.net.mask(g)
        _, *blocks = self.taps.names  # the stem has no mask
        with self.autocast(), self.taps.recording(dict(zip(blocks, masks.split(self.net.widest), strict=True))):
            logits = forward(x, masks).float()
        loss = F.cross_entropy(logits, y, label_smoothing=method.label_smoothing)
        loss = loss + method.kl * kl(logits, answer.logits)
        assert answer.maps is not None
        loss = loss + method.gamma * self._attention(self.taps.maps(), answer.maps, tutors)
        return loss * self.latency(g)

    def _eager_attention(self, maps: list[Tensor], teachers: Tensor, tutors: Tensor) -> Tensor:
        return attention_loss(unit_maps(maps, self.method.map_size), teachers, tutors)

    def train_step(self) -> Tensor:
        """Update the weights, then the Gumbel logits, with one answer of the teacher for both."""
        x, y, _, rows = self.batch(self.position.step)
        with self.autocast():
            answer = self.teacher(x, rows)
        cut = len(x) - max(1, round(self.search.share * len(x)))
        loss = self.loss(x[:cut], y[:cut], answer[slice(0, cut)], key=WEIGHTS)
        self.accelerator.backward(loss)
        self.optimizer.step()
        self.optimizer.zero_grad()

        with frozen(self.net, training=True):  # batch statistics: the running ones belong to other widths
            held_out = self.loss(x[cut:], y[cut:], answer[slice(cut, len(x))], key=CHOICES)
            gradients = torch.autograd.grad(held_out, (self.widths, self.tutors))
        for logits, gradient in zip((self.widths, self.tutors), gradients, strict=True):
            logits.grad = self.accelerator.reduce(gradient, "mean")
        self.choices_optimizer.step()
        self.ema.update_parameters(self.net)
        self.position.step += 1
        return loss.detach()

    # -- result ------------------------------------------------------------------------------------------------

    def chosen(self) -> list[int]:
        """The most probable widths within the budget, as an index of the choices of each block."""
        return most_probable(self.space, self.blocks(self.widths), self.search.budget)

    def found_tutors(self) -> dict[str, str]:
        """The most probable tutor of each student layer, by name."""
        layers = self.teacher.layers
        return {name: layers[j] for name, j in zip(self.taps.names, self.tutors.argmax(1).tolist(), strict=True)}

    def guarded_accuracy(self, net: nn.Module) -> tuple[float, float]:
        """Clean and PGD accuracy of the chosen sub-net, with shared weights."""
        assert isinstance(net, SuperNet)
        net.choose(self.chosen())
        return super().guarded_accuracy(net)

    def averaged(self) -> nn.Module:
        self.ema.module.choose(self.chosen())
        return super().averaged()

    @torch.no_grad()
    def metrics(self) -> dict[str, Any]:
        """Temperature, expected and chosen MACs, and the probabilities of all choices."""
        p = [v.softmax(0) for v in self.blocks(self.widths)]
        return {
            "tau": self.tau,
            "expected_macs": expected_macs(self.space, p).item(),
            "chosen_macs": cost(self.chosen_spec()).macs,
            "width_probabilities": [[round(one, 4) for one in block.tolist()] for block in p],
            "tutor_probabilities": [[round(one, 4) for one in row] for row in self.tutors.softmax(1).tolist()],
        }

    def chosen_spec(self) -> StagedSpec:
        """The architecture of the current choices."""
        return self.space.spec([known[k] for known, k in zip(self.space.blocks, self.chosen(), strict=True)])

    def result(self) -> dict[str, Any]:
        """The contents of ``search.json``: architecture, tutors, cost and history of the search."""
        spec = self.chosen_spec()
        macs, params = cost(spec)
        keys = ("epoch", "tau", "expected_macs", "chosen_macs", "width_probabilities", "tutor_probabilities")
        return {
            "space": self.space.name,
            "budget": self.search.budget,
            "spec": spec.to_dict(),
            "macs": macs,
            "params": params,
            "teacher": self.teacher_name,
            "teacher_layers": self.teacher.layers,
            "tutors": self.found_tutors(),
            "width_choices": [list(choices) for choices in self.space.blocks],
            "effort": self.effort(),
            "history": [{key: epoch[key] for key in keys} for epoch in self.position.history],
        }

    @classmethod
    def leaves(cls, out: Path) -> Path:
        return out / "search.json"

    def finish(self, out: Path) -> Path:
        """Write the result to ``out/search.json`` and return its path."""
        if self.accelerator.is_main_process:
            write_atomic(self.leaves(out), (json.dumps(self.result()) + "\n").encode())
        return self.leaves(out)

    # -- state -------------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        logits = {"widths": self.widths.detach(), "tutors": self.tutors.detach()}
        return {**super().state(), "logits": logits, "choices_optimizer": self.choices_optimizer.state_dict()}

    def restore(self, state: dict[str, Any]) -> None:
        super().restore(state)
        with torch.no_grad():
            self.widths.copy_(state["logits"]["widths"])
            self.tutors.copy_(state["logits"]["tutors"])
        self.choices_optimizer.load_state_dict(state["choices_optimizer"])
