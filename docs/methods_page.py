"""The tables and plots of docs/methods.md, from docs/methods.json."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from methods import RECIPE, ROWS, TEACHERS
from results import markdown, put
from scipy.stats import t as student

from zoo.train.recipes.phases import load_recipe

DOCS = Path(__file__).parent
PAGE = DOCS / "methods.md"
COLUMNS = {"clean": "clean", "pgd20": "PGD-20", "cw20": "CW-20", "apgd50": "APGD-50", "autoattack": "AutoAttack"}
PANELS = {key: COLUMNS[key] for key in ("clean", "cw20", "autoattack")}  # of the plot
CONTROL = "methods/s3/n-fgsm"
STUDENTS = {"s3": "o", "w4": "s"}
SPACES = ("s3", "s5", "s7")
TAUGHT = ("kd", "kd-t30", "ard", "ard-t30", "ard-nfgsm", "fast-ard", "rrm", "rslad", "adaad", "rdt", "ard-10")
EMPTY = "Not measured yet."
Runs = Mapping[str, Mapping[str, Any]]
TEACHER_NAMES = {
    "trades-s3": "`trades-s3`, weaker",
    "": "`nfgsm-w15-int8`",
    "nfgsm-wrn34-2": "`nfgsm-wrn34-2`, larger",
    "nfgsm-w100": "`nfgsm-w100`, stronger",
    "natural": "natural, of the shape of `nfgsm-w15-int8`",
}


# -- numbers -----------------------------------------------------------------------------------------------------


def bits(run: Mapping[str, Any], protocol: str) -> np.ndarray | None:
    """Per-image bits [n] of a run, None if it was not measured."""
    result = run["results"].get(protocol)
    if result is None:
        return None
    packed = np.frombuffer(bytes.fromhex(result["bits"]), np.uint8)
    return np.unpackbits(packed)[: result["n"]].astype(float)


def seeds(runs: Runs, row: str, protocol: str) -> dict[str, np.ndarray]:
    """The bits of a row GROUP/STUDENT/ROW by seed."""
    found = {name.rsplit("/", 1)[1]: bits(run, protocol) for name, run in runs.items() if name.rsplit("/", 1)[0] == row}
    return {seed: one for seed, one in sorted(found.items()) if one is not None}


def passes(runs: Runs, row: str) -> str:
    """Passes over the student for an image in a run of the row."""
    found = set()
    for name, run in runs.items():
        if name.rsplit("/", 1)[0] == row:
            recipe = load_recipe(RECIPE, preset=run["preset"], overrides=run["overrides"])
            found.add(recipe.train.epochs * recipe.method.passes(recipe.attack))
    return " or ".join(map(str, sorted(found)))


def accuracy(runs: Runs, row: str, protocol: str) -> str:
    """The mean over seeds in %, with the lowest and the highest below it."""
    values = [100 * one.mean() for one in seeds(runs, row, protocol).values()]
    if not values:
        return ""
    spread = f"<br>({min(values):.1f} to {max(values):.1f})" if len(values) > 1 else ""
    return f"{np.mean(values):.1f}{spread}"


def difference(runs: Runs, row: str, control: str, protocol: str) -> tuple[float, float, int] | None:
    """Row minus control on the same images and seeds: points, half-width of the 95 % interval, and seeds.

    The variance is that over images of the mean over seeds, and with several seeds that over seeds too; degrees of
    freedom by Satterthwaite's formula. What varies with image and seed together is in both, so that with several seeds
    the interval is rather too wide.
    """
    ours, theirs = seeds(runs, row, protocol), seeds(runs, control, protocol)
    shared = [seed for seed in ours if seed in theirs and len(ours[seed]) == len(theirs[seed])]
    if not shared or row == control:
        return None
    each = 100 * np.stack([ours[seed] - theirs[seed] for seed in shared])  # [seeds, images]
    k, n = each.shape
    parts = [(each.mean(0).var(ddof=1) / n, n - 1)]
    if k > 1:
        parts.append((each.mean(1).var(ddof=1) / k, k - 1))
    variance = sum(part for part, _ in parts)
    if not variance:
        return float(each.mean()), 0.0, k
    freedom = variance**2 / sum(part**2 / free for part, free in parts)
    return float(each.mean()), float(student.ppf(0.975, freedom) * math.sqrt(variance)), k


def signed(found: tuple[float, float, int] | None) -> str:
    return "" if found is None else f"{found[0]:+.1f} ±{found[1]:.1f}"


# -- tables ------------------------------------------------------------------------------------------------------


def compared(runs: Runs, rows: Mapping[str, str], control: str) -> list[list[str]]:
    """The lines of a table: the rows GROUP/STUDENT/ROW that were measured, with their names. In each cell stand the
    accuracy and, below it, its difference to that of ``control``."""
    lines = []
    for row, name in rows.items():
        cells = [accuracy(runs, row, key) for key in COLUMNS]
        if any(cells):
            gaps = (signed(difference(runs, row, control, key)) for key in COLUMNS)
            cells = ["<br>".join(filter(None, pair)) for pair in zip(cells, gaps, strict=True)]
            lines.append([name, passes(runs, row), *cells])
    return lines


def table(lines: Sequence[Sequence[str]]) -> str:
    """The lines of ``compared`` under their heads, without the columns that are empty."""
    if not lines:
        return EMPTY
    heads = ["", "passes", *COLUMNS.values()]
    kept = [0, *(i for i in range(1, len(heads)) if any(line[i] for line in lines))]
    return markdown([heads[i] for i in kept], [[line[i] for i in kept] for line in lines])


def rows_of(student: str) -> dict[str, str]:
    return {f"methods/{student}/{row}": name for row, name in ROWS.items()}


def sweep(group: str, preset: str, values: Iterable[float], own: float) -> dict[str, str]:
    """The rows of a sweep; that of the preset's ``own`` value is a row of the methods."""
    return {f"methods/s3/{preset}" if v == own else f"{group}/s3/{v}": f"{v:g}" for v in values}


