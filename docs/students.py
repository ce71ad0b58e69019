"""Refresh the tables of docs/students.md: ``python docs/students.py``.

The released students come from the registry; docs/students.json holds what else was trained and measured."""

from __future__ import annotations

import json
from pathlib import Path

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


if __name__ == "__main__":
    put(DOCS / "students.md", {"released": released(), "tried": tried()})
