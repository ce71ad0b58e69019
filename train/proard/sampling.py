"""Which sub-nets a step trains: the smallest that is available, and some drawn at random."""

from __future__ import annotations

import numpy as np

from zoo.train.recipes.schema import Supernet
from zoo.train.spaces.dynamic import Genes, Space


def least(space: Space, settings: Supernet, progress: float) -> Genes:
    """The smallest choice of every gene that is available when ``progress`` of the run is done, [1, G]."""
    begin, end = settings.opening
    share = 1.0 if progress >= end else 0.0 if progress <= begin else (progress - begin) / (end - begin)
    found = space.largest
    for index, gene in enumerate(space.genes):
        kind = gene.name.rpartition(".")[2]
        if kind in settings.elastic:
            last = len(gene.choices) - 1
            limited = settings.choices is not None and kind == settings.elastic[-1]
            floor = max(0, last + 1 - (settings.choices or 0)) if limited else 0
            found[0, index] = last - round(share * (last - floor))
    return found


def drawn(space: Space, settings: Supernet, progress: float, rng: np.random.Generator) -> Genes:
    """The sub-nets of a step without the largest, canonical [n, G]: the smallest first, if the rule has it."""
    from_, to = least(space, settings, progress), space.largest + 1
    rows = rng.integers(from_, to, size=(settings.random, to.shape[1]))
    return space.canonical(np.concatenate([from_, rows]) if settings.smallest else rows)
