"""CIFAR-10-C: the test images of CIFAR-10 in 15 kinds of corruption x 5 severities (Hendrycks and Dietterich 2019).

A file ``KIND.npy`` has the test images at severities 1 to 5, one block after the other, and ``labels.npy`` the labels.
They are for evaluation only, and not a data set of the table. Neither torch nor numpy is imported with this file.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from zoo.datasets.base import Split
from zoo.system.errors import DataNotFound, IntegrityError
from zoo.system.files import kind_of

if TYPE_CHECKING:
    import numpy as np

VARIABLE = "ZOO_CIFAR10_C"
FOLDER = "CIFAR-10-C"
SEVERITIES = 5
WHERE = f"set {VARIABLE} to the folder with the .npy files of {FOLDER} (zenodo.org/records/2535967)"


@dataclass(frozen=True)
class Cifar10C:
    """The files of CIFAR-10-C in a folder, checked by :func:`load`: uint8 [5 N, H, W, 3] each, memory-mapped."""

    files: dict[str, np.ndarray]
    n: int  # images of a severity

    def images(self, kind: str, severity: int) -> np.ndarray:
        """The test images in a kind of corruption at a severity from 1 to 5: uint8 [N, H, W, 3]."""
        return self.files[kind][(severity - 1) * self.n : severity * self.n]

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the pixels of all kinds, in order (2.3 GB)."""
        import numpy as np

        digest = hashlib.sha256()
        for images in self.files.values():
            digest.update(np.ascontiguousarray(images).data)
        return digest.hexdigest()


def load(kinds: Sequence[str], test: Split) -> Cifar10C:
    """The files of these ``kinds``, from the folder in ``ZOO_CIFAR10_C``, else ``CIFAR-10-C`` in ``ZOO_DATA``.

    Args:
        test: the test split of CIFAR-10, which the images and labels must be in the order of.

    Raises:
        DataNotFound: there is no such folder, or a file is not in it.
        IntegrityError: a file is not an array of the right shape and type, or the labels are not those of ``test``.
    """
    import numpy as np

    folder = _folder()
    n = len(test)
    labels = _array(folder / "labels.npy", (SEVERITIES * n,))
    if not np.array_equal(labels, np.tile(test.labels, SEVERITIES)):
        raise IntegrityError(
            f"'{folder / 'labels.npy'}' does not have the labels of CIFAR-10's test images, five times in their order: "
            f"fetch {FOLDER} again"
        )
    shape = (SEVERITIES * n, *test.images.shape[1:])
    return Cifar10C({kind: _array(folder / f"{kind}.npy", shape, np.uint8) for kind in kinds}, n)


def _folder() -> Path:
    given, home = os.environ.get(VARIABLE), os.environ.get("ZOO_DATA")
    folder = Path(given) if given else Path(home) / FOLDER if home else None
    if folder is None or not folder.is_dir():
        raise DataNotFound(f"{FOLDER} was not found{f': {folder!s} is not a folder' if folder else ''}: {WHERE}")
    return folder


def _array(path: Path, shape: tuple[int, ...], kind: type | None = None) -> np.ndarray:
    """The array in a file, as a read-only memory map; of integers if ``kind`` is None."""
    import numpy as np

    if not path.exists():
        raise DataNotFound(f"'{path.parent}' has no file '{path.name}': {WHERE}")
    if trouble := kind_of(path):
        raise IntegrityError(f"'{path}' is not a file of {FOLDER}: it is {trouble}")
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        raise IntegrityError(f"'{path}' is not a readable .npy file: fetch {FOLDER} again") from None
    fits = array.dtype == kind if kind else np.issubdtype(array.dtype, np.integer)
    if array.shape != shape or not fits:
        wanted = f"{np.dtype(kind).name if kind else 'integers'} {list(shape)}"
        raise IntegrityError(f"'{path}' has {array.dtype} {list(array.shape)}, but {FOLDER} has {wanted}")
    return array
