"""The model that a training starts from, where that is not a random one: by name, or the folder of an earlier run."""

from __future__ import annotations

from torch import Tensor

from zoo.models import Classifier
from zoo.specs import Spec
from zoo.system.errors import UsageError
from zoo.train.teachers.teacher import address, title
from zoo.weights.load import load, read_tensors, weights_file, weights_sha256


def spec_of(name: str) -> Spec:
    """The architecture of the model ``name``; errors are those of :func:`zoo.weights.load.load`."""
    return load(address(name), pretrained=False, progress=False).spec


def started(name: str, arch: Spec) -> Classifier:
    """The model ``name``, in eval mode.

    Raises:
        UsageError: it is not of the architecture ``arch``.
        UnknownModel, Unreachable, IntegrityError: as :func:`zoo.weights.load.load`.
    """
    model = load(address(name), progress=False)
    if model.spec != arch:
        raise UsageError(f"'{name}' is of another architecture than [arch] of the recipe: take one of the two out")
    return model


def origin(name: str | None) -> dict[str, str] | None:
    """What is stored of it with the model that came of it: name, and hash of the weights file."""
    if name is None:
        return None
    return {"name": title(name), "weights_sha256": weights_sha256(load(address(name), progress=False))}


def stored(name: str) -> dict[str, Tensor]:
    """All tensors in the weights file of the model ``name``; errors are those of :func:`zoo.weights.load.load`."""
    return read_tensors(weights_file(address(name)))
