"""Sources of training images: in memory on the device, or decoded from files on demand."""

from __future__ import annotations

import os
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from zoo.datasets.base import Split
from zoo.datasets.imagefolder import Files
from zoo.train.data.augment import crop_and_flip, padded
from zoo.train.data.crop import random_crop


class InMemory:
    """The first ``count`` images of ``split`` (by default all) as uint8 on ``device``, cropped and flipped there."""

    def __init__(self, split: Split, device: torch.device, count: int | None = None) -> None:
        n = count or len(split)
        self.images = padded(torch.from_numpy(split.images[:n].copy()).to(device))
        self.labels = torch.from_numpy(split.labels[:n].copy()).to(device)

    def __len__(self) -> int:
        return len(self.labels)

    def expect(self, index: Tensor, generator: torch.Generator) -> None:
        """Nothing to prepare: the images are in memory."""

    def augmented(self, index: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """The images at ``index`` [B], newly augmented: float32 [B, C, H, W] in [0, 1], and labels int64 [B].

        Args:
            generator: on the device of the images; the only source of randomness.
        """
        return crop_and_flip(self.images, index, generator), self.labels[index]


class Streamed:
    """The first ``count`` files of ``split`` (by default all), decoded by threads, cropped at random and flipped.

    Each image has its own seed, so crops do not depend on threads or order.
    """

    def __init__(self, split: Files, device: torch.device, count: int | None = None) -> None:
        n = count or len(split)
        self.paths = split.paths[:n]
        self.labels = torch.from_numpy(split.labels[:n].copy()).to(device)
        self.device = device
        self._pool = ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="decode")
        self._begun: tuple[list[tuple[int, int]], list[Future[np.ndarray]]] = ([], [])

    def __len__(self) -> int:
        return len(self.labels)

    def expect(self, index: Tensor, generator: torch.Generator) -> None:
        """Start to decode the images of the next call of ``augmented`` with an equal index and an equally seeded
        generator."""
        asked = self._drawn(index, generator)
        self._begun = asked, self._submitted(asked)

    def augmented(self, index: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """The images at ``index`` [B], newly augmented: float32 [B, 3, 224, 224] in [0, 1], and labels int64 [B].

        Args:
            generator: on the device; the only source of randomness.

        Raises:
            IntegrityError: a file is damaged or is not an image.
        """
        asked, (expected, futures) = self._drawn(index, generator), self._begun
        if asked == expected:
            self._begun = ([], [])
        else:
            futures = self._submitted(asked)
        pixels = torch.from_numpy(np.stack([future.result() for future in futures]))  # [B, 224, 224, 3]
        return pixels.to(self.device).permute(0, 3, 1, 2).float().div_(255), self.labels[index]

    def _drawn(self, index: Tensor, generator: torch.Generator) -> list[tuple[int, int]]:
        """The index and the seed of each image."""
        seeds = torch.randint(2**62, (len(index),), generator=generator, device=generator.device)
        return list(zip(index.tolist(), seeds.tolist(), strict=True))

    def _submitted(self, asked: list[tuple[int, int]]) -> list[Future[np.ndarray]]:
        return [self._pool.submit(random_crop, self.paths[place], seed) for place, seed in asked]


def source_of(split: Split | Files, device: torch.device, count: int | None = None) -> InMemory | Streamed:
    """The source of training images for the train split of a data set."""
    return (Streamed if isinstance(split, Files) else InMemory)(split, device, count)  # type: ignore[arg-type]