SWEEPS = {
    "alpha": sweep("alpha", "ard", (0.5, 0.7, 0.9, 1.0), 1.0),
    "temperature": sweep("temperature", "ard", (1.0, 5.0, 10.0), 1.0) | {"methods/s3/ard-t30": "30"},
    "lambda": sweep("lambda", "rrm", (5e-5, 5e-4, 5e-3, 5e-2, 0.5), 5e-3),
}
SWEEP_CONTROLS = {"alpha": "methods/s3/ard", "temperature": "methods/s3/ard", "lambda": "methods/s3/rrm"}


def teachers(row: str) -> dict[str, str]:
    return {f"teachers/s3/{row}-{t}" if t else f"methods/s3/{row}": name for t, name in TEACHER_NAMES.items()}


def by_student(runs: Runs) -> list[list[str]]:
    """Some methods on students of growing cost, each against the control of the same student."""
    places = {"students/w1": "1.0", "students/w2": "2.4", "methods/w4": "3.8", "students/w15": "14.8"}  # M MACs
    lines = []
    for row in ("n-fgsm", "n-fgsm-twice", "ard-nfgsm", "rrm"):
        for place, macs in places.items():
            lines += compared(runs, {f"{place}/{row}": f"{ROWS[row]}, {macs} M MACs"}, f"{place}/n-fgsm")
    return lines


def pairs(runs: Runs) -> list[list[str]]:
    """RNAS-CL's students under TRADES, and TRADES alone, for each architecture and beta."""
    lines = []
    for space in SPACES:
        for beta in ("6", "10"):
            row = f"rnascl/{space}/beta{beta}"
            named = {
                f"{row}-none": f"{space.upper()}, β {beta}: TRADES alone, the control",
                f"{row}-gamma0": "+ KL",
                f"{row}-gamma1": "+ KL + attention as printed (gamma 1)",
                f"{row}-gamma34": "+ KL + attention (gamma 34)",
            }
            lines += compared(runs, named, f"{row}-none")
    return lines


def tutors(runs: Runs) -> list[list[str]]:
    """Students of searched and of other tutors at beta 6 and gamma 34, against none, for each architecture."""
    lines = []
    for space in SPACES:
        row = f"rnascl/{space}/beta6-gamma"
        named = {f"{row}0": "no tutor, the control", f"{row}34-depth": "same depth", f"{row}34-random": "random"}
        named[f"{row}34"] = "searched"
        lines += compared(runs, {key: f"{space.upper()}: {name}" for key, name in named.items()}, f"{row}0")
    return lines


TOGETHER = {  # rows of rnascl/SPACE/, minus what they are compared with
    "KL - TRADES alone": ("gamma0", "none"),
    "tutors of the same depth - none": ("gamma34-depth", "gamma0"),
    "random tutors - none": ("gamma34-random", "gamma0"),
    "searched tutors - none": ("gamma34", "gamma0"),
    "searched tutors, as printed (gamma 1) - none": ("gamma1", "gamma0"),
    "KL and searched tutors - TRADES alone": ("gamma34", "none"),
}


def together(runs: Runs) -> str:
    """Means of differences over the spaces, with 95 % intervals over the images for these nets."""
    protocols = ("clean", "pgd20", "cw20", "apgd50")
    lines = []
    for beta in ("6", "10"):
        for name, (one, other) in TOGETHER.items():
            line = [f"β {beta}: {name}"]
            for key in protocols:
                rows = ((f"rnascl/{space}/beta{beta}-{row}" for row in (one, other)) for space in SPACES)
                found = [[seeds(runs, row, key).get("0") for row in pair] for pair in rows]
                if any(bits is None for pair in found for bits in pair):
                    continue
                mean = 100 * np.mean([ours - theirs for ours, theirs in found], axis=0)  # [images]
                half = student.ppf(0.975, len(mean) - 1) * mean.std(ddof=1) / math.sqrt(len(mean))
                line.append(signed((float(mean.mean()), float(half), 1)))
            if len(line) > len(protocols):
                lines.append(line)
    return markdown(["S3, S5 and S7 together", *(COLUMNS[key] for key in protocols)], lines) if lines else EMPTY


