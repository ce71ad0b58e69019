"""Tables of registry entries, as ``zoo list`` and ``zoo pick`` print them."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Mapping, Sequence

from zoo.cli.output import table
from zoo.evaluation.flags import explained
from zoo.evaluation.statistics import Accuracy
from zoo.registry.entry import Entry, Registry
from zoo.registry.words import described, points
from zoo.system.units import format_count

SHOWN = ("clean", "pgd20", "autoattack")


def percent(accuracy: Accuracy | None) -> str:
    """The :func:`points` of an accuracy, ``-`` where there is none."""
    return points(accuracy) if accuracy else "-"


def entries_table(registry: Registry, entries: Sequence[Entry], *, by: str = "pgd20") -> str:
    """Cost and accuracy of ``entries``, with what the columns mean below."""
    shown = SHOWN if by in SHOWN else (*SHOWN, by)
    rows = [
        [
            f"{e.name} !" if e.flags else e.name,
            format_count(e.macs),
            format_count(e.params),
            *(percent(e.measured(name)) for name in shown),
        ]
        for e in entries
    ]
    flagged = {flag for entry in entries for flag in entry.flags}
    legend = [
        "MACs (multiply-accumulates) of one image; accuracy in %, ± half of the 95 % Wilson interval.",
        *(
            f"{name}: {described(registry.protocols[name], [entry.measured(name) for entry in entries])}."
            for name in shown
            if name in registry.protocols
        ),
        *(["! means that the accuracy may be too high, for these reasons:"] if flagged else []),
        *(f"{line}." for line in explained(flagged)),
    ]
    lines = [line for text in legend for line in wrapped(text, indent="  ")]
    return "\n".join([table(["model", "MACs", "params", *shown], rows), "", *lines])


def corruptions_table(cells: Mapping[str, Sequence[int]], n: int) -> str:
    """The accuracy in every kind of corruption and severity, in %, from how many of ``n`` images are right."""
    rows = [
        [kind, *(f"{100 * right / n:.1f}" for right in counts), f"{20 * sum(counts) / n:.1f}"]
        for kind, counts in cells.items()
    ]
    return table(["corruption", "severity 1", "2", "3", "4", "5", "mean"], rows)


def wrapped(text: str, *, indent: str = "") -> list[str]:
    """Lines that fit in the terminal (79 characters where there is none), all but the first indented; a longer word,
    such as a path, stays whole."""
    width = max(20, shutil.get_terminal_size((80, 24)).columns - 1)
    return textwrap.wrap(text, width, subsequent_indent=indent, break_on_hyphens=False, break_long_words=False)
