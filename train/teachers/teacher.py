"""The teacher: a trained model in eval mode that answers on batches of images, without gradients."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from zoo.datasets.base import Dataset
from zoo.evaluation.protocols import PROTOCOLS, protocol
from zoo.registry.entry import Entry
from zoo.specs import Spec
from zoo.system.errors import UsageError
from zoo.system.files import stored_json
from zoo.system.notice import say_once
from zoo.train.teachers.attention import unit_maps
from zoo.train.teachers.features import Features
from zoo.train.teachers.hooks import Taps, conv_names
from zoo.weights.folder import ModelFolder
from zoo.weights.load import Found, find

if TYPE_CHECKING:
    from zoo.models import Classifier
    from zoo.train.teachers.cache import CachedAnswers

ROBUST = 0.1  # under PGD-20: with less, there is little to learn


@dataclass(frozen=True)
class Answer:
    """A teacher's answer on a batch: logits [N, K], unit attention maps [N, n_t, P] of its tapped layers, and features
    [N, C] of a watched one."""

    logits: Tensor
    maps: Tensor | None = None
    features: Tensor | None = None

    def __getitem__(self, rows: slice) -> Answer:
        maps, features = (None if part is None else part[rows] for part in (self.maps, self.features))
        return Answer(self.logits[rows], maps, features)


class Teacher:
    """A frozen model that answers on batches of images.

    Args:
        name: a registry name, ``hf-hub:...``, or the path of a model folder.
        size: height and width that attention maps are interpolated to.

    Raises:
        UnknownModel, Unreachable, IntegrityError: as :func:`zoo.weights.load.load`.
    """

    def __init__(self, name: str, device: torch.device, *, size: int = 16, compile: bool = False) -> None:
        # Not folded: folding rescales the channels that the taps record.
        found = find(name, folders=True)
        model = found.load().requires_grad_(False)
        self.name, self.classes = name, found.classes
        self.model: Classifier = model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.layers = conv_names(self.model)
        self.taps: Taps | None = None
        self.features: Features | None = None
        self.cached: CachedAnswers | None = None
        self.size = size
        self._answer = torch.compile(self._eager, dynamic=False) if compile else self._eager
        self._differentiable = torch.compile(self.model, dynamic=False) if compile else self.model

    def tap(self, layers: Sequence[str]) -> None:
        """Add the maps of these convolutions to all answers, in this order.

        Raises:
            UsageError: the teacher has no such convolution.
        """
        self.untap()
        self.taps = Taps(self.model, layers)

    def untap(self) -> None:
        """Answer without maps."""
        if self.taps is not None:
            self.taps.remove()
        self.taps = None

    def watch(self, layer: str | None) -> None:
        """Add the features of a layer to all answers: :class:`Features`.

        Raises:
            UsageError: the teacher has no such layer.
        """
        self.features = Features(self.model, layer, whose="teacher")

    def logits(self, x: Tensor) -> Tensor:
        """Logits [N, K] on images [N, 3, H, W] in [0, 1], with gradients of the images."""
        return self._differentiable(x).float()

    def _eager(self, x: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
        with ExitStack() as recording:
            for one in (self.taps, self.features):
                if one is not None:
                    recording.enter_context(one.recording())
            logits = self.model(x).float()
        maps = None if self.taps is None else unit_maps(self.taps.maps(), self.size)
        return logits, maps, None if self.features is None else self.features.taken()

    @torch.no_grad()
    def __call__(self, x: Tensor, rows: Tensor | None = None) -> Answer:
        """The answer on images [N, 3, H, W] in [0, 1], from ``rows`` [N] of the cache if there is one."""
        if self.cached is not None and rows is not None:
            return self.cached.answer(rows, None if self.taps is None else self.taps.names)
        return Answer(*self._answer(x))

    def check(self, student: Spec, classes: Sequence[str]) -> None:
        """As :func:`check_teacher`."""
        check_teacher(self.name, self.model.spec, self.classes, student, classes)


def check_teacher(name: str, teacher: Spec, known: Sequence[str], student: Spec, classes: Sequence[str]) -> None:
    """Raise UsageError unless the teacher ``name`` has the classes of the student and takes images of its size.

    Args:
        known: names of the teacher's classes, and ``classes`` of the student's, in the order of the logits; empty where
            nobody has stated them.
    """
    fault = None
    if teacher.classes != student.classes:
        fault = f"the model has {teacher.classes} classes, but the student has {student.classes}"
    elif teacher.image_size != student.image_size:
        fault = f"the model takes images of {teacher.image_size} pixels, but the student those of {student.image_size}"
    elif differ := [pair for pair in zip(known, classes, strict=False) if pair[0] != pair[1]]:
        fault = f"its classes are others or in another order, such as '{differ[0][0]}' in place of '{differ[0][1]}'"
    if fault:
        raise UsageError(f"the teacher '{name}' does not fit: {fault}")


def record(name: str, dataset: Dataset) -> dict[str, Any]:
    """The record of a teacher in its student's config: name, hash of the weights, clean and PGD-20 accuracy.

    The accuracies come from the registry. For other models they are on held-out training images, from ``held_out.json``
    or measured here, and called ``validation-clean`` and ``validation-pgd20``. One sentence on stderr says if a teacher
    is not shown to be robust: its accuracy under PGD-20 is below 10 %, or its 95 % interval reaches down to chance.
    """
    found = find(name, folders=True, pretrained=False)
    wanted = [protocol(key, found.task.threat).on(dataset.name).name for key in ("clean", "pgd20")]
    if isinstance(found.facts, Entry) and found.facts.results.keys() >= set(wanted):
        accuracy: dict[str, Any] = {key: found.facts.results[key].accuracy.to_dict() for key in wanted}
    else:
        found = find(name, folders=True)
        file = ModelFolder(Path(found.address.place)).held_out
        measured = stored_json(file) if file.is_file() else held_out_accuracy(found, dataset)
        accuracy = {f"validation-{key}": value for key, value in measured.items()}
    for key, one in accuracy.items():
        if "pgd20" in key and (one["value"] < ROBUST or one["ci95"][0] <= 1 / found.spec.classes):
            say_once(
                f"the teacher '{name}' is not shown to be robust: its accuracy is {one['value']:.1%} under {key} "
                f"(n = {one['n']:,}), so a student can learn little robustness from it"
            )
    return {**found.reference(), "accuracy": accuracy}


def held_out_accuracy(found: Found, dataset: Dataset, n: int = 1000) -> dict[str, dict[str, Any]]:
    """Clean and PGD-20 accuracy of a model on the first ``n`` held-out training images, by protocol; the attack is
    under the model's threat model. One sentence on stderr says if the result has flags."""
    from zoo.evaluation.flags import explained
    from zoo.evaluation.measure import measure

    n = min(n, len(dataset.split("validation")))
    device = "cuda" if torch.cuda.is_available() else "cpu"  # large teachers need it
    chosen = (PROTOCOLS[key].under(found.task.threat) for key in ("clean", "pgd20"))
    protocols = [one.model_copy(update={"split": "validation", "n": n}) for one in chosen]
    batch_size = max(1, 250 * 32**2 // dataset.image_size**2)
    measured = list(measure(found.load(), found.sha256, dataset, protocols, batch_size=batch_size, device=device))
    if flags := {flag for one in measured for flag in one.flags}:
        say_once(f"the accuracy of '{found.title}' may be too high: {'; '.join(explained(flags))}")
    return {one.protocol.name: one.result["accuracy"] for one in measured}
