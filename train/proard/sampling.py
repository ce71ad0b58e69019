"""The sub-nets of a training step: the smallest that is available, and random ones."""

from __future__ import annotations

import numpy as np

from zoo.train.recipes.schema import Supernet
from zoo.train.spaces.dynamic import Genes, Space

CANDIDATES, LEAN = 512, 4.0  # of draw = "macs"


def least(space: Space, settings: Supernet, progress: float) -> Genes:
    """The smallest choice of every gene that is available when ``progress`` of the run is done, [1, G]."""
    begin, end = settings.opening
    share = 1.0 if progress >= end else 0.0 if progress <= begin else (progress - begin) / (end - begin)
    genes = space.largest
    for index, gene in enumerate(space.genes):
        kind = gene.name.rpartition(".")[2]
        if kind in settings.elastic:
            last = len(gene.choices) - 1
            limited = settings.choices is not None and kind == settings.elastic[-1]
            floor = max(0, last + 1 - (settings.choices or 0)) if limited else 0
            genes[0, index] = last - round(share * (last - floor))
    return genes


def drawn(space: Space, settings: Supernet, progress: float, rng: np.random.Generator) -> Genes:
    """The sub-nets of a step without the largest, canonical [n, G]; the smallest comes first, if it is trained."""
    low, high = least(space, settings, progress), space.largest + 1
    if settings.draw == "macs":
        rows = _evenly(space, low, high, settings.random, rng)
    else:
        rows = rng.integers(low, high, size=(settings.random, high.shape[1]))
    return space.canonical(np.concatenate([low, rows]) if settings.smallest else rows)


def _evenly(space: Space, low: Genes, high: Genes, n: int, rng: np.random.Generator) -> Genes:
    """``n`` sub-nets [n, G], those of many candidates that are nearest to budgets drawn evenly over log MACs.

    Candidates with all genes drawn evenly would crowd in the middle: here those of each lean to small or large choices.
    """
    lean = LEAN ** rng.uniform(-1, 1, (CANDIDATES, 1))
    share = rng.random((CANDIDATES, high.shape[1])) ** lean
    rows = np.minimum(low + (share * (high - low)).astype(low.dtype), high - 1)
    first, last = (float(np.log(space.macs(genes)[0])) for genes in (low, high - 1))
    budgets = rng.uniform(first, last, n)
    return rows[np.abs(np.log(space.macs(rows)) - budgets[:, None]).argmin(axis=1)]
