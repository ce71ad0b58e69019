"""The interface of a training method: settings, inner maximisation, loss and the need of a teacher."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from zoo.attacks.ball import Ball
from zoo.evaluation.threat import LINF_8, Norm, ThreatModel
from zoo.train.data.images import InMemory, Streamed
from zoo.train.methods import adversary
from zoo.train.methods.adversary import Objective
from zoo.train.teachers.teacher import Answer, Teacher

Temperature = Annotated[float, Field(ge=0.01, le=1000)]  # that logits are divided by, before their softmax


class Section(BaseModel):
    """A section of a recipe; unknown keys, and numbers that are infinite or not a number, are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Attack(Section):
    """The threat model of a training and its inner maximisation. ``step`` is a quarter of eps by default, which is for
    several steps; a recipe with one must state it."""

    norm: Norm = "linf"
    eps: float = Field(LINF_8.eps, gt=0)
    step: float = Field(default_factory=lambda given: given.get("eps", LINF_8.eps) / 4, gt=0)
    steps: int = Field(1, ge=1)
    objective: Literal["ce", "kl"] = Field(
        "ce", description="what PGD maximises: cross-entropy, or KL(p(x) || p(x')) as in TRADES"
    )

    @model_validator(mode="after")
    def _on_the_scale_of_its_norm(self) -> Attack:
        if self.norm == "l2" and "eps" not in self.model_fields_set:
            raise ValueError("the default eps is for norm = 'linf': set it for norm = 'l2'")
        for name, size in (("eps", self.eps), ("step", self.step)):
            if self.norm == "linf" and size > 1:
                raise ValueError(f"attack.{name} is on the scale of pixels in [0, 1], such as 0.0314 for 8/255")
        return self

    @property
    def threat(self) -> ThreatModel:
        return ThreatModel(norm=self.norm, eps=self.eps)

    def ball(self, x: Tensor) -> Ball:
        return Ball(x, self.eps, self.norm)


class Batch(NamedTuple):
    """Images x [N, C, H, W] in [0, 1], labels y [N], and noise [N, C, H, W], uniform in [-1, 1], to start the attack.
    With cached answers, ``rows`` [N] are the rows of the images in the cache."""

    x: Tensor
    y: Tensor
    noise: Tensor
    rows: Tensor | None


class Needs(NamedTuple):
    """What a method needs from a teacher: logits, attention maps at ``maps`` x ``maps`` if that is set, and penultimate
    features.

    If ``clean``, the answer on clean images is in ``step.answer``; answers without features can be cached. Otherwise
    the method asks ``step.teacher`` itself.
    """

    maps: int | None = None
    features: bool = False
    clean: bool = True


@dataclass(frozen=True)
class Step:
    """One batch, and the net that learns from it.

    Args:
        net: the net to attack.
        forward: the net to train: ``net`` or its data-parallel wrapper.
        parts: the method's modules, from :meth:`Method.parts`.
        teacher: the frozen teacher; ``answer`` is its answer on the clean images.
        hooked: the module whose layers a pass of ``forward`` runs, for hooks, where that is not ``net``.
    """

    net: nn.Module
    forward: Callable[[Tensor], Tensor]
    batch: Batch
    attack: Attack
    parts: nn.Module | None = None
    teacher: Teacher | None = None
    answer: Answer | None = None
    hooked: nn.Module | None = None

    @property
    def soft(self) -> Tensor:
        """The teacher's logits [N, K] on the clean images."""
        assert self.answer is not None
        return self.answer.logits


