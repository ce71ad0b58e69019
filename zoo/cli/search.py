"""``zoo search``: sub-nets of a dynamic net within budgets, by its predictor."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from zoo.cli.options import AsJson, Data, Macs, ModelName, Offline, Quiet, check_model
from zoo.cli.output import Output, table

if TYPE_CHECKING:
    from zoo.datasets.base import Dataset
    from zoo.train.proard.labelled import Labelling
    from zoo.train.proard.search import Found
    from zoo.train.spaces.dynamic import Space


def command(
    name: ModelName,
    flops: Macs = None,
    latency_ms: Annotated[
        float | None,
        typer.Option(metavar="MS", help="At most this latency of one image on one thread of this machine."),
    ] = None,
    min_clean: Annotated[str | None, typer.Option(metavar="SHARE", help="Predicted clean accuracy.")] = None,
    min_robust: Annotated[str | None, typer.Option(metavar="SHARE", help="Predicted accuracy under PGD.")] = None,
    by: Annotated[Literal["robust", "clean"], typer.Option(help="What the best sub-net is best at.")] = "robust",
    n: Annotated[
        int | None, typer.Option("-n", min=1, metavar="K", help="Show the best K, not the whole front.")
    ] = None,
    measure: Annotated[
        int, typer.Option(min=0, metavar="K", help="Measure the best K on held-out training images, and rank by that.")
    ] = 0,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="DIR", help="Cut the best one out, to DIR.")
    ] = None,
    candidates: Annotated[int, typer.Option(min=100, metavar="COUNT", help="Sub-nets that are looked at.")] = 10_000,
    seed: Annotated[int, typer.Option(min=0, help="One seed, one answer.")] = 0,
    data: Data = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    offline: Offline = False,
) -> None:
    """Search a dynamic net for sub-nets within a budget: no training, and without --measure no data.

    NSGA-II over predicted clean error, predicted robust error and MACs. NAME is a dynamic net of the registry or the
    folder that its training left. Accuracies are predicted for held-out training images, under PGD with few steps:
    compare them with each other only, and measure what you take: zoo eval local-dir:DIR.

    \b
    Examples:
      zoo search proard-tiny --flops 15M
      zoo search proard-tiny --flops 15M --latency-ms 2 --json
      zoo search proard-tiny --flops 12.5M --measure 5 --out runs/my-12.5M
    """
    check_model(name, folders=True, offline=offline)

    from zoo.datasets import dataset_for
    from zoo.system.errors import UsageError
    from zoo.system.units import format_count, parse_count, parse_share
    from zoo.train.proard.dynamic import dynamic
    from zoo.train.proard.labelled import USUAL
    from zoo.train.proard.search import Limits, best, check_range, search
    from zoo.weights.folder import ModelFolder

    output = Output(as_json=as_json, quiet=quiet)
    if latency_ms is not None and not latency_ms > 0:
        raise UsageError(f"a latency budget is a positive number of milliseconds, not {latency_ms}")
    limits = Limits(
        max_macs=None if flops is None else parse_count(flops),
        max_latency_ms=latency_ms,
        min_clean=None if min_clean is None else parse_share(min_clean),
        min_robust=None if min_robust is None else parse_share(min_robust),
    )
    if out is not None:
        ModelFolder(out).check_free()
    net = dynamic(name, offline=offline)
    space, dataset = net.space, None
    check_range(space, limits)  # before latencies are measured
    if measure or out is not None:
        dataset = dataset_for(space.spec(space.largest[0]), net.found.task.dataset).load(data, offline=offline)
    predictor = net.predictor()
    latency = None if latency_ms is None else _latencies(space, output)
    for sentence in check_range(space, limits, latency):
        output.say(sentence)
    found = search(space, predictor, limits, latency=latency, candidates=candidates, seed=seed)
    front = [_facts(space, found, index) for index in range(len(found.genes))]
    ranked = (-getattr(found, by)).argsort(kind="stable").tolist()
    chosen = best(found, by)
    labelling = predictor.labelling or USUAL
    if measure and dataset:
        if predictor.labelling is None:
            output.say(f"the predictor does not say how its sub-nets were measured; these are on {labelling.in_words}")
        chosen = _measured(net, found, front, ranked[:measure], by, dataset, labelling, output)
    report: dict[str, Any] = {
        "supernet": net.name,
        "space": space.name,
        "sub_nets": space.size(),
        "candidates": candidates,
        "seed": seed,
        "limits": vars(limits),
        "by": by,
        "predicted_for": predictor.labelling and predictor.labelling._asdict(),
        "measured_on": labelling._asdict() if measure else None,
        "front": [front[index] for index in ranked[:n]] if n else front,
        "best": front[chosen],
    }
    if out is not None and dataset:
        budget = flops or format_count(int(found.macs[chosen]))
        report["cut"] = str(net.save(found.genes[chosen], dataset, out, name=f"{net.found.title}@{budget}"))
    shown = [front[index] for index in (ranked[:n] if n else _spread(len(front), 20))]
    if front[chosen] not in shown:
        shown.append(front[chosen])
    output.result(report, lambda: _table(shown, front[chosen], report))


def _latencies(space: Space, output: Output) -> Any:
    from functools import partial

    from zoo.export.bench.nets import time_architectures
    from zoo.train.proard.latency import latency_table

    with output.progress() as advance:
        timed = partial(time_architectures, progress=partial(advance, "timing"))
        return latency_table(space, timed, notify=output.say)


def _facts(space: Space, found: Found, index: int) -> dict[str, Any]:
    """A sub-net of the front as JSON data."""
    predicted = {
        key: {"predicted": round(float(values[index]), 4), "spread": round(float(found.spread[index, column]), 4)}
        for column, (key, values) in enumerate((("clean", found.clean), ("robust", found.robust)))
    }
    latency = {} if found.latency_ms is None else {"latency_ms": round(float(found.latency_ms[index]), 4)}
    return {"values": space.values(found.genes[index]), "macs": int(found.macs[index]), **latency, **predicted}


def _measured(
    net: Any,
    found: Found,
    front: list[dict[str, Any]],
    indices: list[int],
    by: str,
    dataset: Dataset,
    labelling: Labelling,
    output: Output,
) -> int:
    """Measure the sub-nets at ``indices`` as the predictor's were, record the results in ``front``, and return the best
    of them."""
    from zoo.train.proard.measuring import measured

    with output.progress() as advance:
        for done, index in enumerate(indices):
            advance("measured", done, len(indices))
            clean, robust = measured(net, found.genes[index], dataset, labelling)
            front[index]["clean"]["measured"], front[index]["robust"]["measured"] = clean, robust
    return max(indices, key=lambda index: (front[index][by]["measured"], -front[index]["macs"]))


def _spread(count: int, most: int) -> list[int]:
    """At most ``most`` of the indices below ``count``, evenly apart, the last among them."""
    if count <= most:
        return list(range(count))
    return sorted({round(index * (count - 1) / (most - 1)) for index in range(most)})


def _table(shown: list[dict[str, Any]], best: dict[str, Any], report: dict[str, Any]) -> str:
    steps = (report["predicted_for"] or {}).get("steps")
    columns = ["sub-net", "M MACs", "clean %", f"PGD-{steps} %" if steps else "PGD %"]
    timed, checked = "latency_ms" in best, any("measured" in one["robust"] for one in shown)
    columns += ["ms"] * timed + ["measured"] * checked
    rows = []
    for one in shown:
        row = [_short(one["values"]), f"{one['macs'] / 1e6:.2f}"]
        row += [f"{100 * one[key]['predicted']:.1f} ±{200 * one[key]['spread']:.1f}" for key in ("clean", "robust")]
        if timed:
            row.append(f"{one['latency_ms']:.3f}")
        if checked:
            found = [one[key].get("measured") for key in ("clean", "robust")]
            row.append("-" if None in found else " / ".join(f"{100 * value:.1f}" for value in found))
        rows.append([*row, "<- best" if one is best else ""])
    text = table([*columns, ""], rows)
    text += "\n\nPredicted for held-out training images; ± is two standard deviations of the ensemble."
    return text + (f"\nCut out: {report['cut']} (try `zoo eval local-dir:{report['cut']}`)" if "cut" in report else "")


def _short(values: dict[str, float]) -> str:
    """``stage1 4x32, stage2 ...`` or, where blocks differ, the genes themselves."""
    stages = list(dict.fromkeys(name.partition(".")[0] for name in values))
    if all(len([name for name in values if name.startswith(f"{stage}.")]) == 2 for stage in stages):
        return " ".join(f"{values[f'{stage}.depth']:g}x{values[f'{stage}.width']:g}" for stage in stages)
    return " ".join(f"{value:g}" for value in values.values())
