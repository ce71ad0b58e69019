"""Accuracy over ε: how a model fades as its attacker is allowed more (RNAS-CL, Figure 3).

Every ε is measured on its own. An image that breaks at a small ε may survive at a larger one, because FGSM overshoots
and PGD takes other steps, so nothing is carried from one ε to the next and a curve may rise. Only images that are
wrong without an attack are left alone: they count as wrong at every ε.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from zoo.datasets.base import Split
from zoo.evaluation.evaluate import evaluate_split
from zoo.evaluation.protocols import PROTOCOLS, Protocol, protocol
from zoo.evaluation.statistics import Accuracy
from zoo.evaluation.threat import Norm, ThreatModel
from zoo.system.errors import UsageError

GRIDS: dict[Norm, tuple[float, ...]] = {
    "linf": (*(level / 255 for level in (0, 2, 4, 6, 8, 10, 12, 14, 16, 20, 24)), 0.1),
    "l2": (0.0, 0.125, 0.25, 0.375, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0),
}
ATTACKS = ("fgsm", "pgd20")


@dataclass(frozen=True)
class Point:
    """The accuracy at one ε; ``eps`` and ``step`` are on the scale of [0, 1] pixels, no step where there is none."""

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
    **options: Any,
) -> dict[str, tuple[Point, ...]]:
    """Attack the first ``n`` images of ``split`` at every ε.

    Args:
        model: a float32 classifier of [0, 1] images; any mode, left as it is.
        attacks: names of protocols; all but their norm, ε, step, split and n stays.
        eps: in ``norm`` on the scale of [0, 1] pixels, in any order; by default those of ``GRIDS``.
        progress: called with an attack, the images done over all ε, and how many there are.
        options: ``batch_size`` and ``device`` of :func:`zoo.evaluation.evaluate.evaluate`.

    Returns:
        by attack, a point for every ε in ascending order; at ε = 0 it is the clean accuracy.

    Raises:
        UsageError: an ε is negative, infinite or, in l-infinity, above 1, there are none, or an attack is unknown or
            none.
    """
    grid = sorted(set(GRIDS[norm] if eps is None else eps))
    check_grid(grid, norm)
    if n < 1:
        raise UsageError(f"a sweep takes at least one image, not {n}")
    bases = attacks_called(attacks)
    total = min(n, len(split)) * len(grid)
    curves: dict[str, tuple[Point, ...]] = {}
    for base in bases:
        points: list[Point] = []
        for level in grid:
            chosen = at(base, level, norm).model_copy(update={"split": split.name, "n": n})
            before = len(points) * total // len(grid)
            bits = evaluate_split(
                model,
                split,
                chosen,
                progress=lambda done, _, name=base.name, before=before: progress(name, before + done, total),
                **options,
            )
            points.append(Point(level, chosen.step, Accuracy.of(bits)))
        curves[base.name] = tuple(points)
    return curves


def attacks_called(names: Iterable[str]) -> list[Protocol]:
    """The protocols of these names, each once; UsageError if there are none, or one of them does not attack."""
    bases = [protocol(name) for name in dict.fromkeys(names)]
    idle = [base.name for base in bases if base.attack == "none"]
    if idle or not bases:
        raise UsageError(f"a sweep wants attacks, such as {' and '.join(ATTACKS)}, not {', '.join(idle) or 'none'}")
    return bases


def check_grid(grid: Sequence[float], norm: Norm) -> None:
    """Raise UsageError unless ``grid`` holds sizes of perturbations in ``norm``, and at least one."""
    if not grid or not all(0 <= level <= (1 if norm == "linf" else sys.float_info.max) for level in grid):  # no NaN
        to = "from 0 to 1" if norm == "linf" else "0 or more"
        raise UsageError(f"a sweep takes at least one eps, each {to} on the scale of pixels, not {list(grid)}")


def at(base: Protocol, eps: float, norm: Norm = "linf") -> Protocol:
    """``base`` with another ε, see :meth:`zoo.evaluation.protocols.Protocol.under`; ε = 0 is no attack."""
    return PROTOCOLS["clean"] if eps == 0 else base.under(ThreatModel(norm=norm, eps=eps))
