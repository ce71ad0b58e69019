"""Threat models: an attacker changes an image by at most ``eps`` in a norm, on the scale of [0, 1] pixels."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from math import inf
from typing import Literal, get_args

from zoo.system.errors import UsageError
from zoo.system.records import Amount, Record

Norm = Literal["linf", "l2"]


@dataclass(frozen=True, kw_only=True)
class ThreatModel(Record):
    """The norm and the largest size of a perturbation, white-box and untargeted: ``linf 8/255`` in short."""

    norm: Norm = "linf"
    eps: Amount = 8 / 255

    def __post_init__(self) -> None:
        if self._levels is not None:  # decimals of 8/255 mean 8/255
            object.__setattr__(self, "eps", self._levels / 255)

    @property
    def _levels(self) -> int | None:
        """A whole number of 1/255 that an l-infinity eps is, else None."""
        levels = self.eps * 255
        whole = self.norm == "linf" and 0 <= self.eps <= 1 and abs(levels - round(levels)) < 1e-6
        return round(levels) if whole and (round(levels) or not levels) else None

    @property
    def sound(self) -> bool:
        """Whether eps is above 0, finite, and in l-infinity at most 1: all that two images can differ by."""
        return 0 < self.eps < inf and (self.norm != "linf" or self.eps <= 1)

    @property
    def size(self) -> str:
        """``8/255`` for an l-infinity eps of 0.03137...; the number itself in l2, or if it is no multiple of 1/255."""
        if self._levels is not None:
            return f"{self._levels}/255"
        exact = Decimal(repr(float(self.eps))).normalize()
        return f"{exact:f}" if 0 < self.eps < 1e6 else f"{self.eps:g}"

    def __str__(self) -> str:
        return f"{self.norm} {self.size}"

    @property
    def slug(self) -> str:
        """The short form as a part of names: ``linf-4-255``, ``l2-0.5``."""
        return str(self).replace(" ", "-").replace("/", "-")

    @classmethod
    def parse(cls, text: str) -> ThreatModel:
        """Parse the short form, ``linf 4/255`` or ``l2 0.5``.

        Raises:
            UsageError: ``text`` is not a threat model.
        """
        from fractions import Fraction

        norm, _, size = text.strip().partition(" ")
        try:
            eps = float(Fraction(size.strip()))
        except (ValueError, ZeroDivisionError, OverflowError):
            eps = inf
        threat = cls(norm=norm, eps=eps)  # type: ignore[arg-type]  # checked next
        if norm not in get_args(Norm) or not threat.sound:
            raise UsageError(f"'{text}' is not a threat model: write a norm and its eps, like 'linf 8/255' or 'l2 0.5'")
        return threat


LINF_8 = ThreatModel()  # the default of models that state none
