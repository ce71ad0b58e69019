"""Refresh the tables of docs/students.md: ``python docs/students.py``.

The released students come from the registry; docs/students.json holds what else was trained and measured, and
docs/shapes.json the study of shapes."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import shapes
from results import cells, markdown, percent, put
from workers import stored

from zoo import info
from zoo.evaluation.statistics import Accuracy
from zoo.export.compare import compare

DOCS = Path(__file__).parent
RELEASED = ("ard-w4", "nfgsm-w4", "ard-w7", "nfgsm-w7", "ard-w15", "nfgsm-w15-long", "nfgsm-w15")
RELEASED += ("ard-w41", "nfgsm-w41", "ard-w100", "nfgsm-w100")
GOALS = {"ard-w4": "68 / 41 / 38", "ard-w7": "70 / 43 / 39", "ard-w15": "74 / 46 / 42"}
GOALS |= {"ard-w41": "78 / 48.5 / 44", "ard-w100": "80 / 50 / 46"}
CONTROLS = {"ard-w4": "nfgsm-w4", "ard-w7": "nfgsm-w7", "ard-w15": "nfgsm-w15-long", "ard-w41": "nfgsm-w41"}
CONTROLS |= {"ard-w100": "nfgsm-w100", "rnascl-s3-wrt34-2-long": "nfgsm-s3-long"}
CONTROLS |= {"rnascl-s5-wrt34-2-long": "nfgsm-s5-long"}
COLUMNS = {"clean": "clean", "pgd20": "PGD-20", "cw20": "CW-20", "autoattack": "AutoAttack"}
WHOLE = {**COLUMNS, "autoattack10k": "all 10,000"}


def released() -> str:
    rows = []
    for name in RELEASED:
        entry, told = info(name), info(name).train
        facts = [f"`{name}`", f"{entry.macs / 1e6:.1f}", *_training(told.epochs, told.wall_s, told.device)]
        rows.append([*facts, *cells(entry, WHOLE), GOALS.get(name, "")])
    return markdown(["model", "M MACs", "epochs", "minutes", *WHOLE.values(), "goal"], rows)


def _training(epochs: float, seconds: float, device: str) -> tuple[str, str]:
    return f"{epochs:.0f}", f"{seconds / 60:.0f}, {'H100' if 'H100' in device else 'CPU'}"


def pairs() -> str:
    """Students minus their controls on the same images, in points, with paired 95 % intervals."""
    rows = []
    for student, control in CONTROLS.items():
        found = compare(student, control).protocols
        gaps = [_gap(found[key]) if key in found else "-" for key in COLUMNS]
        rows.append([f"`{student}` - `{control}`", *gaps])
    return markdown(["student - control", *COLUMNS.values()], rows)


def _gap(paired: Mapping[str, Any]) -> str:
    low, high = (100 * end for end in paired["ci95"])
    return f"{100 * paired['difference']:+.1f} ({low:+.1f} to {high:+.1f})"


def tried() -> str:
    rows, before = [], None
    for one in json.loads((DOCS / "students.json").read_bytes()):
        released = info(one["beside"])
        shape = f"{released.macs / 1e6:.1f} M"
        if released.name != before:
            told = released.train
            facts = [shape, f"nothing: `{released.name}`", *_training(told.epochs, told.wall_s, told.device)]
            rows.append([*facts, *cells(released, COLUMNS)])
        found = {key: percent(Accuracy(**accuracy)) for key, accuracy in one["results"].items()}
        training = _training(one["epochs"], one["wall_s"], one["device"])
        rows.append([shape, one["what"], *training, *(found.get(key, "-") for key in COLUMNS)])
        before = released.name
    return markdown(["shape of", "what differs", "epochs", "minutes", *COLUMNS.values()], rows, 2)


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
    rows = []
    base = _mean(found["base"], "cw20")
    for variant, results in sorted(found.items(), key=lambda one: -_mean(one[1], "cw20")):
        gain = f"{_mean(results, 'cw20') - base:+.1f}" if variant != "base" else ""
        accuracies = [_spread(results, key) for key in ("clean", "cw20")]
        rows.append([what[variant], f"{results[0]['macs'] / 1e6:.1f}", str(len(results)), *accuracies, gain])
    return markdown(["what differs", "M MACs", "seeds", "clean", "CW-20", "CW-20 - base"], rows)


def _mean(results: list[dict[str, Any]], key: str) -> float:
    return 100 * statistics.mean(one[key] for one in results)


def _spread(results: list[dict[str, Any]], key: str) -> str:
    values = [100 * one[key] for one in results]
    between = f" ({min(values):.1f} to {max(values):.1f})" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{between}"


if __name__ == "__main__":
    tables = {f"shapes-{size}": studied(size) for size in ("4M", "15M")}
    put(DOCS / "students.md", {"released": released(), "pairs": pairs(), "tried": tried(), **tables})
