"""The terms of a sign-off: what an engine may differ, lose and withstand."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

from zoo.evaluation.corruptions import check_kinds, kinds_called
from zoo.export.bundle.manifest import LEVELS, Level, Precision
from zoo.system.arguments import typed
from zoo.system.errors import UsageError

# Shares of the logits' spread, see :func:`zoo.export.ladder.rungs.parity`. Measured on 64 CIFAR-10 images and on noise,
# with four released students on ONNX Runtime, OpenVINO, ExecuTorch and LiteRT: up to 5e-6 in fp32, 0.009 in fp16 and
# 0.30 in int8 (on 1,000 images: 5e-6, 0.009 and 0.51). For int8 it only catches a conversion that went wrong: what
# rounding costs is for the rungs above.
TOLERANCE: dict[Precision, float] = {"fp32": 5e-4, "fp16": 0.03, "int8": 0.6}
FAITHFUL = 5e-4  # of the spread: a float model this close to an engine has its gradients
QUERIES = 1000
NEEDED: dict[str, tuple[str, Level]] = {  # as a message names a term, and the lowest level with its rung
    "margin": ("--margin (margin=)", "clean"),
    "min_robust": ("--min-robust (min_robust=)", "attacked"),
    "queries": ("--square (queries=)", "attacked"),
}


@dataclass(frozen=True, kw_only=True)
class Terms:
    """On what terms an engine is signed off.

    Attributes:
        margin: accuracy that an engine may lose at most, shown with 95 % confidence (0.01 is one point).
        min_robust: accuracy that the engine must keep under attack: the lower end of its 95 % Wilson interval must
            reach this share. None: better than guessing, one image in as many as there are classes.
        tolerance: the largest difference of a logit that still counts as parity, as a share of the logits' spread.
        n: leading images for the rungs under attack.
        queries: of the Square attack on the engine itself, per image; 0 leaves this rung out. An fp32 engine that
            passes parity is its twin, gradients and all; coarser arithmetic may mask them, which no gradient shows.
            Where the logits take few values the rung is always climbed.
        corruptions: the kinds of the rung beside the attacks, see :mod:`zoo.evaluation.corruptions`; none for no rung.
    """

    margin: float = 0.01
    min_robust: float | None = None
    tolerance: float = TOLERANCE["fp32"]
    n: int = 1000
    seed: int = 0
    queries: int = 0
    corruptions: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 0 < self.margin < 1:
            raise UsageError(f"a margin lies between 0 and 1 (0.01 is one point), not at {self.margin:g}")
        if self.min_robust is not None and not 0 <= self.min_robust <= 1:
            raise UsageError(f"the least robust accuracy is a share from 0 to 1, not {self.min_robust:g}")
        if not 0 <= self.tolerance < math.inf:
            raise UsageError(f"a tolerance is 0 or more, and finite, not {self.tolerance:g}")
        if not 0 <= self.seed < 2**63:
            raise UsageError(f"a seed is 0 or more and has at most 63 bits, not {self.seed}")
        if self.n < 1 or self.queries < 0:
            raise UsageError(
                f"verification takes 1 image or more, not {self.n}, and 0 queries or more, not {self.queries}"
            )
        if self.n < len(self.corruptions):
            kinds = len(self.corruptions)
            raise UsageError(f"{kinds} kinds of corruption need {kinds} images or more, not {self.n}: name fewer kinds")
        check_kinds(self.corruptions)

    @classmethod
    def of(cls, precision: Precision, **given: Any) -> Terms:
        """The terms for an engine of ``precision``: those ``given``, by name; as usual where they are None.

        Raises:
            UsageError: one is out of range, or not a number.
        """
        kinds = {key: Integral for key in ("n", "seed", "queries")} | {"corruptions": Sequence}
        typed(**{key: (value, kinds.get(key, Real) | None) for key, value in given.items()})
        usual = {"tolerance": TOLERANCE[precision], "queries": 0 if precision == "fp32" else QUERIES}
        given = {key: value for key, value in given.items() if value is not None}
        kinds = given.pop("corruptions", ())
        return cls(**usual | given, corruptions=kinds_called(kinds) if isinstance(kinds, str) else tuple(kinds))

    def in_words(self) -> str:
        """Margin, tolerance and floor, such as ``margin 0.01, tolerance 0.0005, min-robust chance``."""
        floor = "chance" if self.min_robust is None else f"{self.min_robust:g}"
        return f"margin {self.margin:g}, tolerance {self.tolerance:g}, min-robust {floor}"

    def floor(self, classes: int) -> float:
        """The least robust accuracy of a model with so many classes."""
        return 1 / classes if self.min_robust is None else self.min_robust

    def level(self, asked: Level | None) -> Level | None:
        """The level that was ``asked`` for; "attacked" in place of None if there are corruptions, which need images.

        Raises:
            UsageError: there are corruptions, and the level takes no labelled images.
        """
        if self.corruptions and asked in ("none", "parity"):
            raise UsageError(f"corruptions need labelled images: verify 'clean' or 'attacked', not '{asked}'")
        return asked or ("attacked" if self.corruptions else None)


DEFAULTS = Terms()


def check_needed(asked: Level | None, given: Mapping[str, Any]) -> None:
    """Refuse terms that are ``given`` (not None, and not 0, which asks for nothing) for rungs that the level ``asked``
    leaves out.

    Raises:
        UsageError: there is one.
    """
    for name, (told, needed) in NEEDED.items():
        if given.get(name) and asked is not None and LEVELS.index(asked) < LEVELS.index(needed):
            raise UsageError(
                f"{told} is for level '{needed}', and '{asked}' was asked for: verify '{needed}', or leave it out"
            )
