"""Intervals for accuracies, and the comparison of two classifiers on the same images.

Only the standard library is imported here, so that tables with intervals load fast.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING, Annotated, Any

from zoo.system.errors import UsageError
from zoo.system.records import Bounds, Record, Share

if TYPE_CHECKING:
    import numpy as np


def wilson(successes: float, n: float, confidence: float = 0.95) -> tuple[float, float]:
    """Two-sided score interval of a proportion (Wilson 1927): ``(low, high)``, both in [0, 1].

    >>> low, high = wilson(389, 1000)
    >>> f"{low:.3f} to {high:.3f}"
    '0.359 to 0.420'

    Raises:
        UsageError: there are no trials, or more successes than trials.
    """
    if not 0 <= successes <= n or n == 0:
        raise UsageError(f"{successes} successes in {n} trials is not a proportion")
    z = _quantile((1 + confidence) / 2)
    p, centre = successes / n, (successes + z * z / 2) / (n + z * z)
    half = z / (n + z * z) * math.sqrt(n * p * (1 - p) + z * z / 4)
    # Exact at the ends, where rounding would leave 1e-19.
    return (0.0 if successes == 0 else centre - half, 1.0 if successes == n else centre + half)


@dataclass(frozen=True, kw_only=True)
class Accuracy(Record):
    """The proportion of n images that a model classifies correctly, with its 95 % Wilson interval; or the mean of that
    over several conditions, see :meth:`over`."""

    value: Share
    n: Annotated[int, Bounds(ge=1)]
    ci95: tuple[Share, Share]

    @classmethod
    def of(cls, bits: np.ndarray | Sequence[bool]) -> Accuracy:
        """From per-image bits, bool [N]: is the image classified correctly (under attack or not).

        Raises:
            UsageError: ``bits`` is empty.
        """
        right, n = int(sum(bits)) if isinstance(bits, Sequence) else int(bits.sum()), len(bits)
        interval = wilson(right, n)
        return cls(value=right / n, n=n, ci95=interval)

    @classmethod
    def over(cls, bits: np.ndarray) -> Accuracy:
        """The mean accuracy over conditions that each of n images is in, from bits, bool [conditions, n].

        The answers to one image in several conditions are not independent: the images are the sample, not the pairs.
        The interval is Wilson's for the number of independent answers whose mean would vary as much (Kish 1965, design
        effect), p (1 - p) n / s^2, with s^2 the variance of the images' own shares; it is at most that of all pairs.

        Raises:
            UsageError: there are no images.
        """
        n = bits.shape[1]
        if not bits.size:
            raise UsageError("an accuracy needs at least one image")
        shares, p = bits.mean(0), float(bits.mean())
        variance = float(shares.var(ddof=1)) if n > 1 else p * (1 - p)
        known = min(p * (1 - p) * n / variance, bits.size) if variance else n
        return cls(value=int(bits.sum()) / bits.size, n=n, ci95=wilson(p * known, known))

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Accuracy:
        """The accuracy of validated JSON ``data``."""
        return cls(value=data["value"], n=data["n"], ci95=tuple(data["ci95"]))

    def to_dict(self) -> dict[str, Any]:
        """The accuracy as JSON data."""
        return {"value": self.value, "n": self.n, "ci95": list(self.ci95)}


@dataclass(frozen=True)
class Paired:
    """Two classifiers, the float *twin* and the *engine*, on the same ``n`` images.

    Only the twin is right on ``b`` images, only the engine on ``c``; the others do not affect the difference.

    >>> Paired.of([True, True, False, True], [True, False, False, True]).difference
    0.25
    """

    n: int
    b: int
    c: int

    def __post_init__(self) -> None:
        if self.n < 1 or min(self.b, self.c) < 0 or self.b + self.c > self.n:
            raise UsageError(f"{self.b} + {self.c} discordant images of {self.n} is not a paired comparison")

    @classmethod
    def of(cls, twin: np.ndarray | Sequence[bool], engine: np.ndarray | Sequence[bool]) -> Paired:
        """Count from per-image bits, bool [N] each: is the image classified correctly (under attack or not).

        Raises:
            UsageError: the two differ in length or are empty.
        """
        if len(twin) != len(engine):
            raise UsageError(f"a paired comparison needs bits of the same images: got {len(twin)} and {len(engine)}")
        pairs = list(zip(map(bool, twin), map(bool, engine), strict=True))
        return cls(len(pairs), b=pairs.count((True, False)), c=pairs.count((False, True)))

    @property
    def difference(self) -> float:
        """Accuracy of the twin minus accuracy of the engine."""
        return (self.b - self.c) / self.n

    def upper(self, confidence: float = 0.95) -> float:
        """One-sided upper bound of the difference (twin - engine): Tango's score bound (Stat. Med. 17, 1998).

        It is the largest difference that the score test of paired proportions does not reject, and the standard for
        paired non-inferiority: it is valid with few discordant images, which are typical of an engine and its twin. At
        b = c = 0 and n = 200, half of them right, Wald's bound is 0, Newcombe's (method 10, with his correction) 0.8
        points, this one 1.3 = z^2 / (n + z^2), the exact binomial one 1.5. An engine that never differs thus needs 268
        images to pass a margin of 1 point.

        The bound is approximate: by enumeration, an engine that loses exactly 1 point passes this margin in up to 6.8 %
        of the draws at n = 268, in 5.7 % at the sizes tried from 300 to 1,300, in 5.0 % at n = 1,000; 5 % is nominal.
        """
        z = _quantile(confidence)
        low, high = self.difference, 1.0
        while high - low > 1e-9:  # the statistic falls as delta rises from the observed difference
            delta = (low + high) / 2
            low, high = (low, delta) if self._score(delta) < -z else (delta, high)
        return high

    def _score(self, delta: float) -> float:
        """Tango's statistic for "the difference is delta" (his eq. 2.10), about N(0, 1) if it is."""
        n, b, c = self.n, self.b, self.c
        A, B, C = 2 * n, (2 * n - b + c) * delta - b - c, -c * delta * (1 - delta)
        q = (math.sqrt(max(B * B - 4 * A * C, 0.0)) - B) / (2 * A)  # maximum likelihood of P(only the engine is right)
        variance = n * (2 * q + delta * (1 - delta))
        return (b - c - n * delta) / math.sqrt(variance) if variance > 0 else 0.0

    @property
    def mcnemar(self) -> float:
        """Exact two-sided McNemar p-value: are b and c compatible with a fair coin? No gate uses it."""
        m = self.b + self.c
        tail = sum(math.comb(m, k) for k in range(min(self.b, self.c) + 1))
        return min(1.0, 2 * tail / 2**m)  # a ratio of integers: no overflow however large m is

    def non_inferior(self, margin: float = 0.01, confidence: float = 0.95) -> bool:
        """Whether the engine is shown to lose less than ``margin`` (a proportion: 0.01 is one point)."""
        return self.upper(confidence) < margin

    def inferior(self, margin: float = 0.01, confidence: float = 0.95) -> bool:
        """Whether the engine is shown to lose more than ``margin``."""
        return -Paired(self.n, b=self.c, c=self.b).upper(confidence) > margin


