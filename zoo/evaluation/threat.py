"""What an attacker may do: change an image by at most ``eps`` in a norm, on the scale of [0, 1] pixels."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import Literal, get_args

from zoo.system.errors import UsageError
from zoo.system.records import Amount, Record

Norm = Literal["linf", "l2"]


@dataclass(frozen=True, kw_only=True)
class ThreatModel(Record):
    """A norm of the perturbation and its largest size; white-box and untargeted. ``linf 8/255`` in short."""

    norm: Norm = "linf"
    eps: Amount = 8 / 255

    @property
    def size(self) -> str:
        """``8/255`` for an l-infinity eps of 0.03137..., the number itself in l2 and for no multiple of 1/255."""
        levels = self.eps * 255
        whole = self.norm == "linf" and abs(levels - round(levels)) < 1e-6
        return f"{round(levels)}/255" if whole else f"{self.eps:g}"

    def __str__(self) -> str:
        return f"{self.norm} {self.size}"

    @property
    def slug(self) -> str:
        """The short form as a part of names: ``linf-4-255``, ``l2-0.5``."""
        return str(self).replace(" ", "-").replace("/", "-")

    @classmethod
    def parse(cls, text: str) -> ThreatModel:
        """The threat model that ``text`` is short for: ``linf 4/255``, ``l2 0.5``.

        Raises:
            UsageError: it is not one.
        """
        from fractions import Fraction

        norm, _, size = text.strip().partition(" ")
        try:
            eps = float(Fraction(size.strip()))
        except (ValueError, ZeroDivisionError, OverflowError):
            eps = inf
        if norm not in get_args(Norm) or not 0 < eps < inf or (norm == "linf" and eps > 1):
            raise UsageError(f"a threat model is a norm and its eps, as 'linf 8/255' or 'l2 0.5', not '{text}'")
        return cls(norm=norm, eps=eps)  # type: ignore[arg-type]  # checked


LINF_8 = ThreatModel()  # of a model that states no other
