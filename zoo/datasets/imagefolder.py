"""Image folders, ``train/CLASS/*`` and ``val/CLASS/*`` as for torchvision's ImageFolder, at 224 pixels.

The last fiftieth of each class's training files is the validation split, never trained on; ``val`` is the test split.
Both are decoded into the cache on first use; training images are decoded whenever they are needed.
Every split alternates between the classes, so that its leading images are balanced.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import chain, zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Literal, overload

from zoo.datasets.base import Dataset, Split, SplitName, check_split
from zoo.system.cache import cached, mapped
from zoo.system.errors import DataNotFound, IntegrityError, UsageError
from zoo.system.files import encoded, kind_of

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

SIZE, RESIZE = 224, 256  # resize the shorter side to RESIZE pixels, then crop the centre to SIZE
HELD_OUT = 50  # one in HELD_OUT training images of a class, and at least one, is for validation
FOLDERS: dict[str, str] = {"train": "train", "val": "test"}  # folder: split
ENDINGS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")  # torchvision's


@dataclass(frozen=True)
class Files:
    """Images that are not decoded yet: their paths, and labels int64 [N]."""

    name: str
    paths: tuple[Path, ...]
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def pixels(self, index: np.ndarray) -> np.ndarray:
        """The images at ``index`` [n], decoded now: uint8 [n, SIZE, SIZE, 3]."""
        import numpy as np

        return np.stack([centred(opened(self.paths[i])) for i in index])


@dataclass(frozen=True, kw_only=True)
class ImageFolder(Dataset):
    """The folder ``root``, with ``classes`` in alphabetical order, or with super-classes.

    Attributes:
        ranges: the first and the last folder of each super-class, by their places in alphabetical order; empty: every
            folder is a class.
        folders: with ``ranges``, the number of folders that there must be.
    """

    ranges: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    folders: int = 0
    files: Mapping[str, Files] = field(default_factory=dict)

    def load(self, data: Path | str | None = None, *, offline: bool = False) -> ImageFolder:
        """The image folder with the paths of its splits; nothing is decoded yet.

        Raises:
            DataNotFound: there is no folder, a class has too few images, or train and val have different classes; with
                super-classes, another number of folders.
        """
        root = self.named_folder(data)
        if root is None:
            raise DataNotFound(
                f"set {self.variable}, or pass --data, to a folder with images in train/CLASS and val/CLASS"
            )
        names = {folder: self._names(root / folder) for folder in FOLDERS}
        for folder, other in (("val", "train"), ("train", "val")):
            missing = sorted({*names[other]} - {*names[folder]})
            if missing:
                more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
                raise DataNotFound(
                    f"'{root / folder}' lacks the class '{missing[0]}'{more}: train and val need the same classes"
                )
        train, val = (self._classes(root / folder, names[folder]) for folder in FOLDERS)
        kept, held_out = {}, {}
        for name, paths in train.items():
            cut = len(paths) - max(1, len(paths) // HELD_OUT)
            if not cut:
                raise DataNotFound(
                    f"class '{name}' in '{root / 'train'}' has only one image: add another for validation"
                )
            kept[name], held_out[name] = paths[:cut], paths[cut:]
        parts = {"train": kept, "validation": held_out, "test": val}
        files = {name: _alternating(name, list(part.values())) for name, part in parts.items()}
        sizes = {name: len(part) for name, part in files.items()}
        return replace(self, root=root, classes=tuple(map(_plain, train)), sizes=sizes, files=files)

    @overload  # type: ignore[override]  # training images stay files
    def split(self, name: Literal["train"]) -> Files: ...
    @overload
    def split(self, name: Literal["validation", "test"]) -> Split: ...
    def split(self, name: SplitName) -> Split | Files:
        check_split(name)
        if self.root is None:
            raise DataNotFound(f"{self.title} has no images before it is loaded: call load()")
        files = self.files[name]
        return files if name == "train" else _decoded(files, self.root)

    def _names(self, folder: Path) -> list[str]:
        """The names of the folders in ``folder``, in alphabetical order."""
        if not folder.is_dir():
            raise DataNotFound(
                f"there is no folder '{folder}': an image folder has images in train/CLASS and val/CLASS"
            )
        names = sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
        if odd := [name for name in names if not _plain(name).isprintable()]:
            raise DataNotFound(f"'{folder}' has a class called {odd[0]!r}: class names must be printable")
        if not names:
            raise DataNotFound(f"'{folder}' holds no folders: it needs a folder of images for each class")
        if self.ranges and len(names) != self.folders:
            raise DataNotFound(
                f"'{folder}' holds {len(names):,} folders: {self.title} needs all {self.folders:,} of ImageNet's "
                "synsets, since their places in alphabetical order are the class indices"
            )
        return names

    def _classes(self, folder: Path, names: Sequence[str]) -> dict[str, list[Path]]:
        """The image files of every class; ``names`` are those of the folders in ``folder``."""
        ranges = self.ranges or {name: (place, place) for place, name in enumerate(names)}
        return {
            name: _mixed([_images(folder / one) for one in names[first : last + 1]])
            for name, (first, last) in ranges.items()
        }


DATASET = IMAGEFOLDER = ImageFolder(
    name="imagefolder",
    title="an image folder",
    image_size=SIZE,
    mean=(0.485, 0.456, 0.406),  # ImageNet's
    std=(0.229, 0.224, 0.225),
    variable="ZOO_IMAGENET",
)


def _plain(name: str) -> str:
    """The name of a folder as text, also if it was read without a UTF-8 locale."""
    return encoded(name).decode(errors="replace")


def _images(folder: Path) -> list[Path]:
    """The image files in the class folder ``folder`` in alphabetical order.

    Raises:
        DataNotFound: there are none.
        UsageError: a link in it leads to a folder that it is in.
    """
    paths: list[Path] = []
    for place, folders, names in os.walk(folder, followlinks=True):
        above = [one.resolve() for one in (Path(place), *Path(place).parents)]
        for one in folders:
            if (Path(place) / one).resolve() in above:
                raise UsageError(f"the link '{Path(place) / one}' leads back to a folder that it is in: remove it")
        paths += [Path(place) / name for name in names if name.lower().endswith(ENDINGS) and not name.startswith(".")]
    paths.sort()
    if not paths:
        raise DataNotFound(f"'{folder}' holds no images ({', '.join(ENDINGS)})")
    return paths


def _mixed(folders: Sequence[Sequence[Path]]) -> list[Path]:
    """The images of all ``folders``, each folder's spread evenly over the list, so that any part has its share."""
    return [path for _, path in sorted((k / len(paths), path) for paths in folders for k, path in enumerate(paths))]


