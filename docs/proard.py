"""Refresh docs/proard.md: ``python docs/proard.py`` writes its tables and its plot, from the registry and proard.json.

``python docs/proard.py ablate ARM/SEED ...`` trains train/recipes/ablation-proard-ARM.toml (in
runs/ablation-proard-ARM/SEED, resumable) and measures 30 sub-nets of each; ``python docs/proard.py take RUN`` takes
over the predictor's scores and the effort of a finished run.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from results import COLUMNS, cells, markdown, put
from scipy.stats import t as student

from zoo import info, list_models
from zoo.datasets.cifar10 import CIFAR10
from zoo.registry.entry import Entry
from zoo.specs import parse_spec
from zoo.system.files import locked, write_atomic
from zoo.train.pipeline import run
from zoo.train.proard import accounting, measuring
from zoo.train.proard.dynamic import dynamic
from zoo.train.proard.labelled import Labelling
from zoo.train.recipes.phases import load_phases, load_recipe
from zoo.train.spaces import space_called

DOCS = Path(__file__).parent
PAGE, STORE, PLOT = DOCS / "proard.md", DOCS / "proard.json", DOCS / "proard.png"
ARMS = {
    "random": "random, from scratch, hard labels",
    "taught": "the largest first, then random with it as teacher",
    "progressive": "the published order: largest, widths, depths",
    "hard": "sandwich rule, hard labels",
    "even": "sandwich rule, hard labels, drawn evenly over log MACs",
    "sandwich": "sandwich rule, taught by the largest as it is",
}
IMAGES, SUBNETS, SMALL = 1000, 30, 8e6


# -- the ablation ------------------------------------------------------------------------------------------------


def ablate(arm: str, seed: int) -> dict[str, Any]:
    """Train an arm, and measure the same 30 sub-nets of it as of the others, on held-out training images."""
    dataset, phases = CIFAR10.load(), load_phases(f"ablation-proard-{arm}", overrides=[f"train.seed={seed}"])
    folder = Path("runs") / f"ablation-proard-{arm}" / str(seed)

    def report(phase: str, epoch: dict[str, Any]) -> None:
        print(arm, seed, phase, epoch["epoch"], epoch["clean"], epoch["pgd"], flush=True)

    model = list(run(phases, dataset, folder, resume=True, report=report).values())[-1]
    net = dynamic(str(model))
    genes, labelling = measuring.drawn(net.space, SUBNETS, 1), Labelling(images=IMAGES)
    told = measuring.label(net, genes, dataset, folder / "measured.json", labelling)
    return {
        "macs": net.space.macs(told.genes).tolist(),
        "clean": told.clean.tolist(),
        "robust": told.robust.tolist(),
        "spent": sum(accounting.spent(phases, 49_000).values()),
    }


def ablation(runs: dict[str, dict[str, Any]]) -> str:
    """Accuracies of the sub-nets, of all and of those below 8 M MACs: means over seeds, the lowest and the highest.
    Differences to the sandwich rule with hard labels, with 95 % intervals: over seeds where there are several."""
    columns = [(key, of, limit) for of, limit in (("all", np.inf), ("small", SMALL)) for key in ("clean", "robust")]
    heads = [f"{'clean' if key == 'clean' else 'PGD-10'}, {of}" for key, of, _ in columns]
    heads = ["sampling", "seeds", "10^12 MACs", *heads, *(f"{head}, against hard" for head in heads)]
    rows = []
    for arm, words in ARMS.items():
        seeds = {name.partition("/")[2]: one for name, one in runs.items() if name.partition("/")[0] == arm}
        if not seeds:
            continue
        cells = [words, str(len(seeds)), f"{next(iter(seeds.values()))['spent'] / 1e12:.0f}"]
        cells += [spread([_of(one, key, limit).mean() for one in seeds.values()]) for key, _, limit in columns]
        for key, _, limit in columns:
            pairs = [(one, runs[f"hard/{seed}"]) for seed, one in seeds.items() if f"hard/{seed}" in runs]
            cells.append(apart([_of(one, key, limit) - _of(other, key, limit) for one, other in pairs], arm == "hard"))
        rows.append(cells)
    return markdown(heads, rows)


def _of(one: dict[str, Any], key: str, limit: float) -> np.ndarray:
    """Accuracies of the sub-nets with fewer multiply-accumulates than ``limit``, in %."""
    return 100 * np.array(one[key])[np.array(one["macs"]) < limit]


def spread(means: list[float]) -> str:
    text = f"{np.mean(means):.1f}"
    return f"{text} ({min(means):.1f} to {max(means):.1f})" if len(means) > 1 else text


def apart(differences: list[np.ndarray], itself: bool) -> str:
    """The mean difference [seeds][sub-nets], and its interval."""
    if itself or not differences:
        return ""
    over = np.array([one.mean() for one in differences]) if len(differences) > 1 else differences[0]
    half = student.ppf(0.975, len(over) - 1) * over.std(ddof=1) / len(over) ** 0.5
    return f"{over.mean():+.1f} ±{half:.1f}"


def keep(found: dict[str, dict[str, Any]]) -> None:
    """Add to what is stored, as it is now: arms may be trained side by side."""
    with locked(DOCS):
        store = json.loads(STORE.read_bytes())
        for key, values in found.items():
            store[key] = {**store.get(key, {}), **values}
        write_atomic(STORE, (json.dumps(store, indent=1) + "\n").encode())


# -- what is released --------------------------------------------------------------------------------------------


def subnets() -> list[Entry]:
    """The released sub-nets of proard-tiny, the cheapest first."""
    entries = [entry for name in list_models() if (entry := info(name)).subnet and entry.subnet.of == "proard-tiny"]
    return sorted(entries, key=lambda entry: entry.macs)


def row(entry: Entry, words: str) -> list[str]:
    return [words, f"{entry.macs / 1e6:.1f}", f"{entry.params / 1e6:.2f}", *cells(entry)]


def results() -> str:
    """Each sub-net, and below it the student of the same architecture that was trained alone, if there is one."""
    alone = {json.dumps(info(name).spec): info(name) for name in list_models("ard-p*-w15")}
    rows = []
    for entry in subnets():
        rows.append(row(entry, f"`{entry.name}` ({shape(entry)})"))
        control = alone.get(json.dumps(entry.spec))
        if control:
            rows.append(row(control, f"trained alone: `{control.name}`"))
    return markdown(["sub-net", "M MACs", "M params", *COLUMNS.values()], rows)


def shape(entry: Entry) -> str:
    """Blocks and width of each stage: ``3x24 3x56 3x136``."""
    return " ".join(f"{len(stage)}x{stage[0]}" for stage in entry.spec["widths"])


# -- what it costs -----------------------------------------------------------------------------------------------


def costs() -> str:
    """One training of a dynamic net against N separate ones."""
    rows = []
    for name, (once, alone, teacher) in {
        "tiny, as released": bill_of_tiny(),
        **{name: bill(name) for name in ("resnet", "mbv3")},
    }.items():
        ratios = [f"{(teacher + n * alone) / once:.1f}x" for n in (10, 60, 600)]
        even = (once - teacher) / alone
        rows.append([name, f"{once / 1e12:,.0f}", f"{alone / 1e12:,.0f}", f"{even:.1f}", *ratios])
    heads = ["space", "dynamic net, 10^12 MACs", "one student alone", "breaks even at N", "N = 10", "N = 60", "N = 600"]
    return markdown(heads, rows)


def bill_of_tiny() -> tuple[float, float, float]:
    """Multiply-accumulates of the released net with its teacher, of one of its budgets' students trained alone on as
    many images by the same teacher (on average), and of that teacher's own training."""
    entry, recipe, control = info("proard-tiny"), load_recipe("proard-tiny"), load_recipe("ard-p4-w15")
    students = [control.model_copy(update={"arch": parse_spec(one.spec)}) for one in subnets()]
    teacher = info("nfgsm-w15").train.images_seen * accounting.per_image_alone(load_recipe("nfgsm-w15"))
    alone = entry.train.images_seen * float(np.mean([accounting.per_image_alone(student) for student in students]))
    return teacher + entry.train.images_seen * accounting.per_image(recipe), alone, teacher


