"""The charts of the site, as Vega-Lite specifications. Colours are variables of the style sheet, so that light and dark
are the style sheet's affair."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

from zoo.report.choice import Measure, Task

SCHEMA = "https://vega.github.io/schema/vega-lite/v6.json"
INK, MUTED, RULE, ACCENT, WARM, PAPER = map("var(--{})".format, ("ink", "muted", "rule", "accent", "warm", "paper"))
AXIS = {
    "domainColor": RULE,
    "gridColor": RULE,
    "tickColor": RULE,
    "labelColor": MUTED,
    "titleColor": MUTED,
    "titleFontWeight": "normal",
    "labelFontSize": 11,
    "titleFontSize": 12,
}
CONFIG: dict[str, Any] = {
    "mark": {"aria": False},  # the element around the chart has its description
    "font": "system-ui, sans-serif",
    "background": "transparent",
    "view": {"stroke": None},
    "axis": AXIS,
    "legend": {"labelColor": INK, "titleColor": MUTED, "titleFontWeight": "normal", "orient": "top"},
}


@cache
def anchors() -> list[dict[str, Any]]:
    """Published results that were not measured here: name, MACs, accuracies by measure, and their source."""
    return json.loads(Path(__file__).with_name("anchors.json").read_bytes())


def anchors_of(task: Task) -> list[dict[str, Any]]:
    return [one for one in anchors() if one["dataset"] == task.dataset and _threat(one) == asdict(task.threat)]


def _threat(anchor: Mapping[str, Any]) -> dict[str, Any]:
    return {"norm": anchor["norm"], "eps": anchor["eps"]}


def accuracy_over_macs(measures: Sequence[Measure]) -> dict[str, Any]:
    """Accuracy over MACs of all ``measures``; the parameters ``measure``, ``budget``, ``pick`` and ``published`` say
    what is shown."""
    first = measures[0]
    values = [point for measure in measures for point in _points(measure)]
    costs = [max(1, point["macs"]) for point in values]
    return _chart(
        f"{first.title} accuracy over the multiply-accumulates of {len(first.entries)} models, with the Pareto front. "
        "The table of models holds the same numbers.",
        height=420,
        params=[
            {"name": "measure", "value": first.protocol},
            {"name": "budget", "value": first.stops[-1].budget},
            {"name": "pick", "value": first.stops[-1].pick},
            {"name": "published", "value": True},
        ],
        data={"values": values},
        transform=[{"filter": "datum.measure == measure && (published || datum.kind == 'model')"}],
        layer=list(_layers(min(costs), max(costs))),
        config=CONFIG | {"mark": CONFIG["mark"] | {"clip": True}},
    )


def _layers(least: int, most: int) -> Iterator[dict[str, Any]]:
    """From the back to the front; ``least`` and ``most`` MACs are within the axis."""
    scale = {"type": "log", "nice": False, "domain": [0.8 * least, 1.25 * most]}
    axis = {"title": "MACs of one image (log scale)", "format": "~s", "grid": False, "tickCount": 6}
    x = {"field": "macs", "type": "quantitative", "scale": scale, "axis": axis}
    y = {
        "field": "value",
        "type": "quantitative",
        "scale": {"zero": False, "nice": False, "padding": 9},
        "axis": {"title": "Accuracy, %", "tickCount": 6},
    }
    tooltip = [{"field": name, "title": title} for name, title in TOOLTIP.items()]
    point = {"type": "point", "filled": True, "opacity": 1}
    fill = {"condition": {"test": "datum.front", "value": ACCENT}, "value": PAPER}
    yield {
        "transform": [{"filter": "datum.kind == 'published'"}],
        "mark": {**point, "shape": "diamond", "color": MUTED, "opacity": 0.7, "size": 55},
        "encoding": {"x": x, "y": y, "tooltip": tooltip},
    }
    yield {
        "transform": [{"filter": "datum.front"}],
        "mark": {"type": "line", "interpolate": "step-after", "color": ACCENT, "strokeWidth": 1.5},
        "encoding": {"x": x, "y": y},
    }
    yield {
        "mark": {"type": "rule", "color": WARM, "strokeDash": [4, 3], "strokeWidth": 1.5},
        "encoding": {"x": {"datum": {"expr": "budget"}, "type": "quantitative"}},
        "data": {"values": [{}]},
    }
    yield {
        "transform": [{"filter": "datum.kind == 'model'"}],
        "mark": {"type": "rule", "color": ACCENT, "opacity": 0.5},
        "encoding": {"x": x, "y": {**y, "field": "low"}, "y2": {"field": "high"}},
    }
    yield {
        "transform": [{"filter": "datum.kind == 'model'"}],
        "mark": {**point, "stroke": ACCENT, "size": 55, "cursor": "pointer"},
        "params": [{"name": "zoom", "bind": "scales", "select": ZOOM}],
        "encoding": {"x": x, "y": y, "fill": fill, "tooltip": tooltip},
    }
    name = {"type": "text", "dy": -20, "fontWeight": 600, "fontSize": 12, "color": INK}
    ring = {**point, "filled": False, "size": 260, "stroke": WARM, "strokeWidth": 2}
    for mark in (ring, {**name, "stroke": PAPER, "strokeWidth": 5}, name):
        yield {
            "transform": [{"filter": "datum.name == pick && datum.kind == 'model'"}],
            "mark": mark,
            "encoding": {"x": x, "y": y, "text": {"field": "name"}} if mark["type"] == "text" else {"x": x, "y": y},
        }


ZOOM = {"type": "interval", "zoom": "wheel![event.shiftKey]"}  # a plain wheel scrolls the page
TOOLTIP = {"name": "model", "cost": "MACs", "accuracy": "accuracy", "interval": "95 % interval", "source": "source"}


def _points(measure: Measure) -> Iterator[dict[str, Any]]:
    front = {entry.name for entry in measure.front}
    for entry in measure.entries:
        accuracy = entry.results[measure.protocol].accuracy
        low, high = (round(100 * end, 2) for end in accuracy.ci95)
        yield {
            **_point(measure, entry.name, entry.macs, accuracy.value),
            "kind": "model",
            "front": entry.name in front,
            **{"low": low, "high": high, "interval": f"{low:.1f} to {high:.1f} %, n = {accuracy.n:,}"},
        }
    for one in anchors_of(measure.task):
        if measure.key in one:
            published = {"kind": "published", "interval": "not stated", "source": f"not measured here: {one['source']}"}
            yield {**_point(measure, one["name"], one["macs"], one[measure.key]), **published}


def _point(measure: Measure, name: str, macs: int, value: float) -> dict[str, Any]:
    shown = {"cost": f"{macs / 1e6:,.2f} M", "accuracy": f"{100 * value:.1f} % ({measure.title})"}
    return {"measure": measure.protocol, "name": name, "macs": macs, "value": round(100 * value, 2), **shown}


def learning_curve(history: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """Clean and PGD-10 accuracy on held-out training images over the epochs of a training."""
    values = [
        {"epoch": epoch["epoch"], "accuracy": round(100 * epoch[key], 2), "images": title}
        for epoch in history
        for key, title in (("clean", "clean"), ("pgd", "PGD-10"))
    ]
    return _chart(
        f"Accuracy on held-out training images over {len(history)} epochs; the table below holds the numbers.",
        height=240,
        data={"values": values},
        mark={"type": "line", "point": {"size": 20}},
        encoding={
            "x": {"field": "epoch", "type": "quantitative", "axis": {"title": "epoch", "grid": False}},
            "y": {"field": "accuracy", "type": "quantitative", "axis": {"title": "accuracy, %", "tickCount": 5}},
            "color": {
                "field": "images",
                "type": "nominal",
                "title": None,
                "scale": {"domain": ["clean", "PGD-10"], "range": [WARM, ACCENT]},
            },
            "tooltip": [{"field": name} for name in ("images", "epoch", "accuracy")],
        },
    )


def tutor_map(rows: Iterable[Mapping[str, Any]], layers: Sequence[str]) -> dict[str, Any]:
    """How probable each convolution of the teacher is as the tutor of each of the student's; a dot marks the chosen."""
    rows = list(rows)
    values = [
        {"student": row["layer"], "teacher": layer, "probability": p, "chosen": layer == row["tutor"]}
        for row in rows
        for layer, p in zip(layers, row["probabilities"], strict=True)
    ]
    axis = {"labelFontSize": 9, "ticks": False, "domain": False, "labelLimit": 140}
    layer = {"type": "nominal", "sort": None}
    opacity = {"field": "probability", "type": "quantitative", "scale": {"range": [0.05, 1]}, "legend": None}
    place = {
        "x": {**layer, "field": "teacher", "axis": {**axis, "title": "teacher", "labelAngle": -90}},
        "y": {**layer, "field": "student", "axis": {**axis, "title": "student"}},
        "tooltip": [{"field": name} for name in ("student", "teacher", "probability")],
    }
    return _chart(
        "The probability of each convolution of the teacher to be the tutor of each convolution of the student; the "
        "table below names the tutors.",
        height=14 * len(rows),
        data={"values": values},
        layer=[
            {
                "mark": {"type": "rect", "color": ACCENT},
                "encoding": {**place, "opacity": opacity},
            },
            {
                "transform": [{"filter": "datum.chosen"}],
                "mark": {"type": "point", "filled": True, "color": WARM, "size": 36, "opacity": 1},
                "encoding": place,
            },
        ],
    )


def _chart(description: str, *, height: int, **parts: Any) -> dict[str, Any]:
    fixed = {"$schema": SCHEMA, "description": description, "width": "container", "height": height, "config": CONFIG}
    return fixed | parts