class Method(Section):
    """A training method, which is also the ``[method]`` section of a recipe.

    To add a method, write a subclass in a new file, with ``name`` and its settings as fields, and add a line to
    ``zoo.train.methods.TABLE``. It must define :meth:`loss`; everything else has a default.
    """

    name: str
    takes_teacher: ClassVar[bool] = False

    @classmethod
    def trains_subnets(cls) -> bool:
        """Whether it can train sub-nets of a dynamic net: modules of its own would fit one of them only."""
        return cls.parts is Method.parts and cls.updates is Method.updates

    @property
    def attacks(self) -> bool:
        """Whether the method trains on adversarial images."""
        return True

    @property
    def forwards(self) -> int:
        """Forward passes of the net in the loss: one, or two for a loss on clean and adversarial images."""
        return 1

    @property
    def needs(self) -> Needs | None:
        """What the method needs from a teacher with these settings: by default, if it takes one, its logits."""
        return Needs() if self.takes_teacher else None

    @property
    def replays(self) -> int:
        """Updates from one batch; a run of E epochs uses each image E / replays times (Shafahi et al. 2019)."""
        return 1

    def check(self, attack: Attack) -> None:
        """Raise a ValueError for settings of the attack that the method does not use."""
        unused = sorted({"step", "steps", "objective"} & attack.model_fields_set)
        if not self.attacks and unused:
            raise ValueError(
                f"method '{self.name}' trains on clean images: remove attack.{unused[0]} (--set attack={{}} does)"
            )
        if type(self).objective is not Method.objective and "objective" in unused and attack.objective == "ce":
            raise ValueError(f"{self.name} has an inner maximisation of its own: remove attack.objective = 'ce'")

    def images(self, source: InMemory | Streamed, teacher: Teacher | None) -> InMemory | Streamed:
        """The images to train on, in place of those of the data set. It may take long, and should be cached."""
        return source

    def parts(
        self, net: nn.Module, teacher: Teacher | None, *, compile: bool, seed: int, dynamic: bool = False
    ) -> nn.Module | None:
        """Modules of the method beside the net, on its device. They are trained and stored in checkpoints, but not
        averaged and not part of the resulting model. If ``dynamic``, sub-nets of ``net`` are trained, which are
        narrower."""
        return None

    def facts(self, parts: nn.Module | None) -> dict[str, Any]:
        """The fields of ``zoo.weights.folder.ModelConfig`` that describe ``parts``."""
        return {}

    def objective(self, step: Step) -> Objective:
        """What the inner maximisation maximises; by default ``attack.objective``."""
        if step.attack.objective == "ce":
            return adversary.cross_entropy(step.batch.y)
        with adversary.frozen(step.net), torch.no_grad():
            return adversary.divergence(step.net(step.batch.x))

    def attacked(self, step: Step) -> Tensor:
        """The images x' [N, C, H, W] for the loss, by PGD from a start drawn uniformly from the ball. All methods with
        such an attack have this start; that of TRADES' and RSLAD's papers is x + 0.001 N(0, I)."""
        if not self.attacks:
            return step.batch.x
        attack, ball = step.attack, step.attack.ball(step.batch.x)
        start = adversary.random_start(ball, step.batch.noise)
        return adversary.pgd(step.net, ball, start, self.objective(step), step=attack.step, steps=attack.steps)

    def loss(self, step: Step, x_adv: Tensor) -> Tensor:
        """The loss on the images ``x_adv`` of :meth:`attacked`, a mean over the batch."""
        raise NotImplementedError

    def updates(self, step: Step) -> Iterator[Tensor]:
        """A loss for each update of the weights from one batch. After each loss the caller runs the backward pass and
        updates the weights."""
        yield self.loss(step, self.attacked(step))

    def attack_passes(self, attack: Attack) -> int:
        """Passes over the net to attack an image: a forward pass and a backward pass to the image for each step."""
        return 2 * attack.steps if self.attacks else 0

    def passes(self, attack: Attack) -> int:
        """Passes over the net for an image: a forward pass counts 1, a backward pass 2, or 1 to the image alone.

        The clean pass of the ``kl`` objective is not counted. For a search, whose Gumbel logits learn from a fifth of
        the images, the count is slightly too high.
        """
        return 3 * self.forwards + self.attack_passes(attack)

    def teacher_passes(self, attack: Attack) -> float:
        """Passes over the teacher for an image in an update, counted alike: by default one forward pass of each clean
        image, for all its replays."""
        return 1 / self.replays if self.needs and self.needs.clean else 0
