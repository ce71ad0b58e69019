"""The float model that a bundle is made from, and what is known about it."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from zoo.datasets import DATASETS
from zoo.evaluation.threat import LINF_8, ThreatModel
from zoo.models import Classifier
from zoo.specs import Spec


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


def load_source(name: str, *, offline: bool = False) -> tuple[Classifier, Known]:
    """The float model called ``name`` (all that :func:`zoo.load` takes), in eval mode, and what is known about it.

    Raises:
        UnknownModel: the registry has no such name.
        Unreachable: the weights are not here, and cannot be fetched.
        IntegrityError: the weights are not what they should be.
    """
    from zoo.weights.load import load, task_of

    model = load(name, local_files_only=offline)
    task = task_of(name, offline=offline)._asdict()
    scheme, _, place = name.partition(":")
    if scheme == "local-dir":
        folder = Path(place).expanduser().resolve()
        title = json.loads((folder / "config.json").read_text()).get("name")
        return model, Known(name=f"local-dir:{folder}", title=_as_folder(title or folder.name), **task)
    if scheme == "hf-hub":
        repo_id, _, revision = place.partition("@")
        title = _as_folder(repo_id.rpartition("/")[2])
        return model, Known(name, title, repo_id=repo_id, revision=revision or None, **task)
    return model, _registered(name, task)


def _registered(name: str, task: dict[str, Any]) -> Known:
    from zoo.registry.file import info

    entry = info(name).to_dict()
    weights = entry["weights"]
    hub = weights.get("hub") or {}
    return Known(
        name,
        _as_folder(name),
        measured=entry.get("results") or {},
        reported=entry.get("reported") or {},
        file_sha256=weights["sha256"],
        repo_id=hub.get("repo_id"),
        revision=hub.get("revision"),
        **task,
    )


def _as_folder(title: str) -> str:
    return re.sub(r"[^\w.@+-]", "-", title).lstrip(".-") or "model"
