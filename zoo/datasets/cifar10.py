"""CIFAR-10 in the Hub's parquet layout, decoded once into a memory-mapped cache.

The images come from the folder given, else ``ZOO_DATA``, else the cache, else the Hub dataset at a pinned
revision. The last 1,000 training images are the validation split everywhere: nothing here trains on them.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from zoo.system.errors import DataNotFound, IntegrityError, UsageError
from zoo.system.files import cache_root, cached

if TYPE_CHECKING:
    import torch

    from zoo.specs import Spec

CLASSES = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)
HUB_DATASET = "uoft-cs/cifar10"
HUB_REVISION = "0b2714987fa478483af9968de7c934580d0bb9a2"
COUNTS = {"train": 50_000, "test": 10_000}
VALIDATION = 1_000

SplitName = Literal["train", "validation", "test"]
DatasetName = Literal["cifar10", "imagefolder"]


@dataclass(frozen=True)
class Split:
    """Images uint8 [N, H, W, 3] and labels int64 [N], as read-only memory maps."""

    name: str
    images: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the pixels (uint8, C order) followed by the labels (int64, little-endian)."""
        digest = hashlib.sha256(np.ascontiguousarray(self.images).data)
        digest.update(np.ascontiguousarray(self.labels, dtype="<i8").data)
        return digest.hexdigest()


@dataclass(frozen=True)
class Dataset:
    """A decoded dataset; ``split`` hands out its parts."""

    root: Path
    classes: tuple[str, ...] = CLASSES
    image_size: int = 32

    def split(self, name: SplitName) -> Split:
        if name not in ("train", "validation", "test"):
            raise UsageError(f"no split is called '{name}' (known: train, validation, test)")
        stored = "test" if name == "test" else "train"
        images = np.load(self.root / f"{stored}_images.npy", mmap_mode="r")
        labels = np.load(self.root / f"{stored}_labels.npy", mmap_mode="r")
        part = {
            "train": slice(None, -VALIDATION),
            "validation": slice(-VALIDATION, None),
            "test": slice(None),
        }
        return Split(name, images[part[name]], labels[part[name]])


def to_float(images: np.ndarray) -> torch.Tensor:
    """uint8 [N, H, W, C] to float32 [N, C, H, W] in [0, 1], contiguous (not channels_last: the original
    AutoAttack cannot take those strides)."""
    import torch

    return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2))).float().div_(255)


def load_dataset(name: DatasetName, data: Path | str | None = None, *, offline: bool = False) -> Dataset:
    """CIFAR-10, or an image folder: the data set that a recipe names.

    Args:
        data: where it is; else ``ZOO_DATA`` says where CIFAR-10 is, and ``ZOO_IMAGENET`` where the image folder is.
        offline: never ask the Hub, which has CIFAR-10 only.

    Raises:
        DataNotFound, IntegrityError: as :func:`load_cifar10` and :func:`zoo.datasets.imagefolder.load_imagefolder`.
    """
    if name == "cifar10":
        return load_cifar10(data, offline=offline)
    from zoo.datasets.imagefolder import load_imagefolder

    return load_imagefolder(data)


def source_for(spec: Spec) -> DatasetName:
    """The data set whose images have the size that a model of ``spec`` takes."""
    return "cifar10" if spec.image_size == 32 else "imagefolder"


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


def load_cifar10(data: Path | str | None = None, *, offline: bool = False) -> Dataset:
    """CIFAR-10 from ``data``, else ``ZOO_DATA``, else the cache, else the Hub.

    Args:
        data: a folder that holds ``train-*.parquet`` and ``test-*.parquet``, at its top or in ``plain_text/``.
        offline: never ask the Hub.

    Raises:
        DataNotFound: none of the places has it.
        IntegrityError: a parquet file is damaged or is not CIFAR-10.
    """
    given = data or os.environ.get("ZOO_DATA")
    if given:
        return _decoded(_parquet_files(Path(given)), _cache_key(Path(given)))
    for mark in sorted(cache_root().glob("cifar10-*/complete")):
        return Dataset(mark.parent)
    return _decoded(_from_hub(offline), f"cifar10-hub-{HUB_REVISION[:12]}")


def _parquet_files(folder: Path) -> dict[str, list[Path]]:
    if not folder.is_dir():
        raise DataNotFound(f"'{folder}' is not a folder: give the one that holds CIFAR-10's parquet files")
    for place in (folder, folder / "plain_text"):
        files = {split: sorted(place.glob(f"{split}-*.parquet")) for split in COUNTS}
        if all(files.values()):
            return files
    raise DataNotFound(
        f"'{folder}' holds no train-*.parquet and test-*.parquet: give a folder laid out as the Hub's {HUB_DATASET}"
    )


def _cache_key(folder: Path) -> str:
    """Changes whenever a parquet file does, without reading them."""
    files = [path for paths in _parquet_files(folder).values() for path in paths]
    facts = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return "cifar10-" + hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


def _from_hub(offline: bool) -> dict[str, list[Path]]:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    files: dict[str, list[Path]] = {}
    try:
        for split in COUNTS:
            name = f"plain_text/{split}-00000-of-00001.parquet"
            path = hf_hub_download(
                HUB_DATASET, name, repo_type="dataset", revision=HUB_REVISION, local_files_only=offline
            )
            files[split] = [Path(path)]
    except (LocalEntryNotFoundError, OfflineModeIsEnabled, HfHubHTTPError, OSError) as error:
        raise DataNotFound(
            f"CIFAR-10 is not here and the Hub gave none ({type(error).__name__}): "
            f"set ZOO_DATA, or pass --data, to a folder laid out as the Hub's {HUB_DATASET}"
        ) from None
    return files


def _decoded(files: dict[str, list[Path]], key: str) -> Dataset:
    """Decode into the cache under ``key``, once."""

    def decode(folder: Path) -> None:
        for split, paths in files.items():
            images, labels = _read_parquet(paths)
            if images.shape != (COUNTS[split], 32, 32, 3):
                raise IntegrityError(
                    f"the {split} split in '{paths[0].parent}' has images of shape {images.shape}, "
                    f"CIFAR-10 has {(COUNTS[split], 32, 32, 3)}"
                )
            np.save(folder / f"{split}_images.npy", images)
            np.save(folder / f"{split}_labels.npy", labels)

    return Dataset(cached(key, decode))


def _read_parquet(paths: list[Path]) -> tuple[np.ndarray, np.ndarray]:
    import pyarrow
    import pyarrow.parquet as parquet
    from PIL import Image, UnidentifiedImageError

    def decode(row: Any) -> np.ndarray:
        return np.asarray(Image.open(io.BytesIO(row["bytes"].as_py())).convert("RGB"))

    images: list[np.ndarray] = []
    labels: list[np.ndarray] = []
    for path in paths:
        try:
            table = parquet.read_table(path, columns=["img", "label"])
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                images.extend(pool.map(decode, table["img"]))
            labels.append(table["label"].to_numpy().astype(np.int64))
        except (pyarrow.ArrowException, UnidentifiedImageError, OSError, KeyError) as error:
            raise IntegrityError(
                f"'{path}' is not a readable parquet file of images and labels: {str(error).splitlines()[0]}"
            ) from None
    try:
        stacked = np.stack(images)
    except ValueError:
        raise IntegrityError(f"the images in '{paths[0].parent}' differ in size: this is not CIFAR-10") from None
    return stacked, np.concatenate(labels)
