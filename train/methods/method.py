"""What a training method is: its settings, an inner maximisation, a loss, and what it needs of a teacher."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from zoo.attacks.ball import Ball
from zoo.evaluation.threat import LINF_8, Norm, ThreatModel
from zoo.train.methods import adversary
from zoo.train.methods.adversary import Objective
from zoo.train.teachers.teacher import Answer, Teacher


class Section(BaseModel):
    """A section of a recipe: no key of it is ever ignored."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Attack(Section):
    """The threat model that is trained for, and the inner maximisation. For N-FGSM ``step`` is its step size."""

    norm: Norm = "linf"
    eps: float = Field(LINF_8.eps, gt=0)
    step: float = Field(LINF_8.eps / 4, gt=0)
    steps: int = Field(1, ge=1)
    objective: Literal["ce", "kl"] = Field(
        "ce", description="what PGD ascends: cross-entropy, or KL(p(x) || p(x')) as TRADES has it"
    )

    @model_validator(mode="after")
    def _on_the_scale_of_its_norm(self) -> Attack:
        if self.norm == "l2" and "eps" not in self.model_fields_set:
            raise ValueError("the default eps is for norm = 'linf': set it for norm = 'l2'")
        return self

    @property
    def threat(self) -> ThreatModel:
        return ThreatModel(norm=self.norm, eps=self.eps)

    def ball(self, x: Tensor) -> Ball:
        return Ball(x, self.eps, self.norm)


class Batch(NamedTuple):
    """Images x [N, C, H, W] in [0, 1], labels y [N], start noise [N, C, H, W] uniform in [-1, 1] for the attack; and
    the rows [N] of the images among the augmented versions that are kept, where the teacher's answers are cached."""

    x: Tensor
    y: Tensor
    noise: Tensor
    rows: Tensor | None


class Needs(NamedTuple):
    """What a method asks a teacher for: its logits always, and its attention maps, interpolated to ``maps`` x ``maps``.

    Answers on clean images can be cached. A method that asks on ``adversarial`` images calls ``step.teacher`` itself.
    """

    maps: int | None = None
    adversarial: bool = False


@dataclass(frozen=True)
class Step:
    """One batch, and the net that learns from it.

    Args:
        net: the net that is attacked.
        forward: ``net`` as it is trained: itself, or its data-parallel wrapper.
        parts: modules of the method's own, from :meth:`Method.parts`.
        teacher: images to the teacher's answer, without gradients; ``answer``: its answer on the clean images.
    """

    net: nn.Module
    forward: Callable[[Tensor], Tensor]
    batch: Batch
    attack: Attack
    parts: nn.Module | None = None
    teacher: Callable[[Tensor], Answer] | None = None
    answer: Answer | None = None

    @property
    def soft(self) -> Tensor:
        """The teacher's logits [N, K] on the clean images."""
        assert self.answer is not None
        return self.answer.logits


class Method(Section):
    """A training method, which is also the ``[method]`` section of a recipe.

    A new one is a subclass in a file of its own, with ``name`` and its settings as fields and a line in
    ``zoo.train.methods.METHODS``. It must define :meth:`loss`; everything else has a default.
    """

    name: str
    takes_teacher: ClassVar[bool] = False

    @classmethod
    def trains_subnets(cls) -> bool:
        """Whether it can train the sub-nets of a dynamic net, which are all attacked and scored once a step."""
        return all(getattr(cls, key) is getattr(Method, key) for key in ("attacks", "parts", "updates", "replays"))

    @property
    def attacks(self) -> bool:
        """Whether it trains on adversarial images."""
        return True

    @property
    def forwards(self) -> int:
        """Forward passes of the net that the loss takes: one on adversarial images, two if on clean ones as well."""
        return 1

    @property
    def needs(self) -> Needs | None:
        """What it asks a teacher for, with these settings."""
        return None

    @property
    def replays(self) -> int:
        """Updates from one batch; a run of E epochs sees each image E / replays times (Shafahi et al. 2019)."""
        return 1

    def check(self, attack: Attack) -> None:
        """Refuse settings of the attack that the method does not use.

        Raises:
            ValueError: with the sentence that the user reads.
        """
        unused = sorted({"step", "steps", "objective"} & attack.model_fields_set)
        if not self.attacks and unused:
            raise ValueError(f"method '{self.name}' trains on clean images: take attack.{unused[0]} out")

    def parts(self, net: nn.Module, teacher: Teacher | None, *, compile: bool, seed: int) -> nn.Module | None:
        """What the method keeps beside the net, on the net's device. Its parameters are trained and stored in
        checkpoints; they are not averaged and not in the model that is left."""
        return None

    def facts(self, parts: nn.Module | None) -> dict[str, Any]:
        """What a model's config.json says of ``parts``, as fields of ``zoo.weights.folder.ModelConfig``."""
        return {}

    def objective(self, step: Step) -> Objective:
        """What the inner maximisation ascends: what ``attack.objective`` says."""
        if step.attack.objective == "ce":
            return adversary.cross_entropy(step.batch.y)
        with adversary.frozen(step.net), torch.no_grad():
            return adversary.divergence(F.log_softmax(step.net(step.batch.x).float(), 1))

    def attacked(self, step: Step) -> Tensor:
        """The images x' [N, C, H, W] that the loss is computed on: by PGD from a random start of the ball."""
        if not self.attacks:
            return step.batch.x
        attack, ball = step.attack, step.attack.ball(step.batch.x)
        start = adversary.random_start(ball, step.batch.noise)
        return adversary.pgd(step.net, ball, start, self.objective(step), step=attack.step, steps=attack.steps)

    def loss(self, step: Step, x_adv: Tensor) -> Tensor:
        """The loss, a mean over the batch, with the images of :meth:`attacked`."""
        raise NotImplementedError

    def updates(self, step: Step) -> Iterator[Tensor]:
        """A loss for each update of the weights from one batch; the weights have moved, and the gradients of whatever
        else requires them are at hand, when the next is asked for."""
        yield self.loss(step, self.attacked(step))

    def attack_passes(self, attack: Attack) -> int:
        """Passes over the net to attack an image: a forward pass and one to the image for each step."""
        return 2 * attack.steps if self.attacks else 0

    def passes(self, attack: Attack) -> int:
        """Passes over the net for an image of a batch: a forward counts one, a backward two, one to the image one.

        The clean pass of the ``kl`` objective is left out. Of a search, whose Gumbel logits see a fifth of the
        images, this is a little too much.
        """
        return 3 * self.forwards + self.attack_passes(attack)