def clustered(a: np.ndarray, b: np.ndarray, confidence: float = 0.95) -> tuple[float, tuple[float, float]]:
    """The mean accuracy of a minus that of b over conditions, and its two-sided interval.

    Args:
        a, b: who is right on which image in which condition, bool [conditions, n], the same images for both.

    The images are the sample, as in :meth:`Accuracy.over`: the interval is mean +- z s / sqrt(n), with s the standard
    deviation of the images' own mean differences.

    Raises:
        UsageError: there are fewer than two images, or the shapes differ.
    """
    if a.shape != b.shape or a.shape[-1] < 2:
        raise UsageError(f"a paired interval needs the same two images or more, not {a.shape} and {b.shape}")
    own = a.mean(0) - b.mean(0)
    mean, half = float(own.mean()), _quantile((1 + confidence) / 2) * float(own.std(ddof=1)) / math.sqrt(len(own))
    return mean, (mean - half, mean + half)


def images_needed(discordance: float, margin: float, *, confidence: float = 0.95, power: float = 0.8) -> int:
    """The number of images at which an engine as good as its twin passes the gate with probability ``power``.

    n = discordance * (z_confidence + z_power)^2 / margin^2, but at least the number that an identical engine needs.
    """
    z = _quantile(confidence)
    normal = discordance * (z + _quantile(power)) ** 2 / margin**2
    return max(math.ceil(normal), math.floor(z * z * (1 - margin) / margin) + 1)


def _quantile(p: float) -> float:
    if not 0 < p < 1:
        raise UsageError(f"a confidence or power must be between 0 and 1, not {p}")
    return NormalDist().inv_cdf(p)
