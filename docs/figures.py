"""Redraw the plots and refresh the README's table: ``python docs/figures.py [RUN ...] [--sweep FILE ...]``.

First the learning curves of the run folders named are taken over into zoo/report/released/, and what
``zoo sweep NAME --out FILE`` left into docs/sweeps.json.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.lines import Line2D
from results import cells, markdown, put

from zoo import info, list_models, pareto
from zoo.evaluation.threat import LINF_8
from zoo.report.charts import anchors_of
from zoo.report.choice import Task
from zoo.report.stories import CURVES
from zoo.system.files import pretty

DOCS = Path(__file__).parent
README = DOCS.parent / "README.md"
COLUMNS = {"clean": "clean", "fgsm": "FGSM", "pgd20": "PGD-20", "apgd50": "APGD-50", "autoattack": "AutoAttack"}
INK, GREY = "#1b1b1b", "#8a8a8a"
COLOURS = ("#0b6e99", "#c2571a", "#4f7a28", "#7b4fa3", "#a3204f", "#666666", "#b8860b", "#2a9d8f", "#e07a9b", "#3d405b")


def table() -> str:
    """The models on the Pareto front of MACs and accuracy under PGD-20 or AutoAttack, cheapest first, and in italics
    what others published."""
    entries = [entry for name in list_models() if not (entry := info(name)).flags]
    front = {entry.name: entry for by in ("pgd20", "autoattack") for entry in pareto(entries, by=by)}
    rows = [
        (entry.macs, [f"`{name}`", f"{entry.macs / 1e6:.1f}", f"{entry.params / 1e6:.2f}", *cells(entry, COLUMNS)])
        for name, entry in front.items()
    ]
    for one in published():
        told = [f"*{100 * one[key]:.1f}*" if key in one else "" for key in COLUMNS]
        rows.append((one["macs"], [f"*{one['name']}*", f"*{one['macs'] / 1e6:.1f}*", "", *told]))
    heads = ["model", "M MACs", "M params", *COLUMNS.values()]
    return markdown(heads, [row for _, row in sorted(rows, key=lambda one: one[0])])


def published() -> list[dict[str, Any]]:
    """What others report under AutoAttack for small models, not measured here."""
    return [one for one in anchors_of(Task("cifar10", LINF_8)) if "autoattack" in one]


def style(axes, along: str = "y") -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis=along, color="#e6e6e6", linewidth=0.8)
    axes.set_axisbelow(True)


def look_of(i: int) -> dict[str, str]:
    """Colour and line style of the line ``i`` of a plot; no two of thirty look alike."""
    return {"color": COLOURS[i % len(COLOURS)], "linestyle": ("-", "--", ":")[i // len(COLOURS) % 3]}


def accuracy() -> None:
    """Accuracy over MACs, clean, under PGD-20 and under AutoAttack: the models with 95 % intervals, their Pareto front,
    and in grey what others published."""
    entries = [info(name) for name in list_models()]
    keys = ("clean", "pgd20", "autoattack")
    figure, panels = plt.subplots(1, 3, figsize=(12, 4.2), dpi=150, sharex=True)
    for axes, key in zip(panels, keys, strict=True):
        told = [one for one in published() if key in one]
        axes.plot([one["macs"] for one in told], [100 * one[key] for one in told], "x", color=GREY, markersize=6)
        shown = [one for one in entries if key in one.results and one.accuracy("pgd20") > 0.1]
        values = [100 * one.accuracy(key) for one in shown]
        low, high = 100 * np.array([one.results[key].accuracy.ci95 for one in shown]).T
        errors = (np.subtract(values, low), np.subtract(high, values))
        macs = [one.macs for one in shown]
        axes.errorbar(macs, values, yerr=errors, fmt="o", color=COLOURS[0], markersize=4, linewidth=0.8, alpha=0.55)
        front = pareto([one for one in shown if not one.flags], by=key)
        best = [100 * one.accuracy(key) for one in front]
        axes.plot([one.macs for one in front], best, color=COLOURS[0], linewidth=1.4)
        axes.set_title(COLUMNS[key], fontsize=10, color=INK)
        axes.set_xscale("log")
        axes.set_xticks(ticks := [4e6, 15e6, 40e6, 100e6, 300e6], [f"{x / 1e6:.0f} M" for x in ticks])
        axes.minorticks_off()
        axes.set_xlabel("MACs of one image")
        style(axes, along="both")
    panels[0].set_ylabel("accuracy on CIFAR-10 test, %\n(l-infinity, 8/255)")
    ours, others = "Robust Zoo, the line is the Pareto front", "published: NAS-RobBench-201, MobileNetV2 with RSLAD"
    handles = [
        Line2D([], [], color=COLOURS[0], marker="o", markersize=4, label=ours),
        Line2D([], [], color=GREY, marker="x", linestyle="", label=others),
    ]
    figure.legend(handles=handles, frameon=False, loc="lower center", bbox_to_anchor=(0.5, -0.07), ncols=2, fontsize=9)
    figure.savefig(DOCS / "accuracy.png", bbox_inches="tight")


def learning_curves() -> None:
    """Clean and PGD accuracy of the students' averaged weights on held-out training images, over epochs: a colour for
    each shape, solid with a teacher."""
    stored, colours = json.loads(CURVES.read_bytes()), dict(zip((100, 41, 15, 7, 4), COLOURS, strict=False))
    names = [f"{kind}-w{size}{more}" for size in colours for kind in ("ard", "nfgsm") for more in ("", "-long")]
    figure, (clean, robust) = plt.subplots(1, 2, figsize=(9, 3.6), dpi=150, sharex=True)
    for name in (one for one in names if one in stored):
        history, size = stored[name], int(name.split("-")[1][1:])
        line = "-" if name.startswith("ard") else ":" if name == "nfgsm-w15" else "--"
        for axes, key in ((clean, "clean"), (robust, "pgd")):
            values = [100 * one[key] for one in history]
            axes.plot([one["epoch"] for one in history], values, line, color=colours[size], label=name)
    for axes, title in ((clean, "clean"), (robust, "PGD")):
        axes.set_title(f"{title}, 512 held-out training images", fontsize=10, color=INK)
        axes.set_xlabel("epoch")
        style(axes)
    clean.set_ylabel("accuracy, %")
    robust.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5), fontsize=8)
    figure.savefig(DOCS / "learning-curves.png", bbox_inches="tight")


def sweeps() -> None:
    """Accuracy over eps under FGSM and PGD-20, with 95 % bands (RNAS-CL, Figure 3)."""
    stored = json.loads((DOCS / "sweeps.json").read_bytes())
    if not stored:
        return
    figure, panels = plt.subplots(1, 2, figsize=(9, 3.8), dpi=150, sharex=True, sharey=True)
    for axes, attack in zip(panels, ("fgsm", "pgd20"), strict=True):
        for i, (name, sweep) in enumerate(sorted(stored.items())):
            curve = sweep["curves"].get(attack, [])
            x = [255 * point["eps"] for point in curve]
            y = [100 * point["accuracy"]["value"] for point in curve]
            low, high = ([100 * point["accuracy"]["ci95"][end] for point in curve] for end in (0, 1))
            look = look_of(i)
            axes.plot(x, y, label=name, marker=".", markersize=4, linewidth=1.4, **look)
            axes.fill_between(x, low, high, color=look["color"], alpha=0.12, linewidth=0)
        axes.axvline(8, color=GREY, linewidth=0.8, linestyle=":", zorder=0)
        axes.set_title(COLUMNS[attack], fontsize=10, color=INK)
        axes.set_xlabel("ε (l-infinity), in 1/255")
        style(axes)
    left, right = panels
    left.set_xlim(0, 25.5)
    left.set_xticks([0, 4, 8, 12, 16, 20, 25.5], ["0", "4", "8", "12", "16", "20", "25.5\n= 0.1"])
    left.set_ylim(bottom=0)
    images = sorted({p["accuracy"]["n"] for s in stored.values() for curve in s["curves"].values() for p in curve})
    left.set_ylabel(f"accuracy on the first {' or '.join(f'{n:,}' for n in images)}\nCIFAR-10 test images, %")
    named = [line for line in right.lines if not line.get_label().startswith("_")]
    named.sort(key=lambda line: -line.get_ydata(orig=False).mean())  # in the order that the eye meets them
    right.legend(handles=named, frameon=False, loc="upper right", fontsize=8)
    figure.savefig(DOCS / "sweep.png", bbox_inches="tight")


def take_over(runs: list[str]) -> None:
    """Epoch by epoch metrics of finished runs, as training left them."""
    curves = json.loads(CURVES.read_bytes()) if CURVES.exists() else {}
    for run in runs:
        config = json.loads((Path(run) / "model" / "config.json").read_bytes())
        keep = ("epoch", "clean", "pgd", "seconds")
        curves[config["name"]] = [{key: round(epoch[key], 4) for key in keep} for epoch in config["train"]["history"]]
    lines = [f"{json.dumps(name)}: {json.dumps(history)}" for name, history in sorted(curves.items())]
    CURVES.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8", newline="\n")


def take_over_sweeps(files: list[Path]) -> None:
    """Sweeps of the released weights, by name; whatever was measured with others is left out, and said so."""
    path = DOCS / "sweeps.json"
    stored = list(json.loads(path.read_bytes()).values()) if path.exists() else []
    released = {info(name).weights.sha256: name for name in list_models()}
    merged = {}
    for sweep in [*stored, *(json.loads(file.read_bytes()) for file in files)]:
        name = released.get(sweep["weights_sha256"])
        if name is None:
            print(f"{sweep['name']}: swept with weights that are not released, left out", file=sys.stderr)
        else:
            merged[name] = {**sweep, "name": name}
    path.write_text(pretty(dict(sorted(merged.items()))) + "\n", encoding="utf-8", newline="\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", metavar="RUN", nargs="*")
    parser.add_argument("--sweep", metavar="FILE", nargs="+", action="extend", type=Path, default=[])
    given = parser.parse_args()
    take_over(given.runs)
    take_over_sweeps(given.sweep)
    put(README, {"models": table()})
    accuracy()
    learning_curves()
    sweeps()
