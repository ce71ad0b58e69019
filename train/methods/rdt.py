"""RDT, training on robust data: Ilyas et al. 2019, arXiv:1905.02175, section 3.1."""

from __future__ import annotations

import copy
import hashlib
import json
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from zoo.attacks.ball import steepest
from zoo.attacks.pulse import pulse
from zoo.system.cache import cached, mapped
from zoo.system.errors import UsageError
from zoo.train.data.augment import PAD, padded
from zoo.train.data.images import InMemory, Streamed
from zoo.train.methods.method import Needs
from zoo.train.methods.natural import Natural
from zoo.train.teachers.teacher import Teacher

BATCH = 500


class Rdt(Natural):
    """CE(S(x_r), y) on clean images, where x_r looks to the teacher as x does: argmin ||g_T(x_r) - g_T(x)||_2, eq. 4 of
    Vaishnavi et al. 2022.

    g_T are penultimate features. The search starts from another training image, drawn at random, and takes ``steps``
    steps of size ``step`` in l2 along the gradient. So x_r has only what the teacher sees. The images are made once
    and cached, which takes a forward and a backward pass of the teacher for each step and image.
    """

    name: Literal["rdt"] = "rdt"
    steps: int = Field(1000, ge=1)
    step: float = Field(0.1, gt=0, description="in l2, on the scale of [0, 1] pixels")
    takes_teacher: ClassVar[bool] = True

    @property
    def needs(self) -> Needs:
        return Needs(clean=False)

    def images(self, source: InMemory | Streamed, teacher: Teacher | None) -> InMemory | Streamed:
        if not isinstance(source, InMemory):
            raise UsageError("method 'rdt' makes new images, which are kept in memory: choose a smaller data set")
        assert teacher is not None
        plain = source.images[:, PAD:-PAD, PAD:-PAD]  # uint8 [N, H, W, 3]
        made = copy.copy(source)
        made.images = padded(torch.from_numpy(self._made(plain, teacher)).to(plain.device))
        return made

    def _made(self, plain: Tensor, teacher: Teacher) -> np.ndarray:
        """uint8 [N, H, W, 3]. Each batch is cached when it is done, so that it is made once even if the run stops."""
        order = torch.randperm(len(plain), generator=torch.Generator().manual_seed(0)).to(plain.device)
        made, key = [], self._key(plain, teacher)
        for rows in torch.arange(len(plain), device=plain.device).split(BATCH):
            x, start = (plain[index].permute(0, 3, 1, 2).float() / 255 for index in (rows, order[rows]))

            def write(folder: Path, x: Tensor = x, start: Tensor = start) -> None:
                images = (255 * self.robust(x, start, teacher)).round().byte().permute(0, 2, 3, 1)
                np.save(folder / "images.npy", images.cpu().numpy())

            made.append(mapped(cached(f"robust-data-{key}/{int(rows[0])}", write) / "images.npy", write))
            pulse((int(rows[-1]) + 1) / len(plain))
        return np.concatenate(made)

    def robust(self, x: Tensor, start: Tensor, teacher: Teacher) -> Tensor:
        """x_r [N, 3, H, W] for the images x [N, 3, H, W], from the images ``start``."""
        represent, x_r = teacher.model.penultimate, start
        with torch.no_grad():
            wanted = represent(x)
        for _ in range(self.steps):
            x_r = x_r.detach().requires_grad_()
            distance = torch.linalg.vector_norm(represent(x_r) - wanted, dim=1).sum()
            gradient = torch.autograd.grad(distance, x_r)[0]
            x_r = (x_r.detach() - self.step * steepest(gradient, "l2")).clamp_(0, 1)
        return x_r.detach()

    def _key(self, plain: Tensor, teacher: Teacher) -> str:
        from zoo.weights.load import weights_sha256

        images = hashlib.sha256(plain.contiguous().cpu().numpy().data).hexdigest()
        facts = [weights_sha256(teacher.model), images, self.steps, self.step]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]
