"""Budgets as people write them: "15M" multiply-accumulates, "1.9MB" of weights, "45%" accuracy."""

from __future__ import annotations

import math
import re
from decimal import Decimal
from numbers import Real

from zoo.system.errors import UsageError

_POWERS = {"": 0, "k": 3, "K": 3, "M": 6, "G": 9, "T": 12}
MOST = 10**300  # so that every count is a float too
# At most three digits of exponent: "1e999999999" would become an integer of that length.
_NUMBER = re.compile(r"((?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d{1,3})?)\s*([kKMGT]?)", re.ASCII)


def parse_count(text: str | float) -> int:
    """A count from ``"15M"``, ``"1.2G"``, ``"300k"``, ``"15e6"``, ``15e6`` or ``15000000``; units are decimal.

    Fractions are rounded down: a budget is an upper bound.

    Raises:
        UsageError: ``text`` is negative, above 1e300, or not a number with one of the units k, M, G, T.
    """
    if isinstance(text, str):
        match = _NUMBER.fullmatch(text.strip())
        if match:
            count = Decimal(match[1]).scaleb(_POWERS[match[2]])
            if count < MOST:
                return int(count)
    elif isinstance(text, Real) and not isinstance(text, bool):
        number = text if isinstance(text, int) else float(text)  # numpy's numbers, too
        if 0 <= number < MOST:
            return int(number)
    raise UsageError(f"'{text}' is not a count: write it as 15000000, 15e6 or 15M (units k, M, G, T, decimal)")


def parse_size(text: str | float) -> int:
    """Bytes from ``"1.9MB"``, ``"300k"`` or ``1900000``; units are decimal, and the B is optional.

    Raises:
        UsageError: ``text`` is not a size.
    """
    try:
        return parse_count(text.strip().removesuffix("B") if isinstance(text, str) else text)
    except UsageError:
        raise UsageError(f"'{text}' is not a size: write it as 1900000 or 1.9MB (units kB, MB, GB, decimal)") from None


def parse_share(text: str | float) -> float:
    """A proportion from ``0.45``, ``"0.45"`` or ``"45%"``.

    Raises:
        UsageError: ``text`` is not a number between 0 and 1.
    """
    try:
        share = float(text[:-1]) / 100 if isinstance(text, str) and text.endswith("%") else float(text)
    except (TypeError, ValueError):
        share = math.nan
    if isinstance(text, bool) or not 0 <= share <= 1:
        raise UsageError(f"'{text}' is not an accuracy: write it as 0.45 or 45%")
    return share


def format_count(count: float) -> str:
    """``15_000_000`` as ``"15.0M"``: one decimal and a decimal unit, plain below 1,000."""
    for power, unit in ((12, "T"), (9, "G"), (6, "M")):
        if count >= 0.99995 * 10**power:  # rounds up to the next unit: 1.0M, not 1000.0k
            return f"{count / 10**power:.1f}{unit}"
    return f"{count / 1000:.1f}k" if count >= 1000 else f"{count:g}"


def format_size(size: float) -> str:
    """``1_900_000`` bytes as ``"1.9MB"``."""
    return f"{format_count(size)}B"


def format_ms(ms: float) -> str:
    """``0.4567`` as ``"0.457"``: three digits, and whole milliseconds above 100."""
    return f"{ms:.3g}" if ms < 99.95 else f"{ms:,.0f}"


def format_share(share: float) -> str:
    """``0.4513`` as ``"45.1%"``."""
    return f"{100 * share:.1f}%"
