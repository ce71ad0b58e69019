"""The type of all data sets: it describes the images, finds them, and returns the splits.

Neither torch nor numpy is imported here: recipes and registries name data sets and are checked without images.
"""

from __future__ import annotations

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, get_args

from zoo.system.errors import IntegrityError, UsageError

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

    def __post_init__(self) -> None:
        images, labels = self.images, self.labels
        right = str(images.dtype) == "uint8" and images.ndim == 4 and images.shape[-1] == 3
        if not right or str(labels.dtype) != "int64" or labels.shape != images.shape[:1]:
            raise TypeError(
                f"a split has images uint8 [N, H, W, 3] and labels int64 [N], not {images.dtype} {list(images.shape)} "
                f"and {labels.dtype} {list(labels.shape)}"
            )

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
class Dataset(ABC):
    """A data set. :meth:`load` returns a copy with its ``root``; only that copy has images.

    Attributes:
        name: used in recipes, registries and manifests; ``title``: used in messages.
        classes: names in the order of the labels; empty before a load if the folder defines them.
        image_size: height and width in pixels.
        mean, std: of the training images' channels, in [0, 1].
        sizes: the number of images of each split; empty before a load if the folder defines them.
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

    @abstractmethod
    def load(self, data: Path | str | None = None, *, offline: bool = False) -> Self:
        """This data set with its images, from ``data``, else the folder in a variable, else the cache, else the Hub.

        Args:
            data: the folder of the data set.
            offline: do not use the Hub.

        Raises:
            DataNotFound: the given folder does not hold it, or it is in none of these places.
            IntegrityError: a file is damaged, or does not match this data set.
        """

    @abstractmethod
    def split(self, name: SplitName) -> Split:
        """A split of the loaded data set. ``validation`` is part of the training images and is never trained on.

        Raises:
            UsageError: there is no such split.
            DataNotFound: the data set is not loaded.
        """

    def named_folder(self, data: Path | str | None = None) -> Path | None:
        """The folder given for it: ``data``, else that in ``variable``, else the one with its name in ``ZOO_DATA``; or
        None."""
        given, home = data or os.environ.get(self.variable), os.environ.get("ZOO_DATA")
        if not given and home and (Path(home) / self.name).is_dir():
            given = Path(home) / self.name
        return Path(given) if given else None

    def contract(self) -> dict[str, Any]:
        """The fields of a spec that must match it: image size, mean, std, and the number of classes if known."""
        classes = {"classes": len(self.classes)} if self.classes else {}
        return {**classes, "image_size": self.image_size, "mean": list(self.mean), "std": list(self.std)}


def check_split(name: str) -> None:
    """Raise UsageError if no split is called ``name``."""
    if name not in get_args(SplitName):
        raise UsageError(f"no split is called '{name}' (known: {', '.join(get_args(SplitName))})")


def check_labels(labels: np.ndarray, classes: int, where: str) -> None:
    """Raise IntegrityError unless labels int64 [N], N of at least 1, are below ``classes`` and at least 0.

    Args:
        where: the split and its place, for the message.
    """
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= classes:
        known = f"those of {classes} classes are 0 to {classes - 1}"
        raise IntegrityError(f"{where} has labels from {low} to {high}, but {known}")


def check_fits(dataset: Dataset, spec: Spec, classes: Sequence[str] = ()) -> None:
    """Raise UsageError unless ``dataset`` has the image size and as many classes as ``spec``, and the names of the
    model's ``classes`` in their order, where they are known."""
    if dataset.image_size != spec.image_size:
        raise UsageError(
            f"the model takes images of {spec.image_size} pixels, but those in '{dataset.root}' "
            f"have {dataset.image_size}: use the data set of the model"
        )
    if len(dataset.classes) != spec.classes:
        raise UsageError(
            f"the model has {spec.classes} classes, but '{dataset.root}' has {len(dataset.classes)}: "
            "use the data set of the model"
        )
    if differ := [pair for pair in zip(classes, dataset.classes, strict=False) if pair[0] != pair[1]]:
        raise UsageError(
            f"the classes in '{dataset.root}' are others than the model's, or in another order, such as "
            f"'{differ[0][1]}' in place of '{differ[0][0]}': use the data set of the model"
        )


def to_float(images: np.ndarray) -> torch.Tensor:
    """uint8 [N, H, W, C] to float32 [N, C, H, W] in [0, 1], contiguous (not channels_last, because the original
    AutoAttack does not accept such strides)."""
    import numpy as np
    import torch

    return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2))).float().div_(255)
