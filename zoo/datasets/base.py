"""What a data set is: a value that says what its images are, finds them, and hands out its splits.

Neither torch nor numpy is imported here: recipes and registries name data sets, and are checked without images.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, get_args

from zoo.system.errors import UsageError

if TYPE_CHECKING:
    import numpy as np
    import torch

    from zoo.specs import Spec

SplitName = Literal["train", "validation", "test"]


@dataclass(frozen=True)
class Split:
    """Images uint8 [N, H, W, 3] and labels int64 [N], as read-only memory maps."""

    name: str
    images: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def pixels(self, index: np.ndarray) -> np.ndarray:
        """The images at ``index`` [n]: uint8 [n, H, W, 3]."""
        return self.images[index]

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the pixels (uint8, C order) followed by the labels (int64, little-endian)."""
        import numpy as np

        digest = hashlib.sha256(np.ascontiguousarray(self.images).data)
        digest.update(np.ascontiguousarray(self.labels, dtype="<i8").data)
        return digest.hexdigest()


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """A data set. :meth:`load` returns it with its ``root``, and only then it has images to hand out.

    Attributes:
        name: as recipes, registries and manifests have it; ``title``: as people write it.
        classes: their names, in the order of the labels; none before a load where the folder has them.
        image_size: height and width in pixels.
        mean, std: of the training images' channels, in [0, 1].
        sizes: the number of images of each split; none before a load where the folder has them.
        variable: the environment variable that names its folder.
    """

    name: str
    title: str
    classes: tuple[str, ...] = ()
    image_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    sizes: Mapping[str, int] = field(default_factory=dict)
    variable: str
    root: Path | None = None

    def load(self, data: Path | str | None = None, *, offline: bool = False) -> Self:
        """This data set with its images, from ``data``, else the folder that a variable names, else the cache, else
        the Hub.

        Args:
            data: its folder.
            offline: never ask the Hub.

        Raises:
            DataNotFound: it is not where it is said to be, or nowhere.
            IntegrityError: a file of it is damaged, or is not what this data set has.
        """
        raise NotImplementedError

    def split(self, name: SplitName) -> Split:
        """A part of a loaded data set. ``validation`` is cut from the training images, and never trained on.

        Raises:
            UsageError: there is no such split.
        """
        raise NotImplementedError

    def named_folder(self, data: Path | str | None = None) -> Path | None:
        """The folder that is said to hold it: ``data``, else what ``variable`` names, else the folder of its name in
        ``ZOO_DATA``; None if there is none."""
        given, home = data or os.environ.get(self.variable), os.environ.get("ZOO_DATA")
        if not given and home and (Path(home) / self.name).is_dir():
            given = Path(home) / self.name
        return Path(given) if given else None

    def contract(self) -> dict[str, Any]:
        """What an architecture for it has to say: image size, mean, std, and classes where they are known."""
        classes = {"classes": len(self.classes)} if self.classes else {}
        return {**classes, "image_size": self.image_size, "mean": list(self.mean), "std": list(self.std)}


def check_split(name: str) -> None:
    """Raise UsageError if no split is called ``name``."""
    if name not in get_args(SplitName):
        raise UsageError(f"no split is called '{name}' (known: {', '.join(get_args(SplitName))})")


def check_fits(dataset: Dataset, spec: Spec) -> None:
    """Raise UsageError unless the images and classes of ``dataset`` are those that a model of ``spec`` is for."""
    if dataset.image_size != spec.image_size:
        raise UsageError(
            f"the model takes images of {spec.image_size} pixels, and those in '{dataset.root}' "
            f"have {dataset.image_size}: give the data set that it is for"
        )
    if len(dataset.classes) != spec.classes:
        raise UsageError(
            f"the model has {spec.classes} classes, and '{dataset.root}' has {len(dataset.classes)}: "
            "give the data set that it is for"
        )


def to_float(images: np.ndarray) -> torch.Tensor:
    """uint8 [N, H, W, C] to float32 [N, C, H, W] in [0, 1], contiguous (not channels_last: the original
    AutoAttack cannot take those strides)."""
    import numpy as np
    import torch

    return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2))).float().div_(255)
