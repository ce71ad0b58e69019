"""A trained dynamic net, found by its name, and what is cut out of it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from zoo.datasets.base import Dataset, check_fits
from zoo.models import Classifier
from zoo.models.subnet import STATISTICS
from zoo.specs import cost
from zoo.system.errors import IntegrityError, Unreachable, UsageError
from zoo.system.files import sha256_file, write_atomic
from zoo.train.data.images import source_of
from zoo.train.proard.elastic import Elastic
from zoo.train.proard.predictor import Predictor
from zoo.train.spaces import space_called
from zoo.train.spaces.dynamic import Genes, Space
from zoo.train.teachers.teacher import address
from zoo.weights.load import CONFIG, CUT_FROM, PREDICTOR, read_tensors, save_weights, weights_file

CALIBRATION = 4096  # augmented training images for the BatchNorm statistics of a sub-net


@dataclass(frozen=True)
class Dynamic:
    """A dynamic net: its weights file, and what is known of its training, as a registry entry has it."""

    name: str
    path: Path
    facts: dict[str, Any]

    @property
    def space(self) -> Space:
        return space_called(self.facts["supernet"])

    @cached_property
    def net(self) -> Elastic:
        net = Elastic(self.space).requires_grad_(False)
        net.load_released(read_tensors(self.path))
        return net

    @property
    def width(self) -> int:
        """Bytes of a stored weight."""
        with safe_open(self.path, framework="pt") as file:
            return file.get_tensor("head.weight").element_size()

    def predictor(self) -> Predictor:
        """The accuracy-robustness predictor that was fitted to this net.

        Raises:
            UsageError: it was fitted to another net, or to another space.
            Unreachable: there is none.
        """
        released = self.path.with_name(f"{self.path.stem}.{PREDICTOR}")
        path = released if released.exists() else self.path.with_name(PREDICTOR)
        if not path.exists():
            raise Unreachable(f"'{self.name}' has no predictor: its training leaves one, as '{PREDICTOR}'")
        predictor = Predictor.load(path, self.space)
        if predictor.weights_sha256 != sha256_file(self.path):
            raise UsageError(f"'{path}' was fitted to other weights than '{self.path}': fit it anew")
        return predictor

    def cut(self, genes: Genes, dataset: Dataset, *, images: int = CALIBRATION) -> Classifier:
        """The sub-net of ``genes`` [G] in eval mode, its statistics those of augmented training images."""
        spec = self.space.spec(genes)
        check_fits(dataset, spec)
        return self.net.freeze(spec, calibration(dataset, images))

    def save(self, genes: Genes, dataset: Dataset, folder: Path, *, name: str) -> Path:
        """Cut a sub-net and leave it as a model folder, for ``load("local-dir:...")``: statistics only, since the
        weights are this net's.

        Raises:
            UsageError: there is a model in ``folder`` already; the genes are not of this space.
        """
        check_free(folder)
        values = self.space.values(genes)
        state = self.cut(genes, dataset).state_dict()
        statistics = {key: tensor for key, tensor in state.items() if key.endswith(STATISTICS)}
        sha256 = sha256_file(self.path)
        spec = self.space.spec(genes)
        of = {"of": self.name, "weights_sha256": sha256, "values": values, "size": self.width * cost(spec).params}
        config: dict[str, Any] = {
            "name": name,
            "family": self.facts["family"],
            "description": f"Sub-net of {self.facts['name']}, cut without retraining",
            "paper": self.facts["paper"],
            "spec": spec.to_dict(),
            "subnet": of,
            **{key: self.facts[key] for key in ("dataset", "threat") if key in self.facts},
            "train": self.facts["train"],
        }
        folder.mkdir(parents=True, exist_ok=True)
        save_weights(statistics, folder / "model.safetensors", **{CUT_FROM: sha256})
        write_atomic(folder / "config.json", (json.dumps(config, indent=2) + "\n").encode())
        return folder


def dynamic(name: str, *, offline: bool = False) -> Dynamic:
    """The dynamic net ``name``: of the registry, or the model folder that its training left.

    Raises:
        UsageError: it is no dynamic net, or a Hub repository that is not in the registry.
        UnknownModel, Unreachable, IntegrityError: as :func:`zoo.weights.load.load`.
    """
    where = address(name)
    scheme, _, place = where.partition(":")
    if scheme == "hf-hub":
        raise UsageError(f"sub-nets are cut from a net of the registry or of a folder: download '{place}' to a folder")
    path = weights_file(where, offline=offline)
    if scheme == "local-dir":
        where = f"local-dir:{path.parent.resolve()}"  # sub-nets refer to it, from wherever they are loaded
        facts = json.loads(path.with_name(CONFIG).read_text())
    else:
        from zoo.registry.file import info

        facts = {"name": where, **info(where).to_dict()}
    if not facts.get("supernet"):
        raise UsageError(f"'{name}' is no dynamic net, and has no sub-nets: choose one such as proard-tiny")
    missing = sorted({"name", "family", "paper", "train"} - facts.keys())
    if missing:
        raise IntegrityError(f"'{path.with_name(CONFIG)}' has no '{missing[0]}', which a training leaves there")
    return Dynamic(where, path, facts)


def check_free(folder: Path) -> None:
    """Raise UsageError if ``folder`` holds a model."""
    if (folder / "config.json").exists():
        raise UsageError(f"'{folder}' already holds a model: choose another folder")


def calibration(dataset: Dataset, n: int = CALIBRATION) -> Iterator[Tensor]:
    """Batches of augmented training images, always the same."""
    device = torch.device("cpu")
    source, generator = source_of(dataset.split("train"), device, n), torch.Generator(device).manual_seed(0)
    return (source.augmented(part, generator)[0] for part in torch.arange(len(source)).split(128))
