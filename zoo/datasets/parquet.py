"""A data set in the Hub's parquet layout, decoded once into a memory-mapped cache."""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from zoo.datasets.base import Dataset, Split, SplitName, check_labels, check_split
from zoo.system.cache import MARK, cache_root, cached, mapped
from zoo.system.errors import DataNotFound, IntegrityError, Unreachable
from zoo.system.files import kind_of
from zoo.system.hub import HubFiles

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True, kw_only=True)
class Parquet(Dataset):
    """Files ``train-*.parquet`` and ``test-*.parquet``: encoded images in column ``img``, labels in ``label``.

    The last ``sizes["validation"]`` training images are the validation split.

    Attributes:
        label: the name of the label column.
        repo_id: the repository on the Hub; ``folder``: the folder of the files in it.
        revision: the commit to download.
        test_sha256: the fingerprint of the test split, which the files must have; None: not checked.
        train_sha256: that of all training images; files with others are used only where their folder is named.
        files: the files of a loaded data set, to decode the images again; empty: they must come from the Hub.
        offline: of a loaded data set: do not use the Hub.
    """

    label: str
    repo_id: str
    folder: str
    revision: str
    test_sha256: str | None = None
    train_sha256: str | None = None
    files: Mapping[str, Sequence[Path]] = field(default_factory=dict)
    offline: bool = False

    def load(self, data: Path | str | None = None, *, offline: bool = False) -> Self:
        named = self.named_folder(data)
        if named is None and (root := self._decoded()):
            return replace(self, root=root, offline=offline)
        files = self._from_hub(offline) if named is None else self._files(named)
        key = self._hub_key if named is None else self._key(files)
        found = replace(self, files=files)
        return replace(found, root=cached(key, found._decode))

    def split(self, name: SplitName) -> Split:
        check_split(name)
        if self.root is None:
            raise DataNotFound(f"{self.title} has no images before it is loaded: call load()")
        stored = "test" if name == "test" else "train"
        images, labels = (mapped(self.root / f"{stored}_{part}.npy", self._decode) for part in ("images", "labels"))
        held_out = self.sizes["validation"]
        part = {"train": slice(None, -held_out), "validation": slice(-held_out, None), "test": slice(None)}
        return Split(name, images[part[name]], labels[part[name]])

    def _files(self, folder: Path) -> dict[str, list[Path]]:
        if not folder.is_dir():
            raise DataNotFound(f"'{folder}' is not a folder: give the folder with {self.title}'s parquet files")
        for home in (folder, folder / self.name):
            for place in (home, home / self.folder):
                files = {split: sorted(place.glob(f"{split}-*.parquet")) for split in ("train", "test")}
                if all(files.values()):
                    return files
        raise DataNotFound(
            f"'{folder}' does not hold train-*.parquet and test-*.parquet: "
            f"give a folder with the layout of {self.repo_id} on the Hub"
        )

    @property
    def _hub_key(self) -> str:
        return f"{self.name}-hub-{self.revision[:12]}"

    def _decoded(self) -> Path | None:
        """The folder of the cache with the files of the Hub, else with the same images from a folder named before."""
        marks = sorted(cache_root().glob(f"{self.name}-*/{MARK}"), key=lambda mark: mark.parent.name != self._hub_key)
        for root in (mark.parent for mark in marks if mark.stat().st_size):  # older caches have no record
            if root.name == self._hub_key or self._original(root):
                return root
        return None

    def _original(self, root: Path) -> bool:
        """Whether ``root`` has this data set's training images and labels, as far as they can be read."""
        if self.train_sha256 is None:
            return True
        try:
            images, labels = (mapped(root / f"train_{part}.npy") for part in ("images", "labels"))
        except IntegrityError:  # split("train") names the file, or makes it again
            return True
        return Split("train", images, labels).fingerprint == self.train_sha256

    def _key(self, files: dict[str, list[Path]]) -> str:
        """The cache key: it changes with the parquet files. No file is read."""
        facts = [
            (path.name, path.stat().st_size, path.stat().st_mtime_ns) for paths in files.values() for path in paths
        ]
        return f"{self.name}-{hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]}"

    def _from_hub(self, offline: bool) -> dict[str, list[Path]]:
        """The files of the pinned revision, checked like weights."""
        place = f"set {self.variable} or --data to a folder with the layout of {self.repo_id} on the Hub"
        hub = HubFiles(offline=offline)
        names = {split: f"{self.folder}/{split}-00000-of-00001.parquet" for split in ("train", "test")}
        try:
            return {
                split: [hub.fetch(self.repo_id, name, self.revision, repo_type="dataset")]
                for split, name in names.items()
            }
        except Unreachable as error:
            raise DataNotFound(f"{self.title} was not found ({error}): {place}") from None

    def _decode(self, folder: Path) -> None:
        """Write the images and labels of both files' splits to ``folder``, as .npy files."""
        import numpy as np

        for split, paths in (self.files or self._from_hub(self.offline)).items():
            images, labels = self._read(paths)
            place = paths[0].parent
            n = self.sizes[split] + (self.sizes["validation"] if split == "train" else 0)
            if images.shape != (n, self.image_size, self.image_size, 3):
                raise IntegrityError(
                    f"the {split} split in '{place}' has images of shape {images.shape}, "
                    f"but {self.title} has {(n, self.image_size, self.image_size, 3)}"
                )
            check_labels(labels, len(self.classes), f"the {split} split in '{place}'")
            expected = self.test_sha256 if split == "test" else None
            if expected is not None and Split(split, images, labels).fingerprint != expected:
                raise IntegrityError(
                    f"the {split} split in '{place}' has other images or labels than {self.title}: fetch it again"
                )
            np.save(folder / f"{split}_images.npy", images)
            np.save(folder / f"{split}_labels.npy", labels)

    def _read(self, paths: Sequence[Path]) -> tuple[np.ndarray, np.ndarray]:
        """The images uint8 [N, H, W, 3] and labels int64 [N] of the parquet files, in order."""
        import numpy as np
        import pyarrow
        import pyarrow.parquet as parquet
        from PIL import Image, UnidentifiedImageError

        def decode(row: Any) -> np.ndarray:
            return np.asarray(Image.open(io.BytesIO(row["bytes"].as_py())).convert("RGB"))

        images: list[np.ndarray] = []
        labels: list[np.ndarray] = []
        for path in paths:
            if kind := kind_of(path):
                raise IntegrityError(f"'{path}' is not a readable parquet file of images and labels: it is {kind}")
            try:
                columns = parquet.read_schema(path).names
                if not {"img", self.label} <= {*columns}:
                    raise DataNotFound(
                        f"'{path}' is not {self.title}: its columns are {', '.join(columns)}, not img and {self.label}"
                    )
                table = parquet.read_table(path, columns=["img", self.label])
                with ThreadPoolExecutor(os.cpu_count()) as pool:
                    images.extend(pool.map(decode, table["img"]))
                labels.append(table[self.label].to_numpy().astype(np.int64))
            except (pyarrow.ArrowException, UnidentifiedImageError, OSError, KeyError) as error:
                raise IntegrityError(
                    f"'{path}' is not a readable parquet file of images and labels: {str(error).splitlines()[0]}"
                ) from None
        try:
            stacked = np.stack(images)
        except ValueError:
            raise IntegrityError(
                f"the images in '{paths[0].parent}' differ in size: this is not {self.title}"
            ) from None
        return stacked, np.concatenate(labels)