def _alternating(name: str, classes: Sequence[Sequence[Path]]) -> Files:
    """The first image of every class, then the second of every class, and so on."""
    import numpy as np

    labelled = [[(path, label) for path in paths] for label, paths in enumerate(classes)]
    pairs = [pair for pair in chain.from_iterable(zip_longest(*labelled)) if pair is not None]
    return Files(name, tuple(path for path, _ in pairs), np.array([label for _, label in pairs], np.int64))


def opened(path: Path) -> Image:
    """The RGB image in the file ``path``.

    Raises:
        IntegrityError: the file is damaged, not an image, or has more than 8 bits a channel, which Pillow would clip.
    """
    from PIL import Image

    if kind := kind_of(path):
        raise IntegrityError(f"'{path}' is not a readable image: it is {kind}")
    try:
        with Image.open(path) as image:
            deep = image.mode in ("F", "I") or image.mode.startswith("I;")
            if not deep:
                return image.convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise IntegrityError(f"'{path}' is not a readable image: {str(error).splitlines()[0]}") from None
    raise IntegrityError(f"'{path}' has more than 8 bits a channel: save it with 8")


def centred(image: Image) -> np.ndarray:
    """uint8 [SIZE, SIZE, 3]: the shorter side is resized, then the centre cropped, as torchvision evaluates models."""
    import numpy as np
    from torchvision.transforms import functional

    return np.asarray(functional.center_crop(functional.resize(image, RESIZE), [SIZE, SIZE]))


def _decoded(files: Files, root: Path) -> Split:
    """The images of ``files``, decoded into the cache once."""
    import numpy as np

    def decode(folder: Path) -> None:
        np.save(folder / "labels.npy", files.labels)
        with open(folder / "images.npy", "wb") as out, ThreadPoolExecutor(os.cpu_count()) as pool:
            shape = (len(files), SIZE, SIZE, 3)
            np.lib.format.write_array_header_1_0(out, {"descr": "|u1", "fortran_order": False, "shape": shape})
            for start in range(0, len(files), 256):  # in chunks: all images may not fit into memory
                for image in pool.map(lambda path: centred(opened(path)), files.paths[start : start + 256]):
                    out.write(image.tobytes())

    folder = cached(_key(files, root), decode)
    return Split(files.name, mapped(folder / "images.npy", decode), mapped(folder / "labels.npy", decode))


def _key(files: Files, root: Path) -> str:
    """The cache key: it changes with the files and labels. No image is read."""
    facts = []
    for path, label in zip(files.paths, files.labels.tolist(), strict=True):
        try:
            state = path.stat()
        except OSError as error:
            raise IntegrityError(f"'{path}' cannot be read ({error.strerror}): mend or remove it") from None
        facts.append((path.relative_to(root).as_posix(), state.st_size, state.st_mtime_ns, label))
    digest = hashlib.sha256(json.dumps([SIZE, RESIZE, facts]).encode()).hexdigest()
    return f"imagefolder-{files.name}-{digest[:16]}"