def seconds(times: Mapping[str, Any]) -> str:
    """Seconds per epoch and of a run of each method, on each machine that was timed."""
    tables = []
    for machine, timed in times.items():
        rows = timed["rows"]
        teacher = sum(rows[name]["epochs"] * rows[name]["epoch_s"] for name in TEACHERS)
        lines = []
        for row, name in ROWS.items():
            if row not in rows:  # it has the cost of its control
                continue
            one = rows[row]
            total = one["epochs"] * one["epoch_s"] + one.get("before_s", 0)
            taught = f"{total + teacher:,.0f}" if row in TAUGHT else ""
            epoch = f"{one['epoch_s']:.2f} ±{one['half']:.2f}"
            lines.append([name, epoch, str(one["epochs"]), f"{total:,.0f}", taught])
        heads = [f"{machine}, {timed['precision']}", "s per epoch", "epochs", "s in all", "with the teacher"]
        tables.append(markdown(heads, lines))
    return "\n\n".join(tables) or "Not timed yet."


# -- plots -------------------------------------------------------------------------------------------------------


def plot(runs: Runs) -> str:
    """Draw each method minus the control, with 95 % intervals, on both students."""
    import matplotlib.pyplot as plt
    from figures import COLOURS, GREY, style

    shown = [row for row in ROWS if any(difference(runs, f"methods/s3/{row}", CONTROL, key) for key in PANELS)]
    if not shown:
        return ""
    figure, panels = plt.subplots(1, len(PANELS), figsize=(11, 0.3 * len(shown) + 1.2), dpi=150, sharey=True)
    for axes, (key, title) in zip(panels, PANELS.items(), strict=True):
        for (net, marker), colour, shift in zip(STUDENTS.items(), COLOURS, (-0.15, 0.15), strict=False):
            label = net
            for place, row in enumerate(reversed(shown)):
                found = difference(runs, f"methods/{net}/{row}", f"methods/{net}/n-fgsm", key)
                if found:
                    dots = {"fmt": marker, "color": colour, "capsize": 2, "markersize": 4, "label": label}
                    axes.errorbar(found[0], place - shift, xerr=found[1], **dots)
                    label = None
        axes.axvline(0, color=GREY, linewidth=0.8)
        axes.set_xlabel(f"{title} accuracy minus the control's, points", fontsize=8)
        style(axes, along="both")
    panels[0].set_yticks(range(len(shown)), [ROWS[row] for row in reversed(shown)], fontsize=8)
    panels[-1].legend(frameon=False, fontsize=8)
    figure.savefig(DOCS / "methods.png", bbox_inches="tight")
    plt.close(figure)
    return "![Each method minus the control](methods.png)"


def plot_sweeps(runs: Runs) -> str:
    """Draw clean, PGD-20 and AutoAttack accuracy over alpha and t of ARD, and over lambda of RRM."""
    import matplotlib.pyplot as plt
    from figures import COLOURS, style

    if not any(seeds(runs, row, "clean") for name in SWEEPS for row in SWEEPS[name] if not row.startswith("methods/")):
        return ""
    figure, panels = plt.subplots(1, 3, figsize=(9, 3), dpi=150)
    labels = (r"$\alpha$ of ARD", r"$t$ of ARD", r"$\lambda$ of RRM")
    for axes, (name, rows), label in zip(panels, SWEEPS.items(), labels, strict=True):
        for (key, title), colour in zip(COLUMNS.items(), COLOURS, strict=False):
            first = {float(value): seeds(runs, row, key).get("0") for row, value in rows.items()}
            line = {value: 100 * one.mean() for value, one in first.items() if one is not None}
            axes.plot(list(line), list(line.values()), marker=".", color=colour, label=title)
        if name != "alpha":
            axes.set_xscale("log")
        axes.set_xlabel(label)
        style(axes)
    panels[0].set_ylabel("accuracy, %")
    panels[2].legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(DOCS / "methods-sweeps.png", bbox_inches="tight")
    plt.close(figure)
    return "![Accuracy over the settings](methods-sweeps.png)"


def write(data: Mapping[str, Any]) -> None:
    """Write the tables and plots from the contents of docs/methods.json."""
    runs: Runs = data["runs"]
    tables = {
        "plot": plot(runs),
        "plot-sweeps": plot_sweeps(runs),
        "methods-s3": table(compared(runs, rows_of("s3"), CONTROL)),
        "methods-w4": table(compared(runs, rows_of("w4"), "methods/w4/n-fgsm")),
        "seconds": seconds(data["times"]),
        **{name: table(compared(runs, rows, SWEEP_CONTROLS[name])) for name, rows in SWEEPS.items()},
        "teachers-ard-nfgsm": table(compared(runs, teachers("ard-nfgsm"), "methods/s3/ard-nfgsm")),
        "teachers-kd": table(compared(runs, teachers("kd"), "methods/s3/kd")),
        "students": table(by_student(runs)),
        "pairs": table(pairs(runs)),
        "tutors": table(tutors(runs)),
        "together": together(runs),
    }
    put(PAGE, tables)
