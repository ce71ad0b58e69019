"""Labels: sub-nets with their measured accuracies, from which a predictor learns, and their file."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, NamedTuple, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from zoo.system.errors import IntegrityError, Unreachable, UsageError, first_fault
from zoo.system.files import read_utf8, write_atomic
from zoo.train.spaces.dynamic import Genes, Space

Schema = TypeVar("Schema", bound=BaseModel)
_Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


class _Measured(BaseModel):
    model_config = ConfigDict(extra="forbid")

    genes: dict[str, float]
    clean: _Share
    robust: _Share


class _LabelFile(BaseModel):
    model_config = ConfigDict(extra="forbid")

    space: str
    weights_sha256: str
    images: Annotated[int, Field(ge=1)]
    how: str = ""
    subnets: list[_Measured]


class Labelling(NamedTuple):
    """How a sub-net is measured: on the first ``images`` held-out training images, clean and by PGD with ``steps``
    steps, with the BatchNorm statistics of ``calibration`` augmented training images."""

    images: int = 1000
    steps: int = 10
    calibration: int = 1024

    @property
    def in_words(self) -> str:
        return f"{self.images:,} images, PGD-{self.steps}, statistics of {self.calibration:,} images"


USUAL = Labelling()


@dataclass(frozen=True, eq=False)
class Labels:
    """Measured sub-nets: ``genes`` int64 [n, G], ``clean`` and ``robust`` accuracy [n], each on ``images`` images.

    ``weights_sha256`` is the hash of the dynamic net's file, ``how`` the attack and the BatchNorm statistics.
    """

    genes: Genes
    clean: np.ndarray
    robust: np.ndarray
    images: int
    weights_sha256: str = ""
    how: str = ""

    def __post_init__(self) -> None:
        if self.genes.ndim != 2 or not self.clean.shape == self.robust.shape == (len(self.genes),) or self.images < 1:
            raise UsageError("labels are genes [n, G], two accuracies [n], and the number of images behind each")

    def __len__(self) -> int:
        return len(self.genes)

    def __getitem__(self, rows: np.ndarray) -> Labels:
        return replace(self, genes=self.genes[rows], clean=self.clean[rows], robust=self.robust[rows])

    @property
    def accuracy(self) -> np.ndarray:
        """Clean and robust accuracy, float64 [n, 2]."""
        return np.stack([self.clean, self.robust], 1).astype(np.float64)

    @property
    def variance(self) -> np.ndarray:
        """The binomial variance of ``accuracy``, float64 [n, 2]."""
        return self.accuracy * (1 - self.accuracy) / self.images

    def save(self, path: Path, space: Space) -> None:
        """Write them atomically as JSON, genes by name and value."""
        rows = zip(self.genes, self.clean, self.robust, strict=True)
        file = {
            "space": space.name,
            "weights_sha256": self.weights_sha256,
            "images": self.images,
            "how": self.how,
            "subnets": [{"genes": space.values(row), "clean": float(a), "robust": float(r)} for row, a, r in rows],
        }
        write_atomic(path, (json.dumps(file, indent=1) + "\n").encode())

    @classmethod
    def load(cls, path: Path, space: Space) -> Labels:
        """Read what :meth:`save` wrote.

        Raises:
            UsageError: the labels belong to another space.
            Unreachable, IntegrityError: as :func:`read_json`; IntegrityError also for labels that do not fit the space.
        """
        file = read_json(path, _LabelFile, "labels")
        if file.space != space.name:
            raise UsageError(
                f"'{path}' holds labels of space {file.space}, not {space.name}: measure those of {space.name}"
            )
        try:
            genes = [space.genes_of(one.genes) for one in file.subnets]
        except UsageError as error:
            raise IntegrityError(f"the labels '{path}' do not fit the space: {error}") from None
        accuracy = np.array([(one.clean, one.robust) for one in file.subnets]).reshape(-1, 2)
        stacked = np.array(genes, np.int64).reshape(-1, len(space.genes))
        return cls(stacked, accuracy[:, 0], accuracy[:, 1], file.images, file.weights_sha256, file.how)


def read_json(path: Path, schema: type[Schema], content: str) -> Schema:
    """The JSON file ``path`` by its ``schema``; errors call its content ``content``.

    Raises:
        Unreachable: there is no such file.
        IntegrityError: the file is damaged.
    """
    if not path.is_file():
        raise Unreachable(f"there is no file '{path}' with {content}")
    try:
        return schema.model_validate_json(read_utf8(path))
    except ValidationError as error:
        raise IntegrityError(f"the file '{path}' with {content} is damaged{first_fault(error)}") from None
