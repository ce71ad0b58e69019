"""Refresh the tables of docs/students.md: ``python docs/students.py``.

The released students come from the registry; docs/students.json holds what else was trained and measured, and
docs/shapes.json the study of shapes."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

import shapes
from methods import stored
from results import cells, percent, put

from zoo import info
from zoo.evaluation.statistics import Accuracy

DOCS = Path(__file__).parent
RELEASED = ("nfgsm-w4", "nfgsm-w7", "nfgsm-w15", "nfgsm-w15-long", "nfgsm-w41", "nfgsm-w100")
GOALS = {"nfgsm-w4": "68 / 41 / 38", "nfgsm-w7": "70 / 43 / 39", "nfgsm-w15-long": "74 / 46 / 42"}
GOALS |= {"nfgsm-w41": "78 / 48.5 / 44", "nfgsm-w100": "80 / 50 / 46"}
COLUMNS = {"clean": "clean", "pgd20": "PGD-20", "cw20": "CW-20", "autoattack": "AutoAttack"}


def released() -> str:
    lines = [
        f"| model | M MACs | epochs | {' | '.join(COLUMNS.values())} | goal |",
        f"| --- | ---: | ---: | {' | '.join('---:' for _ in COLUMNS)} | ---: |",
    ]
    for name in RELEASED:
        entry = info(name)
        facts = f"| `{name}` | {entry.macs / 1e6:.1f} | {entry.train.epochs:.0f} |"
        lines.append(f"{facts} {' | '.join(cells(entry, COLUMNS))} | {GOALS.get(name, '')} |")
    return "\n".join(lines)


def tried() -> str:
    lines = [
        f"| shape of | what differs | epochs | {' | '.join(COLUMNS.values())} |",
        f"| --- | --- | ---: | {' | '.join('---:' for _ in COLUMNS)} |",
    ]
    before = None
    for one in json.loads((DOCS / "students.json").read_bytes()):
        released = info(one["beside"])
        shape = f"| {released.macs / 1e6:.1f} M |"
        if released.name != before:
            facts = f"{shape} nothing: `{released.name}` | {released.train.epochs:.0f} |"
            lines.append(f"{facts} {' | '.join(cells(released, COLUMNS))} |")
        found = {key: percent(Accuracy(**accuracy)) for key, accuracy in one["results"].items()}
        accuracies = " | ".join(found.get(key, "-") for key in COLUMNS)
        lines.append(f"{shape} {one['what']} | {one['epochs']:.0f} | {accuracies} |")
        before = released.name
    return "\n".join(lines)


def studied(size: str) -> str:
    """The variants of a size, the best under CW-20 first, each with the mean of its seeds and their range."""
    found: dict[str, list[dict[str, Any]]] = {}
    what = {}
    for run in shapes.runs():
        of, variant, _ = run.name.split("/")
        result = stored(shapes.STORE)["runs"].get(run.name)
        if of == size and result is not None:
            found.setdefault(variant, []).append(result)
            what[variant] = run.what
    lines = [
        "| what differs | M MACs | seeds | clean | CW-20 | CW-20 - base |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    base = _mean(found["base"], "cw20")
    for variant, results in sorted(found.items(), key=lambda one: -_mean(one[1], "cw20")):
        gain = f"{_mean(results, 'cw20') - base:+.1f}" if variant != "base" else ""
        accuracies = " | ".join(_spread(results, key) for key in ("clean", "cw20"))
        lines.append(f"| {what[variant]} | {results[0]['macs'] / 1e6:.1f} | {len(results)} | {accuracies} | {gain} |")
    return "\n".join(lines)


def _mean(results: list[dict[str, Any]], key: str) -> float:
    return 100 * statistics.mean(one[key] for one in results)


def _spread(results: list[dict[str, Any]], key: str) -> str:
    values = [100 * one[key] for one in results]
    between = f" ({min(values):.1f} to {max(values):.1f})" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{between}"


if __name__ == "__main__":
    tables = {f"shapes-{size}": studied(size) for size in ("4M", "15M")}
    put(DOCS / "students.md", {"released": released(), "tried": tried(), **tables})
