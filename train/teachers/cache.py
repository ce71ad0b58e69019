"""Cached answers: a fixed number of augmented versions of each image, and a teacher's answers on them.

A teacher is often ten times as large as its student, and its forward pass is then most of a training step. The cache
serves all phases, students and seeds.
"""

from __future__ import annotations

import hashlib
import json
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from zoo.system.cache import cached, mapped
from zoo.train.data.images import InMemory
from zoo.train.teachers.teacher import Answer, Teacher

BATCH = 500


class Versions:
    """``count`` augmented versions of each image of ``source``: row v * N + i is version v of image i.

    They are uint8 on the device of the source and always drawn with seed 0.
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
        """A random version of each image at ``index`` [B], as rows [B]."""
        version = torch.randint(self.count, index.shape, generator=generator, device=index.device)
        return version * len(self.labels) + index

    def __getitem__(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Images float32 [B, C, H, W] in [0, 1], in channels_last strides, and labels [B]."""
        x = self.images[rows].float().div_(255).contiguous(memory_format=torch.channels_last)
        return x, self.labels[rows % len(self.labels)]


class CachedAnswers:
    """A teacher's answers on all ``versions``, as memory-mapped float16 files: logits [R, K] and unit attention maps
    [R, n_t, P] of all its convolutions. They are computed unless the cache already has them.

    Args:
        precision: the precision of ``autocast``; each precision has a separate cache.
    """

    def __init__(
        self, teacher: Teacher, versions: Versions, autocast: AbstractContextManager, *, precision: str
    ) -> None:
        self.layers = teacher.layers

        def write(folder: Path) -> None:
            _write(folder, teacher, versions, autocast)

        root = cached(f"lessons-{_key(teacher, versions, precision)}", write)
        self.logits, self.maps = (mapped(root / f"{name}.npy", write) for name in ("logits", "maps"))

    def answer(self, rows: Tensor, layers: list[str] | None) -> Answer:
        """The answer on the versions at ``rows`` [B], with the maps of ``layers``; without maps for None."""
        where = rows.cpu().numpy()
        logits = torch.from_numpy(self.logits[where]).to(rows.device).float()
        if layers is None:
            return Answer(logits, None)
        places = [self.layers.index(layer) for layer in layers]
        maps = self.maps[where] if layers == self.layers else self.maps[where[:, None], places]
        return Answer(logits, torch.from_numpy(maps).to(rows.device).float())


def _key(teacher: Teacher, versions: Versions, precision: str) -> str:
    from zoo.weights.load import weights_sha256

    images = hashlib.sha256(versions.images.permute(0, 2, 3, 1).contiguous().cpu().numpy().data).hexdigest()
    facts = [weights_sha256(teacher.model), images, teacher.size, teacher.layers, precision]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


def _write(to: Path, teacher: Teacher, versions: Versions, autocast: AbstractContextManager) -> None:
    """Write all answers to the folder ``to``; afterwards the teacher has the taps that it had."""
    tapped = None if teacher.taps is None else teacher.taps.names
    teacher.tap(teacher.layers)
    try:
        with open(to / "logits.npy", "wb") as logits, open(to / "maps.npy", "wb") as maps:
            for part in torch.arange(len(versions), device=versions.labels.device).split(BATCH):
                with autocast:
                    answer = teacher(versions[part][0])
                assert answer.maps is not None
                for file, value in ((logits, answer.logits), (maps, answer.maps)):
                    if not file.tell():  # not a memory map: a full disk would kill the process
                        shape = (len(versions), *value.shape[1:])
                        header = {"descr": "<f2", "fortran_order": False, "shape": shape}
                        np.lib.format.write_array_header_1_0(file, header)
                    file.write(value.half().cpu().contiguous().numpy().tobytes())
    finally:
        teacher.untap()
        if tapped is not None:
            teacher.tap(tapped)
