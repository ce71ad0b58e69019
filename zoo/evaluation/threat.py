"""Threat models: an attacker changes an image by at most ``eps`` in a norm, on the scale of [0, 1] pixels."""

from __future__ import annotations

from dataclasses import dataclass
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

    @property
    def size(self) -> str:
        """``8/255`` for an l-infinity eps of 0.03137...; the number itself in l2, or if it is no multiple of 1/255."""
        levels = self.eps * 255
        integral = self.norm == "linf" and self.eps <= 1 and abs(levels - round(levels)) < 1e-6
        return f"{round(levels)}/255" if integral else f"{self.eps:g}"

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
        if norm not in get_args(Norm) or not 0 < eps < inf or (norm == "linf" and eps > 1):
            raise UsageError(f"'{text}' is not a threat model: write a norm and its eps, like 'linf 8/255' or 'l2 0.5'")
        return cls(norm=norm, eps=eps)  # type: ignore[arg-type]  # checked


LINF_8 = ThreatModel()  # the default of models that state none
