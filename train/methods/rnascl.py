"""RNAS-CL's cross-layer distillation from a robust teacher: Nath et al. 2023, eq. 3."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from zoo.system.errors import UsageError
from zoo.train.methods.losses import kl
from zoo.train.methods.method import Attack, Method, Needs, Step
from zoo.train.methods.trades import trades
from zoo.train.teachers.attention import tutored_loss, unit_maps
from zoo.train.teachers.hooks import Taps
from zoo.train.teachers.teacher import Teacher

SEARCHED = "searched"


class RnasCL(Method):
    """hard + kl * KL(S(x) || T(x)) + gamma * L_attn, all on clean images: eq. 3.

    The divergence is the reverse of Hinton's (section 3.4): the student must not be sure where the teacher is not. The
    loss of the hard labels is the cross-entropy, or that of TRADES.
    """

    name: Literal["rnascl"] = "rnascl"
    hard: Literal["natural", "trades"] = Field("natural", description="the loss of the hard labels")
    beta: float = Field(6.0, ge=0, description="weight of the divergence of TRADES")
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    kl: float = Field(1.0, ge=0)
    gamma: float = Field(1.0, ge=0, description="gamma_s and gamma_t of the paper; 0: no attention loss, no tutors")
    map_size: int = Field(16, ge=1, description="attention maps are interpolated to this height and width")
    tutors: Literal["searched", "depth", "random"] | dict[str, str] = Field(
        "depth",
        description="the teacher's convolution for each of the student's: from the search before, at the same relative "
        "depth, at random, or by name",
    )
    takes_teacher: ClassVar[bool] = True

    @property
    def attacks(self) -> bool:
        return self.hard == "trades"

    @property
    def forwards(self) -> int:
        return 2 if self.attacks else 1

    @property
    def needs(self) -> Needs | None:
        if not self.kl and not self.gamma:
            return None
        return Needs(maps=self.map_size if self.gamma else None)

    def check(self, attack: Attack) -> None:
        super().check(attack)
        if not self.attacks and "beta" in self.model_fields_set:
            raise ValueError("method.beta weighs the divergence of TRADES: set method.hard = 'trades', or remove it")

    def parts(
        self, net: nn.Module, teacher: Teacher | None, *, compile: bool, seed: int, dynamic: bool = False
    ) -> nn.Module | None:
        return CrossLayer(self, net, teacher, compile=compile, seed=seed) if teacher else None

    def facts(self, parts: nn.Module | None) -> dict[str, Any]:
        return {"tutors": parts.tutors} if isinstance(parts, CrossLayer) else {}

    def loss(self, step: Step, x_adv: Tensor) -> Tensor:
        logits_adv = step.forward(x_adv).float() if self.attacks else None
        if not isinstance(step.parts, CrossLayer):
            return self._hard(step.forward(step.batch.x).float(), logits_adv, step.batch.y)
        logits = step.parts.forward(step).float()
        return self._hard(logits, logits_adv, step.batch.y) + step.parts.distilled(logits, step)

    def _hard(self, logits: Tensor, logits_adv: Tensor | None, y: Tensor) -> Tensor:
        if logits_adv is None:
            return F.cross_entropy(logits, y, label_smoothing=self.label_smoothing)
        return trades(logits, logits_adv, y, beta=self.beta, label_smoothing=self.label_smoothing)


class CrossLayer(nn.Module):
    """Taps on student and teacher, and the terms of eq. 3 that come from the teacher.

    Raises:
        UsageError: the tutors do not name one convolution of the teacher for each convolution of the student.
    """

    def __init__(self, method: RnasCL, net: nn.Module, teacher: Teacher, *, compile: bool, seed: int) -> None:
        super().__init__()
        self.method, self.n_t = method, len(teacher.layers)
        self.taps: Taps | None = None
        self.tutors: dict[str, str] = {}
        if method.gamma:
            self.taps, layers = Taps(net), teacher.layers
            self.tutors = choose_tutors(method.tutors, self.taps.names, layers, seed)
            used = [layer for layer in layers if layer in self.tutors.values()]
            unknown = set(self.tutors.values()) - set(used)
            teacher.tap([*used, *unknown])  # refuses unknown layers
            place = [used.index(tutor) for tutor in self.tutors.values()]
            self.place = torch.tensor(place, device=next(net.parameters()).device)
        self._terms = torch.compile(self._eager, dynamic=False) if compile else self._eager

    def forward(self, step: Step) -> Tensor:
        """Logits [N, K] on the clean images, with recorded attention maps."""
        if self.taps is None:
            return step.forward(step.batch.x)
        with self.taps.recording():
            return step.forward(step.batch.x)

    def distilled(self, logits: Tensor, step: Step) -> Tensor:
        """kl * KL(S(x) || T(x)) + gamma * L_attn from the logits and the maps of the last :meth:`forward`."""
        assert step.answer is not None
        return self._terms(logits, self.taps.maps() if self.taps else [], step.answer.logits, step.answer.maps)

    def _eager(self, logits: Tensor, maps: Sequence[Tensor], soft: Tensor, tutors: Tensor | None) -> Tensor:
        loss = self.method.kl * kl(logits, soft)
        if tutors is not None:
            student = unit_maps(maps, self.method.map_size)
            loss = loss + self.method.gamma * tutored_loss(student, tutors[:, self.place], self.n_t)
        return loss


def choose_tutors(
    tutors: str | Mapping[str, str], student: Sequence[str], teacher: Sequence[str], seed: int
) -> dict[str, str]:
    """A tutor from the teacher's layers for each layer of the student, in the order of ``student``.

    ``depth`` takes the layer at the same relative depth and ``random`` draws one; a mapping must name all.
    """
    if tutors == SEARCHED:
        raise UsageError("method.tutors = 'searched' needs a search before it: choose depth or random, or name them")
    if tutors == "depth":
        last = max(1, len(student) - 1)
        return {layer: teacher[round(i * (len(teacher) - 1) / last)] for i, layer in enumerate(student)}
    if tutors == "random":
        drawn = torch.randint(len(teacher), (len(student),), generator=torch.Generator().manual_seed(seed))
        return {layer: teacher[j] for layer, j in zip(student, drawn.tolist(), strict=True)}
    assert not isinstance(tutors, str)
    missing = [layer for layer in student if layer not in tutors]
    if missing or len(tutors) != len(student):
        wrong = f"no tutor for '{missing[0]}'" if missing else "tutors for layers that the student does not have"
        raise UsageError(f"method.tutors has {wrong}: name one teacher convolution for each of the student's")
    return {layer: tutors[layer] for layer in student}
