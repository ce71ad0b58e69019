"""What the pages here share: the columns of a table of results, tables, and the places in a page where tables go."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from zoo.evaluation.statistics import Accuracy
from zoo.registry.entry import Entry

COLUMNS = {
    "clean": "clean",
    "fgsm": "FGSM",
    "pgd20": "PGD-20",
    "mifgsm20": "MI-FGSM-20",
    "cw20": "CW-20",
    "apgd50": "APGD-50",
    "autoattack": "AutoAttack",
}


def cells(entry: Entry, columns: Iterable[str] = COLUMNS) -> list[str]:
    """Accuracy in % with the half-width of its interval under each protocol; a dash where it was not measured."""
    return [percent(entry.results[key].accuracy) if key in entry.results else "-" for key in columns]


def percent(accuracy: Accuracy) -> str:
    low, high = accuracy.ci95
    return f"{100 * accuracy.value:.1f} ±{50 * (high - low):.1f}"


def markdown(heads: Sequence[str], rows: Iterable[Sequence[str]], left: int = 1) -> str:
    """A table; its columns are aligned to the right but for the first ``left``."""
    rule = ["---"] * left + ["---:"] * (len(heads) - left)
    return "\n".join(f"| {' | '.join(row)} |" for row in (heads, rule, *rows))


def put(page: Path, tables: Mapping[str, str]) -> None:
    """Write each table between its marks, ``<!-- NAME -->`` and ``<!-- /NAME -->``."""
    text = page.read_text(encoding="utf-8")
    for name, table in tables.items():
        marks = rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)"
        text = re.sub(marks, lambda found, table=table: f"{found[1]}{table}\n{found[2]}", text, flags=re.DOTALL)
    page.write_text(text, encoding="utf-8", newline="\n")