def bill(name: str) -> tuple[float, float, float]:
    """Multiply-accumulates of the dynamic net, of one RSLAD student of average size, and of the teacher both need."""
    phases, space = load_phases(f"proard-{name}"), space_called(name)
    spent = accounting.spent(phases, 50_000)
    largest = float(space.macs(space.largest)[0])
    average = float(space.macs(space.sample(5000, np.random.default_rng(0))).mean())
    width = phases["width"]
    passes = width.method.passes(width.attack)
    return sum(spent.values()), width.train.epochs * 50_000 * (passes * average + largest), spent["teacher"]


# -- the predictor -----------------------------------------------------------------------------------------------


def take(folder: str) -> dict[str, Any]:
    """Scores and effort of a finished run."""
    model = Path(folder) / "model"
    config = json.loads((model / "config.json").read_bytes())
    return {"predictor": json.loads((model / "predictor.json").read_bytes()), "wall_s": config["train"]["wall_s"]}


def draw() -> None:
    """The front that the search finds, and what was measured of it."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    from zoo.train.proard.search import Limits, search

    net = dynamic("proard-tiny")
    found = search(net.space, net.predictor(), Limits())
    figure, panels = plt.subplots(1, 2, figsize=(9.5, 3.9), dpi=150, sharex=True)
    others = [info(name) for name in list_models() if not info(name).subnet and info(name).macs < 50e6]
    for axes, key, predicted in zip(panels, ("clean", "pgd20"), (found.clean, found.robust), strict=True):
        axes.plot(found.macs / 1e6, 100 * predicted, ".", color="#c9d6df", markersize=4, label="front, as predicted")
        released = [entry for entry in subnets() if key in entry.results]
        points(axes, released, key, "o", "#0b6e99", "sub-nets, measured")
        robust = [e for e in others if key in e.results and "pgd20" in e.results and e.accuracy("pgd20") > 0.2]
        alone = [e for e in robust if e.name.startswith("ard-p")]
        if alone:
            points(axes, alone, key, "D", "#c2571a", "the same, trained alone")
        points(axes, [e for e in robust if e not in alone and not e.supernet], key, "s", "#8a8a8a", "other models")
        axes.set_xscale("log")
        axes.set_xticks([2, 4, 8, 15, 30], ["2", "4", "8", "15", "30"])
        axes.minorticks_off()
        axes.set_xlabel("M MACs")
        axes.set_title("clean accuracy, %" if key == "clean" else "accuracy under PGD, %", fontsize=10)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="#e6e6e6", linewidth=0.8)
        axes.set_axisbelow(True)
    panels[1].legend(frameon=False, fontsize=8, loc="lower right")
    figure.tight_layout()
    figure.savefig(PLOT)


def points(axes, entries: list[Entry], key: str, marker: str, colour: str, label: str) -> None:
    x = [entry.macs / 1e6 for entry in entries]
    told = [entry.results[key].accuracy for entry in entries]
    y = [100 * one.value for one in told]
    spread = [[100 * (one.value - one.ci95[0]) for one in told], [100 * (one.ci95[1] - one.value) for one in told]]
    axes.errorbar(x, y, yerr=spread, fmt=marker, color=colour, markersize=5, capsize=2, label=label)


def predictor(told: dict[str, Any]) -> str:
    """Scores on sub-nets of folds that were not fitted to."""
    rows = []
    for key, words in (("clean", "clean"), ("robust", "PGD-10")):
        one = told["predictor"][key]
        cells = [f"{one['tau']:.3f}", f"{100 * one['mae']:.2f}", f"{100 * one['bias']:+.2f}", f"{one['coverage']:.0%}"]
        rows.append([words, *cells])
    return markdown(["", "Kendall's tau", "mean absolute error, points", "bias", "within two deviations"], rows)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["ablate", *arms] if arms:
            asked = [(arm, seed or "0") for arm, _, seed in (name.partition("/") for name in arms)]
            if not all(arm in ARMS and seed.isdecimal() for arm, seed in asked):
                sys.exit(f"an arm is one of {', '.join(ARMS)}, with a seed as in hard/1")
            for arm, seed in asked:
                keep({"ablation": {f"{arm}/{seed}": ablate(arm, int(seed))}})
        case ["take", folder]:
            keep({"run": take(folder)})
        case [_, *_]:
            sys.exit(__doc__)
    store = json.loads(STORE.read_bytes())
    draw()
    tables = {"results": results(), "ablation": ablation(store["ablation"]), "costs": costs()}
    if "run" in store:
        tables["predictor"] = predictor(store["run"])
    put(PAGE, tables)
