"""The study of engines. To measure: ``python docs/engines.py MODEL ... [-f ENGINES] [--precision LIST]``.

It exports each model to each engine into bundles/study, where nothing is refused, and passes over what is there;
``zoo bench bundles/study/* --peers none --write`` times it. ``python docs/engines.py`` alone takes what is in
bundles/study over into docs/engines.json and redraws docs/engines.png and the tables of docs/engines.md from it.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from itertools import product
from pathlib import Path
from typing import Any

from results import markdown, put

from zoo.evaluation.statistics import Paired
from zoo.export import export_model, read_bundle
from zoo.export.bench.times import REPORT, Bench
from zoo.export.engines import ENGINES, backend
from zoo.system.errors import ZooError
from zoo.system.files import pretty

DOCS = Path(__file__).parent
STORE, PAGE, PLOT = DOCS / "engines.json", DOCS / "engines.md", DOCS / "engines.png"
STUDY = Path("bundles/study")
REFUSES_NOTHING = 0.99  # margin: the gates are worked out below, from what was found
MARGIN = 0.01
QUERIES = {"fp32": 0, "fp16": 0, "int8": 1000}
RUNGS = {
    "clean": "clean",
    "transfer": "transfer",
    "surrogate": "+ surrogate",
    "targeted": "+ targeted",
    "black-box": "+ Square",
}
MARKS, COLOURS = {"fp32": "o", "fp16": "s", "int8": "D"}, ("#0b6e99", "#c2571a", "#4f7a28", "#7b4fa3")

Cell = dict[str, Any]


def measure(model: str, engine: str, precision: str, n: int) -> None:
    title = f"{model}--{backend(engine).name}-{precision}"
    if (STUDY / title / "manifest.json").exists() or precision not in backend(engine).precisions:
        return
    try:
        export_model(
            model,
            format=engine,
            precision=precision,
            out=STUDY,
            verify="attacked",
            margin=REFUSES_NOTHING,
            n=n,
            queries=QUERIES[precision],
            batches=(1, 8, 32, 64),
        )
        print(f"{title}: done", flush=True)
    except ZooError as error:
        print(f"{title}: {error}", flush=True)


def cell(bundle: Path) -> Cell:
    """What the study keeps of a bundle."""
    manifest = read_bundle(bundle)
    gates = {rung.name: rung.measured for rung in manifest.gates}
    keep = ("max_logit_difference", "agreement", "difference_between_batches", "difference_between_runs")
    found: Cell = {
        "model": manifest.name,
        "engine": manifest.engine,
        "precision": manifest.artifact.precision,
        "size": manifest.artifact.size,
        "artifact_sha256": manifest.artifact.sha256,
        "calibration": manifest.calibration.model_dump() if manifest.calibration else None,
        "toolchain": manifest.toolchain,
        "parity": {key: gates["parity"][key] for key in keep},
        "rungs": {
            rung.name: {
                "n": rung.n,
                "twin": rung.measured["twin"]["accuracy"],
                "engine": rung.measured["engine"]["accuracy"],
                "only_twin_right": rung.measured["only_twin_right"],
                "only_engine_right": rung.measured["only_engine_right"],
            }
            for rung in manifest.gates
            if rung.name in RUNGS
        },
    }
    if (bundle / REPORT).exists():
        bench = Bench.model_validate_json((bundle / REPORT).read_text(encoding="utf-8"))
        timed = next(one for one in bench.engines if one.artifact_sha256 == manifest.artifact.sha256)
        found["latency"] = {str(one.batch): {"p50_ms": one.p50_ms, "p95_ms": one.p95_ms} for one in timed.times}
        found["timed"] = {"device": timed.device, "threads": bench.threads, "warnings": list(bench.warnings)}
    return found


def take_over() -> list[Cell]:
    """The stored cells, with those of bundles/study in the place of older ones; times stay until there are new
    ones."""
    stored = json.loads(STORE.read_bytes()) if STORE.exists() else []
    fresh = [cell(path.parent) for path in sorted(STUDY.glob("*/manifest.json"))]
    cells: dict[tuple[str, str, str], Cell] = {}
    for one in [*stored, *fresh]:
        key = (one["model"], one["engine"], one["precision"])
        before = cells.get(key, {})
        cells[key] = {name: before[name] for name in ("latency", "timed") if name in before} | one
    engines, precisions = [engine.name for engine in ENGINES], list(MARKS)
    order = lambda key: (key[0], engines.index(key[1]), precisions.index(key[2]))  # noqa: E731
    kept = [cells[key] for key in sorted(cells, key=order)]
    STORE.write_text(pretty(kept) + "\n", encoding="utf-8", newline="\n")
    return kept


def lost(rung: Cell) -> str:
    """``0.4 (< 0.93)``: points lost against the twin, and the upper 95 % bound; bold where it passes no gate."""
    pair = Paired(rung["n"], b=rung["only_twin_right"], c=rung["only_engine_right"])
    text = f"{100 * pair.difference:.1f} (< {100 * pair.upper():.2f})"
    return text if pair.non_inferior(MARGIN) else f"**{text}**"


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _ms(found: Cell, batch: str) -> str:
    times = found.get("latency", {}).get(batch)
    return f"{times['p50_ms']:.3g} / {times['p95_ms']:.3g}" if times else "-"


def table(cells: Iterable[Cell]) -> str:
    heads = ["engine", "precision", "logits", *RUNGS.values(), "lost by transfer", "lost in all", "kB", "batch 1", "32"]
    rows = []
    for one in cells:
        rungs = one["rungs"]
        union = list(rungs.values())[-1]
        row = [
            one["engine"],
            one["precision"],
            f"{one['parity']['max_logit_difference']:.0e}",
            *(_percent(rungs[name]["engine"]) if name in rungs else "-" for name in RUNGS),
            lost(rungs["transfer"]),
            lost(union),
            f"{one['size'] / 1e3:,.0f}",
            *(_ms(one, batch) for batch in ("1", "32")),
        ]
        rows.append(row)
    return markdown(heads, rows, 2)


def tables(cells: list[Cell]) -> str:
    """For each model a table, below what its float twin gets right."""
    parts = []
    for model in dict.fromkeys(one["model"] for one in cells):
        own = [one for one in cells if one["model"] == model]
        most = max(own, key=lambda one: len(one["rungs"]))["rungs"]
        twin = ", ".join(f"{RUNGS[name]} {_percent(rung['twin'])}" for name, rung in most.items())
        parts.append(f"**{model}** — float twin: {twin}.\n\n{table(own)}")
    return "\n\n".join(parts)


def draw(cells: list[Cell]) -> None:
    """Accuracy under all attacks over latency at batch 1: a panel a model."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    timed = [one for one in cells if "latency" in one]
    models = list(dict.fromkeys(one["model"] for one in timed))
    if not models:
        return
    figure, panels = plt.subplots(1, len(models), figsize=(4 * len(models), 3.8), dpi=150, sharey=True, squeeze=False)
    for axes, model in zip(panels[0], models, strict=True):
        for one in (one for one in timed if one["model"] == model):
            union = list(one["rungs"].values())[-1]
            engine = [each.name for each in ENGINES].index(one["engine"])
            label = f"{one['engine']} {one['precision']}"
            axes.plot(
                one["latency"]["1"]["p50_ms"],
                100 * union["engine"],
                MARKS[one["precision"]],
                color=COLOURS[engine % len(COLOURS)],
                label=label,
            )
        for precision, style in (("fp32", ":"), ("int8", "--")):  # on ONNX Runtime, which comes first
            own = [one for one in timed if (one["model"], one["precision"]) == (model, precision)]
            if own:
                twin = list(own[0]["rungs"].values())[-1]["twin"]
                axes.axhline(100 * twin, color="#8a8a8a", linewidth=0.9, linestyle=style, zorder=0)
        axes.set_title(model, fontsize=10)
        axes.set_xlabel("median ms for one image")
        axes.set_xlim(left=0)
        axes.grid(color="#e6e6e6", linewidth=0.8)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0][0].set_ylabel("accuracy under all attacks of the ladder, %")
    panels[0][-1].legend(frameon=False, fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(PLOT, bbox_inches="tight")


def redraw() -> None:
    cells = take_over()
    put(PAGE, {"study": tables(cells)})
    draw(cells)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", metavar="MODEL", nargs="*")
    parser.add_argument("--format", "-f", default=",".join(engine.name for engine in ENGINES))
    parser.add_argument("--precision", default="fp32,fp16,int8")
    parser.add_argument("-n", type=int, default=1000, help="images that are attacked")
    given = parser.parse_args()
    for one in product(given.models, given.format.split(","), given.precision.split(",")):
        measure(*one, given.n)
    if not given.models:
        redraw()
