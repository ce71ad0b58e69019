"""A trained dynamic net, found by its name, and the sub-nets that are cut from it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from zoo.datasets.base import Dataset, check_fits
from zoo.models import Classifier
from zoo.models.subnet import STATISTICS
from zoo.registry.entry import Subnet, Train
from zoo.specs import cost
from zoo.system.errors import IntegrityError, Unreachable, UsageError
from zoo.system.files import locked
from zoo.system.hub import HubFiles
from zoo.train.data.images import source_of
from zoo.train.proard.elastic import Elastic
from zoo.train.proard.predictor import Predictor
from zoo.train.spaces import space_called
from zoo.train.spaces.dynamic import Genes, Space
from zoo.weights.address import HUB, Address
from zoo.weights.folder import CONFIG, PREDICTOR, ModelConfig, ModelFolder
from zoo.weights.load import CUT_FROM, Found, find
from zoo.weights.tensors import save_weights

CALIBRATION = 4096  # augmented training images for the BatchNorm statistics of a sub-net


@dataclass(frozen=True)
class Dynamic:
    """A dynamic net: its weights file and its facts."""

    found: Found

    @property
    def path(self) -> Path:
        assert self.found.path is not None
        return self.found.path

    @property
    def sha256(self) -> str:
        return self.found.sha256

    @property
    def name(self) -> str:
        """Its absolute address, which its sub-nets store."""
        return str(self.found.address.absolute())

    @property
    def space(self) -> Space:
        assert self.found.facts.supernet is not None
        return space_called(self.found.facts.supernet)

    @cached_property
    def net(self) -> Elastic:
        net = Elastic(self.space).requires_grad_(False)
        net.load_released(self.found.tensors())
        return net

    @property
    def width(self) -> int:
        """Bytes of a stored weight."""
        with safe_open(self.path, framework="pt") as file:
            return file.get_tensor("head.weight").element_size()

    def predictor(self) -> Predictor:
        """The accuracy-robustness predictor of this net.

        Raises:
            UsageError: it was fitted to another net or another space.
            Unreachable: there is none, here or beside the weights on the Hub.
        """
        path = self.found.companion(PREDICTOR)
        if path is None:
            raise Unreachable(f"'{self.name}' has no predictor: its training leaves one, as '{PREDICTOR}'")
        predictor = Predictor.load(path, self.space)
        if predictor.weights_sha256 != self.sha256:
            raise UsageError(f"'{path}' was fitted to other weights than '{self.path}': fit it again")
        return predictor

    def cut(self, genes: Genes, dataset: Dataset, *, images: int = CALIBRATION) -> Classifier:
        """The sub-net of ``genes`` [G] in eval mode, with BatchNorm statistics of augmented training images."""
        spec = self.space.spec(genes)
        check_fits(dataset, spec)
        return self.net.freeze(spec, calibration(dataset, images))

    def save(self, genes: Genes, dataset: Dataset, folder: Path, *, name: str) -> Path:
        """Cut a sub-net and write it as a model folder for ``load("local-dir:...")``. The folder holds BatchNorm
        statistics only and refers to the weights of this net.

        Raises:
            UsageError: ``folder`` already holds a model, or the genes do not belong to this space.
        """
        place, facts = ModelFolder(folder), self.found.facts
        place.check_free()
        values = self.space.values(genes)
        state = self.cut(genes, dataset).state_dict()
        statistics = {key: tensor for key, tensor in state.items() if key.endswith(STATISTICS)}
        spec = self.space.spec(genes)
        size = self.width * cost(spec).params
        config = ModelConfig(
            name=name,
            family=facts.family,
            description=f"Sub-net of {self.found.title}, cut without retraining",
            paper=facts.paper,
            spec=spec.to_dict(),
            subnet=Subnet(of=self.name, weights_sha256=self.sha256, values=values, size=size),
            dataset=self.found.task.dataset,
            threat=self.found.task.threat,
            classes=self.found.classes or None,
            train=asdict(facts.train) if isinstance(facts.train, Train) else facts.train,
        )
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder):  # of two that cut to one folder at once, the first
            place.check_free()
            save_weights(statistics, place.weights, **{CUT_FROM: self.sha256})
            place.write(config)
        return folder


def dynamic(name: str, *, offline: bool = False) -> Dynamic:
    """The dynamic net ``name`` of the registry or of a model folder from its training.

    Raises:
        UsageError: it is not a dynamic net, or it is a Hub repository.
        UnknownModel, Unreachable, IntegrityError: as :func:`zoo.weights.load.load`.
    """
    address = Address.parse(name, folders=True)
    if address.scheme == HUB:
        raise UsageError(
            f"sub-nets can be cut from a net of the registry or of a folder: download '{address.place}' to a folder"
        )
    found = find(address, HubFiles(offline=offline, progress=False))
    if not found.facts.supernet:
        raise UsageError(f"'{name}' is not a dynamic net and has no sub-nets: choose one such as proard-tiny")
    net = Dynamic(found)
    missing = [key for key in ("family", "name", "train") if getattr(found.facts, key) is None]
    if missing:
        raise IntegrityError(f"'{net.path.with_name(CONFIG)}' has no '{missing[0]}': use the folder of a training")
    return net


def calibration(dataset: Dataset, n: int = CALIBRATION) -> Iterator[Tensor]:
    """Batches of the same ``n`` augmented training images in every call, all of about one size."""
    device = torch.device("cpu")
    source, generator = source_of(dataset.split("train"), device, n), torch.Generator(device).manual_seed(0)
    parts = torch.arange(len(source)).tensor_split(-(-len(source) // 128))
    return (source.augmented(part, generator)[0] for part in parts)
