"""Lessons learnt once: a fixed number of augmented versions of every image, and what a teacher says of them.

A teacher is often ten times the student's size, and asking it about every batch is then most of a training step.
With a few versions of each image drawn once, its answers can be kept and shared by all phases, students and seeds.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from zoo.train.images import InMemory
from zoo.train.teacher import Lesson, Teacher

BATCH = 500


class Versions:
    """``count`` augmented versions of every image of ``source``: row v * N + i is version v of image i.

    Held as uint8 on the device of the source, ``count`` times its size; drawn from seed 0, whatever the run's.
    """

    def __init__(self, source: InMemory, count: int) -> None:
        generator = torch.Generator(source.labels.device).manual_seed(0)
        everything = torch.arange(len(source), device=source.labels.device)
        parts = [
            source.augmented(part, generator)[0].mul_(255).round_().byte()
            for _ in range(count)
            for part in everything.split(BATCH)
        ]
        self.images, self.labels, self.count = torch.cat(parts), source.labels, count

    def __len__(self) -> int:
        return len(self.images)

    def rows(self, index: Tensor, generator: torch.Generator) -> Tensor:
        """A version drawn for each image at ``index`` [B], as rows [B]."""
        version = torch.randint(self.count, index.shape, generator=generator, device=index.device)
        return version * len(self.labels) + index

    def __getitem__(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Images float32 [B, C, H, W] in [0, 1], in channels_last strides, and labels [B]."""
        x = self.images[rows].float().div_(255).contiguous(memory_format=torch.channels_last)
        return x, self.labels[rows % len(self.labels)]


class LessonBook:
    """A teacher's lessons on all ``versions``, as memory-mapped float16 files: logits [R, K] and, for every
    convolution of the teacher, unit attention maps [R, n_t, P]. They are computed when no complete book is found.

    Args:
        folder: where books are kept; this one's name is a hash of what it depends on.
        autocast: the precision that the teacher answers in.
    """

    def __init__(self, teacher: Teacher, versions: Versions, folder: Path, autocast: AbstractContextManager) -> None:
        self.layers = teacher.layers
        root = folder / _key(teacher, versions)
        if not (root / "complete").exists():
            _write(root, teacher, versions, autocast)
        self.logits = np.load(root / "logits.npy", mmap_mode="r")
        self.maps = np.load(root / "maps.npy", mmap_mode="r")

    def lesson(self, rows: Tensor, layers: list[str] | None) -> Lesson:
        """The lesson on the versions at ``rows`` [B], with the maps of ``layers`` (None: without maps)."""
        where = rows.cpu().numpy()
        logits = torch.from_numpy(self.logits[where]).to(rows.device).float()
        if layers is None:
            return Lesson(logits, None)
        maps = torch.from_numpy(self.maps[where])
        if layers != self.layers:
            maps = maps[:, [self.layers.index(layer) for layer in layers]]
        return Lesson(logits, maps.to(rows.device).float())


def _key(teacher: Teacher, versions: Versions) -> str:
    from zoo.weights import weights_sha256

    images = hashlib.sha256(versions.images.permute(0, 2, 3, 1).contiguous().cpu().numpy().data).hexdigest()
    facts = [weights_sha256(teacher.model), images, teacher.size, teacher.layers]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


def _write(root: Path, teacher: Teacher, versions: Versions, autocast: AbstractContextManager) -> None:
    """All lessons, beside ``root`` and renamed into place: a kill leaves no half book under its name."""
    root.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f"{root.name}.", dir=root.parent))
    teacher.tap(teacher.layers)
    try:
        logits = maps = None
        for part in torch.arange(len(versions), device=versions.labels.device).split(BATCH):
            with autocast:
                lesson = teacher(versions[part][0])
            assert lesson.maps is not None
            if logits is None or maps is None:
                shapes = (len(versions), *lesson.logits.shape[1:]), (len(versions), *lesson.maps.shape[1:])
                logits, maps = (
                    np.lib.format.open_memmap(scratch / f"{name}.npy", "w+", np.float16, shape)
                    for name, shape in zip(("logits", "maps"), shapes, strict=True)
                )
            logits[part.cpu()] = lesson.logits.half().cpu()
            maps[part.cpu()] = lesson.maps.half().cpu()
        for array in (logits, maps):
            assert array is not None
            array.flush()
        (scratch / "complete").touch()
        if not root.exists():  # else another process was first, and has the same
            os.replace(scratch, root)
    finally:
        teacher.untap()
        shutil.rmtree(scratch, ignore_errors=True)
