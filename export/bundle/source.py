"""The float model that a bundle is made from, and what is known about it."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from zoo.datasets import DATASETS
from zoo.evaluation.threat import LINF_8, ThreatModel
from zoo.models import Classifier
from zoo.registry.entry import Entry
from zoo.specs import Spec
from zoo.system.hub import HubFiles
from zoo.weights.address import HUB
from zoo.weights.load import Found, find


def digest(model: nn.Module) -> str:
    """SHA-256 over names, types, shapes and values of the weights, whatever file they came from."""
    total = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        total.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        total.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return total.hexdigest()


@dataclass(frozen=True)
class Known:
    """What there is to know about a model besides its weights; results only if the registry has it.

    ``title`` names the bundle; ``name`` is what :func:`zoo.load` takes to find the model again from anywhere;
    ``dataset`` and ``threat`` are what it is for.
    """

    name: str
    title: str
    dataset: str | None = None
    threat: ThreatModel = LINF_8
    measured: dict[str, Any] = field(default_factory=dict)
    reported: dict[str, Any] = field(default_factory=dict)
    file_sha256: str | None = None
    repo_id: str | None = None
    revision: str | None = None

    def labels(self, spec: Spec) -> tuple[str, ...]:
        """Names of the classes in the order of the logits, those of the data set; none where it is not known."""
        classes = DATASETS[self.dataset].classes if self.dataset in DATASETS else ()
        return classes if len(classes) == spec.classes else ()


def source_of(name: str, *, offline: bool = False) -> tuple[Found, Known]:
    """The model called ``name`` (all that :func:`zoo.load` takes), found and not loaded, and what is known about it.

    Raises:
        UnknownModel: the registry has no such name.
        Unreachable: the weights are not here, and cannot be fetched.
        IntegrityError: the weights are not what they should be.
    """
    found = find(name, HubFiles(offline=offline))
    address, facts = found.address.absolute(), found.facts
    task = found.task._asdict()
    if isinstance(facts, Entry):
        entry = facts.to_dict()
        known = Known(
            name=facts.name,
            title=_as_folder(facts.name),
            measured=entry["results"],
            reported=entry["reported"],
            file_sha256=facts.weights.sha256,
            repo_id=facts.weights.hub.repo_id if facts.weights.hub else None,
            revision=facts.weights.hub.revision if facts.weights.hub else None,
            **task,
        )
    elif address.scheme == HUB:
        title = _as_folder(address.place.rpartition("/")[2])
        known = Known(str(address), title, repo_id=address.place, revision=address.revision, **task)
    else:
        known = Known(str(address), _as_folder(found.title), **task)
    return found, known


def load_source(name: str, *, offline: bool = False) -> tuple[Classifier, Known]:
    """The float model called ``name``, in eval mode, and what is known about it; errors as of :func:`source_of`."""
    found, known = source_of(name, offline=offline)
    return found.load(), known


def _as_folder(title: str) -> str:
    return re.sub(r"[^\w.@+-]", "-", title).lstrip(".-") or "model"
