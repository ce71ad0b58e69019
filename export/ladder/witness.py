"""Whether an engine answers the same again: some of what it was asked is asked once more, of a freshly opened one.

An engine is a function of the image: its answers do not depend on what it was asked before, on the other images of the
batch, or on chance. One that keeps state can answer an attacked image from memory, and one that is random gives a
walk no direction; what an attack finds in either means nothing.

This finds randomness, a dependence on the batch or on the order, and state that ends with the engine. It cannot find
state that outlives it, as in a file or on a device, nor an engine that has learned which images it will be asked.
"""

from __future__ import annotations

from threading import Lock

import numpy as np
import torch
from torch import Tensor

from zoo.export.engines.interface import Engine

KEPT = 256  # images
BATCH = 64


class Witness(Engine):
    """``engine``, and a sample of the images that it was given with the logits that it returned.

    Every image is as likely to be in it (reservoir sampling), so that the late steps of a walk are as well as the early
    ones.
    """

    def __init__(self, engine: Engine, seed: int) -> None:
        super().__init__(lambda images: engine(images).numpy(), engine.shape, engine.facts)
        self.engine, self.rng, self.seen = engine, np.random.default_rng(seed), 0
        self.kept: dict[int, tuple[Tensor, Tensor]] = {}  # by place: image [C, H, W], logits [classes]
        self.noting = Lock()

    def __call__(self, images: Tensor | np.ndarray) -> Tensor:
        """See :class:`zoo.export.engines.interface.Engine`."""
        logits = self.engine(images)
        with self.noting:
            order = self.seen + np.arange(len(logits))
            places = np.where(order < KEPT, order, self.rng.integers(order + 1))
            for row in np.flatnonzero(places < KEPT):
                self.kept[int(places[row])] = torch.as_tensor(images[row]).clone(), logits[row].clone()
            self.seen += len(logits)
        return logits

    def changed(self, fresh: Engine, allowed: float) -> float:
        """The share of the kept images that ``fresh`` gives other logits, by more than ``allowed``; they are forgotten.

        They are asked in random order, so that each is in another batch than before.
        """
        kept = [self.kept[i] for i in self.rng.permutation(len(self.kept))]
        self.kept, self.seen = {}, 0
        if not kept:
            return 0.0
        images, before = (torch.stack(parts) for parts in zip(*kept, strict=True))
        again = torch.cat([fresh(part) for part in images.split(BATCH)])
        difference = (again.nan_to_num() - before.nan_to_num()).abs().amax(1)  # NaN again is the same answer
        return (difference > allowed).double().mean().item()
