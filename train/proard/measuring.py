"""Measurement of the sub-nets that the predictor learns from, on held-out training images."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from zoo.datasets.base import Dataset
from zoo.evaluation.evaluate import evaluate_split
from zoo.evaluation.protocols import PROTOCOLS
from zoo.system.errors import UsageError
from zoo.train.proard.dynamic import Dynamic
from zoo.train.proard.labelled import USUAL, Labelling, Labels
from zoo.train.spaces.dynamic import Genes, Space


def drawn(space: Space, n: int, seed: int) -> Genes:
    """The extremes of the space and ``n - 2`` random sub-nets, all different: [n, G], or fewer in a small space."""
    rng = np.random.default_rng(seed)
    rows = np.concatenate([space.smallest, space.largest, space.sample(4 * n, rng)])
    _, first = np.unique(space.canonical(rows), axis=0, return_index=True)
    return space.canonical(rows)[np.sort(first)][:n]


def measured(net: Dynamic, genes: Genes, dataset: Dataset, labelling: Labelling = USUAL) -> tuple[float, float]:
    """Clean and PGD accuracy of the sub-net ``genes`` [G], under the threat model of ``net``."""
    model = net.cut(genes, dataset, images=labelling.calibration)
    split = dataset.split("validation")
    base, threat = {"split": "validation", "n": labelling.images}, net.found.task.threat
    clean, pgd = (
        PROTOCOLS[key].model_copy(update={**base, **more}).under(threat)
        for key, more in (("clean", {}), ("pgd20", {"steps": labelling.steps}))
    )
    return tuple(float(evaluate_split(model, split, one).mean()) for one in (clean, pgd))  # type: ignore[return-value]


def label(
    net: Dynamic,
    genes: Genes,
    dataset: Dataset,
    path: Path,
    labelling: Labelling = USUAL,
    *,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Labels:
    """Measure all of ``genes`` [n, G] by :func:`measured`. The results are stored in ``path``, where a second call
    resumes.

    Raises:
        UsageError: ``path`` holds labels of other weights, or of another measurement.
    """
    space, sha256 = net.space, net.sha256
    how = f"PGD-{labelling.steps}, statistics of {labelling.calibration} images"
    known: dict[tuple[int, ...], tuple[float, float]] = {}
    if path.exists():
        before = Labels.load(path, space)
        if (before.weights_sha256, before.images, before.how) != (sha256, labelling.images, how):
            raise UsageError(f"'{path}' holds labels of other weights or of another measurement: remove it")
        accuracies = zip(before.clean.tolist(), before.robust.tolist(), strict=True)
        known = dict(zip(map(tuple, before.genes.tolist()), accuracies, strict=True))

    def labels() -> Labels:
        rows = [row for row in genes if tuple(row.tolist()) in known]
        clean, robust = np.array([known[tuple(row.tolist())] for row in rows]).T
        return Labels(np.stack(rows), clean, robust, labelling.images, sha256, how)

    for done, row in enumerate(genes, 1):
        key = tuple(row.tolist())
        if key not in known:
            known[key] = measured(net, row, dataset, labelling)
            labels().save(path, space)
        progress(done, len(genes))
    return labels()
