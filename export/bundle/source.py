"""The float model that a bundle is made from, and what is known about it."""

from __future__ import annotations

import hashlib
import re
import shlex
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from torch import nn

from zoo.evaluation.threat import LINF_8, ThreatModel
from zoo.export.bundle.manifest import Manifest, Source
from zoo.models import Classifier
from zoo.system.hub import HubFiles
from zoo.weights.address import HUB
from zoo.weights.load import Found, find, own_name
from zoo.weights.tensors import read_model, save_weights

TWIN = "twin.safetensors"
_COMMIT = re.compile(r"[0-9a-f]{40}")
_FOLDERS = re.compile(r"(^|[:=])(~|[A-Za-z]:)?[/\\].*[/\\](?=[^/\\])")


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

    ``title`` names the bundle; ``name`` is what :func:`zoo.load` takes; ``dataset`` and ``threat`` are what it is for;
    ``labels`` are the names of its classes in the order of the logits, empty where they are not known.

    ``travels``: the weights are put into the bundle. Those of a released model and of a commit of the Hub are not: they
    can be had again from anywhere, and from there they are evidence of what a bundle says, as a copy in it is not.
    """

    name: str
    title: str
    dataset: str | None = None
    labels: tuple[str, ...] = ()
    threat: ThreatModel = LINF_8
    measured: dict[str, Any] = field(default_factory=dict)
    reported: dict[str, Any] = field(default_factory=dict)
    file_sha256: str | None = None
    repo_id: str | None = None
    revision: str | None = None
    travels: bool = True


def source_of(name: str, *, offline: bool = False) -> tuple[Found, Known]:
    """The model called ``name`` (all that :func:`zoo.load` takes), found and not loaded, and what is known about it.

    Raises:
        UnknownModel: the registry has no such name.
        Unreachable: the weights are not here, and cannot be fetched.
        IntegrityError: the weights are not what they should be.
    """
    found = find(name, HubFiles(offline=offline))
    address, entry = found.address.absolute(), found.released
    if entry:
        found = replace(found, facts=entry)  # the same model, wherever its file is
    about: dict[str, Any] = {**found.task._asdict(), "labels": found.classes, "file_sha256": found.sha256}
    if entry:
        facts, hub = entry.to_dict(), entry.weights.hub
        about |= {"measured": facts["results"], "reported": facts["reported"], "travels": False}
        about |= {"repo_id": hub.repo_id, "revision": hub.revision} if hub else {}
        return found, Known(entry.name, _as_folder(entry.name), **about)
    if address.scheme == HUB:
        title = own_name(_as_folder(address.place.rpartition("/")[2]), found.sha256)
        about |= {"repo_id": address.place, "revision": address.revision}
        about["travels"] = not _COMMIT.fullmatch(address.revision or "")
        return found, Known(str(address), title, **about)
    return found, Known(str(address), own_name(_as_folder(found.title), found.sha256), **about)


def load_twin(folder: Path, manifest: Manifest, *, offline: bool = False) -> Classifier:
    """The float model of the bundle in ``folder``: from the file in it, else from where its source is found.

    Raises:
        IntegrityError: the file is damaged or no safetensors file, or does not fit the architecture.
        UnknownModel, Unreachable: as :func:`source_of`.
    """
    source = manifest.source
    if source.twin:
        return read_model(folder / source.twin, manifest.spec)
    return find(source.name, HubFiles(offline=offline)).load()


def is_twin(model: Classifier, manifest: Manifest) -> bool:
    """Whether ``model`` is the one that the bundle was made from."""
    return model.spec == manifest.spec and digest(model) == manifest.source.tensors_sha256


def record_of(model: Classifier, known: Known, folder: Path) -> Source:
    """The source of a bundle as its manifest has it; weights that travel are written into its ``folder``."""
    if known.travels:
        save_weights(model.state_dict(), folder / TWIN)
    return Source(
        name=known.title if known.travels else known.name,
        tensors_sha256=digest(model),
        file_sha256=known.file_sha256,
        repo_id=known.repo_id,
        revision=known.revision,
        twin=TWIN if known.travels else None,
    )


def public(*command: str) -> str:
    """A command line without folders of this machine: an absolute path keeps its last part, ``local-dir:.../run``.
    Where a signing key is stays secret."""
    parts = ["KEY" if before == "--sign" else part for before, part in pairwise(("", *command))]
    return shlex.join(without_folders(re.sub("^--sign=.*", "--sign=KEY", part)) for part in parts)


def without_folders(text: str) -> str:
    """``text`` with the last part alone of an absolute path: ``local-dir:.../run``."""
    return _FOLDERS.sub(r"\1.../", text)


def _as_folder(title: str) -> str:
    return re.sub(r"[^\w.@+-]", "-", title).lstrip(".-") or "model"
