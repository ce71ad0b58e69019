"""Accuracy over ε: how accuracy falls as the attack grows (RNAS-CL, Figure 3).

Every ε is measured separately. An image that breaks at a small ε may survive at a larger one, because FGSM overshoots
and PGD takes other steps. So no result is reused at another ε, and a curve may rise. Images that are wrong without an
attack are not attacked: they count as wrong at every ε.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from zoo.datasets.base import Split
from zoo.evaluation.evaluate import evaluate_split
from zoo.evaluation.flags import SQUARE_GAIN, disagree
from zoo.evaluation.ledger import Counts
from zoo.evaluation.protocols import CORRUPTED, DATASET, PROTOCOLS, STATED, Protocol, protocol
from zoo.evaluation.statistics import Accuracy
from zoo.evaluation.threat import LINF_8, Norm, ThreatModel
from zoo.system.errors import UsageError

GRIDS: dict[Norm, tuple[float, ...]] = {
    "linf": (*(level / 255 for level in (0, 2, 4, 6, 8, 10, 12, 14, 16, 20, 24)), 0.1),
    "l2": (0.0, 0.125, 0.25, 0.375, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0),
}
ATTACKS = ("fgsm", "pgd20")


@dataclass(frozen=True)
class Point:
    """The accuracy at one ε; ``eps`` and ``step`` are on the scale of [0, 1] pixels; no ``step`` means None."""

    eps: float
    step: float | None
    accuracy: Accuracy


def sweep(
    model: nn.Module,
    split: Split,
    *,
    attacks: Iterable[str] = ATTACKS,
    norm: Norm = "linf",
    eps: Iterable[float] | None = None,
    n: int = 1000,
    progress: Callable[[str, int, int], None] = lambda attack, done, total: None,
    flags: set[str] | None = None,
    **options: Any,
) -> dict[str, tuple[Point, ...]]:
    """Attack the first ``n`` images of ``split`` at every ε.

    Args:
        model: a float32 classifier of images [N, 3, H, W] in [0, 1], in any mode; it is not changed.
        attacks: names of protocols; only their norm, ε, step, split and n change.
        eps: in ``norm`` on the scale of [0, 1] pixels, in any order; by default from ``GRIDS``.
        progress: called with an attack's name, the images done over all ε, and their total.
        flags: filled with why the accuracies may be too high; see :func:`zoo.evaluation.evaluate.evaluate`.
        options: ``batch_size`` and ``device`` of :func:`zoo.evaluation.evaluate.evaluate`.

    Returns:
        for each attack, one point per ε in ascending order; at ε = 0 it is the clean accuracy.

    Raises:
        UsageError: there is no ε, or one is negative, infinite or, in l-infinity, above 1; an attack is unknown or
            "none"; ``n`` is below 1.
    """
    grid = sorted(set(GRIDS[norm] if eps is None else eps))
    check_grid(grid, norm)
    if n < 1:
        raise UsageError(f"a sweep needs at least one image, not {n}")
    bases = attacks_called(attacks)
    total = min(n, len(split)) * len(grid)
    curves: dict[str, tuple[Point, ...]] = {}
    measured: list[tuple[Protocol, np.ndarray]] = []
    gained = False  # Square, on gradient attacks
    for base in bases:
        points: list[Point] = []
        for level in grid:
            chosen = at(base, level, norm).model_copy(update={"split": split.name, "n": n})
            before = len(points) * total // len(grid)
            counts: Counts = {}
            bits = evaluate_split(
                model,
                split,
                chosen,
                progress=lambda done, _, name=base.name, before=before: progress(name, before + done, total),
                counts=counts,
                flags=flags,
                **options,
            )
            gained |= counts.get("square", 0.0) > SQUARE_GAIN * len(bits)
            points.append(Point(level, chosen.step, Accuracy.of(bits)))
            measured.append((chosen, bits))
        curves[base.name] = tuple(points)
    if flags is not None and (gained or disagree(measured)):
        flags.add("unreliable")
    return curves


def attacks_called(names: Iterable[str]) -> list[Protocol]:
    """The protocols of these names, each once; UsageError if there are none, or one of them does not attack."""
    names = list(names)
    for name in names:
        base = protocol(name).on(DATASET).under(LINF_8).name
        if base != name:
            raise UsageError(f"a sweep varies eps, in the norm of --norm: name the attack '{base}', not '{name}'")
    bases = list(dict.fromkeys(PROTOCOLS[name] for name in names))
    fixed = [base.name for base in bases if STATED in base.name]
    if fixed:
        raise UsageError(f"a sweep needs steps that grow with eps: leave out {', '.join(fixed)}")
    idle = [base.name for base in bases if base.attack in ("none", *CORRUPTED)]
    if idle or not bases:
        raise UsageError(f"a sweep needs attacks, such as {' and '.join(ATTACKS)}, not {', '.join(idle) or 'none'}")
    return bases


def check_grid(grid: Sequence[float], norm: Norm) -> None:
    """Raise UsageError unless ``grid`` has at least one ε, and all are valid in ``norm``."""
    if not grid or not all(0 <= level <= (1 if norm == "linf" else sys.float_info.max) for level in grid):  # no NaN
        limits = "from 0 to 1" if norm == "linf" else "0 or more"
        raise UsageError(f"a sweep needs at least one eps, each {limits} on the scale of pixels, not {list(grid)}")


def at(base: Protocol, eps: float, norm: Norm = "linf") -> Protocol:
    """``base`` with another norm and ε (:meth:`zoo.evaluation.protocols.Protocol.under`); "clean" if ε is 0."""
    return PROTOCOLS["clean"] if eps == 0 else base.under(ThreatModel(norm=norm, eps=eps))
