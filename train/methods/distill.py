"""Distillation from a teacher: what RNAS-CL's train loss (eq. 3) adds to a student's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from zoo.system.errors import UsageError
from zoo.train.methods.losses import distilled
from zoo.train.recipes.schema import SEARCHED, Distill
from zoo.train.teachers.attention import tutored_loss, unit_maps
from zoo.train.teachers.hooks import Taps
from zoo.train.teachers.teacher import Lesson, Teacher


class Distiller:
    """A teacher, and taps on the student: adds ``kl * KL(p, q) + gamma * L_attn`` to a loss on clean images.

    Args:
        settings: the recipe's.
        net: the student; its convolutions get taps where there is an attention loss.
        teacher: asked by the caller; here its layers get taps.
        seed: for tutors drawn at random.

    Raises:
        UsageError: the tutors do not name one convolution of the teacher for every one of the student.
    """

    def __init__(
        self, settings: Distill, net: nn.Module, teacher: Teacher, *, compile: bool = False, seed: int = 0
    ) -> None:
        self.settings = settings
        self.teacher = teacher
        self.taps: Taps | None = None
        self.tutors: dict[str, str] = {}
        if settings.gamma:
            self.taps, layers = Taps(net), teacher.layers
            self.tutors = choose_tutors(settings.tutors, self.taps.names, layers, seed)
            wanted = [layer for layer in layers if layer in self.tutors.values()]
            unknown = set(self.tutors.values()) - set(wanted)
            teacher.tap([*wanted, *unknown])  # which refuses the unknown
            place = [wanted.index(tutor) for tutor in self.tutors.values()]
            self.place = torch.tensor(place, device=next(net.parameters()).device)
        self._added = torch.compile(self._eager, dynamic=False) if compile else self._eager

    def forward(self, forward: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """Logits [N, K] of ``forward(x)``, the taps listening."""
        if self.taps is None:
            return forward(x)
        with self.taps.recording():
            return forward(x)

    def added(self, logits: Tensor, lesson: Lesson) -> Tensor:
        """What is added to the loss, from the logits of the last :meth:`forward` and the teacher's lesson."""
        return self._added(logits, self.taps.maps() if self.taps else [], lesson.logits, lesson.maps)

    def _eager(self, logits: Tensor, maps: Sequence[Tensor], taught: Tensor, tutors: Tensor | None) -> Tensor:
        loss = self.settings.kl * distilled(logits, taught)
        if tutors is not None:
            student = unit_maps(maps, self.settings.map_size)
            loss = loss + self.settings.gamma * tutored_loss(student, tutors[:, self.place], len(self.teacher.layers))
        return loss


def choose_tutors(
    tutors: str | Mapping[str, str], student: Sequence[str], teacher: Sequence[str], seed: int
) -> dict[str, str]:
    """A tutor among the teacher's layers for every layer of the student, in the order of ``student``.

    ``depth`` takes the layer at the same relative depth, ``random`` draws one; a mapping must name each.
    """
    if tutors == SEARCHED:
        raise UsageError("distill.tutors = 'searched' needs a search before it: choose depth or random, or name them")
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
        raise UsageError(f"distill.tutors has {wrong}: name one teacher convolution for each of the student's")
    return {layer: tutors[layer] for layer in student}
