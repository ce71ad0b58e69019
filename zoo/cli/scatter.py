"""Accuracy over MACs, drawn in characters that every terminal, pipe and file takes."""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from string import ascii_uppercase

from zoo.cli.tables import percent
from zoo.registry.entry import Entry
from zoo.registry.pick import pareto
from zoo.system.units import format_count

HEIGHT = 18  # lines between the axes
MARGIN = 6  # columns of the vertical axis


def scatter(entries: Sequence[Entry], *, by: str) -> str:
    """A plot of ``entries`` that were measured under ``by``: letters on the Pareto front, which is listed below it,
    ``!`` where the accuracy may be too high, ``o`` elsewhere; MACs on a logarithmic scale."""
    measured = [(entry, 100 * value) for entry in entries if (value := entry.accuracy(by)) is not None]
    if not measured:
        return f"No model here was measured under {by}."
    front = pareto([entry for entry in entries if not entry.flags], by=by)
    letters = {entry.name: ascii_uppercase[i % 26] for i, entry in enumerate(front)}
    letters |= {entry.name: "!" for entry in entries if entry.flags}
    width = max(20, shutil.get_terminal_size((80, 24)).columns - MARGIN - 2)
    left, right = (math.log10(max(1, edge(e.macs for e, _ in measured))) for edge in (min, max))
    low, high = _ends([value for _, value in measured])

    def column(macs: int) -> int:
        return round((math.log10(max(1, macs)) - left) / ((right - left) or 1) * (width - 1))

    def line(value: float) -> int:
        return round((high - value) / (high - low) * HEIGHT)

    cells = [[" "] * width for _ in range(HEIGHT + 1)]
    for entry, value in sorted(measured, key=lambda one: one[0].name in letters):  # the front on top
        cells[line(value)][column(entry.macs)] = letters.get(entry.name, "o")
    marks = {line(value): f"{value:g}" for value in _ticks(low, high)}
    drawn = [f"{marks.get(i, ''):>{MARGIN - 1}} |{''.join(row)}".rstrip() for i, row in enumerate(cells)]
    listed = [f"{letters[e.name]}  {e.name}: {format_count(e.macs)} MACs, {percent(e.measured(by))} %" for e in front]
    return "\n".join(
        [
            f"accuracy under {by}, %",
            *drawn,
            " " * MARGIN + "+" + "-" * width,
            " " * (MARGIN + 1) + _axis(left, right, width),
            " " * (MARGIN + 1) + "MACs (multiply-accumulates) of one image, logarithmic".center(width).rstrip(),
            "",
            "On the Pareto front, no other has as few MACs and is as accurate:",
            *listed,
            *(["!  the accuracy may be too high (zoo list says why)"] if "!" in letters.values() else []),
        ]
    )


def _ends(values: Sequence[float]) -> tuple[float, float]:
    """Multiples of 5 below and above all ``values``."""
    low, high = 5 * math.floor(min(values) / 5), 5 * math.ceil(max(values) / 5)
    return low, high if high > low else low + 5


def _ticks(low: float, high: float) -> list[float]:
    """At most seven round numbers from ``low`` to ``high``."""
    step = next(step for step in (1, 2, 5, 10, 20) if (high - low) / step <= 6)
    return [value for value in range(0, 101, step) if low <= value <= high]


def _axis(left: float, right: float, width: int) -> str:
    """Numbers of MACs under their places, as many as fit."""
    powers = range(math.floor(left), math.ceil(right) + 1)
    numbers = [step * 10**power for power in powers for step in (1, 1.5, 2, 3, 5, 7)]
    text = ""
    for number in [n for n in numbers if left <= math.log10(n) <= right] or [round(10**left)]:
        at = round((math.log10(number) - left) / ((right - left) or 1) * (width - 1))
        label = format_count(number).replace(".0", "")
        start = min(max(0, at - len(label) // 2), width - len(label))
        if not text or start > len(text) + 1:
            text = text.ljust(start) + label
    return text
