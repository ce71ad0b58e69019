"""The pages: what each of them shows, put into its template."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.evaluation.flags import explained
from zoo.export.bundle.conditions import in_words as conditions_in_words
from zoo.export.bundle.manifest import Rung
from zoo.export.ladder.gate import verdict
from zoo.registry.entry import Entry, Registry
from zoo.registry.words import attack_of, described, in_words, points, threat_of
from zoo.report import charts, commands, stories
from zoo.report.bundles import Shown
from zoo.report.choice import TITLES, Measure, Task, dataset_title, measures
from zoo.report.table import columns
from zoo.system.errors import IntegrityError, first_line
from zoo.system.units import format_count, format_ms, format_share, format_size
from zoo.version import __version__

if TYPE_CHECKING:
    from jinja2 import Environment

TEMPLATES = Path(__file__).with_name("templates")


def pages(registry: Registry, bundles: Sequence[Shown]) -> Iterator[tuple[str, str]]:
    """Each page with the name of its file.

    Raises:
        IntegrityError: a bundle holds a value that cannot be shown.
    """
    from jinja2 import TemplateError

    models = dict(zip(registry.models, _places("models", registry.models), strict=True))
    of_bundles = list(zip(bundles, _places("bundles", [one.title for one in bundles]), strict=True))
    by_model: dict[str, list[tuple[Shown, str]]] = {}
    for one, place in of_bundles:
        if one.model:
            by_model.setdefault(one.model.name, []).append((one, place))
    environment = _environment()
    template = {name: environment.get_template(f"{name}.html.j2") for name in ("index", "model", "bundle")}
    shared = {
        "registry": registry,
        "models": models,
        "version": __version__,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    choices = measures(registry)
    subnets: dict[str, list[Entry]] = {}
    for entry in registry.models.values():
        if entry.subnet:
            subnets.setdefault(entry.subnet.of, []).append(entry)
    first = {**_index(registry, bundles, choices, models), "bundles": of_bundles}
    yield "index.html", template["index"].render(shared, **first)
    for entry in registry.models.values():
        own = {"bundles": by_model.get(entry.name, []), "subnets": subnets.get(entry.name, [])}
        yield models[entry.name], template["model"].render(shared, **_model(entry), **own)
    for one, place in of_bundles:
        try:
            page = template["bundle"].render(shared, shown=one, commands=list(commands.of_bundle(one)))
        except (TemplateError, LookupError, TypeError, ValueError) as error:
            raise IntegrityError(
                f"the manifest of the bundle '{one.title}' has a malformed value ({first_line(error)}): do not use it"
            ) from error
        yield place, page


def _index(
    registry: Registry, bundles: Sequence[Shown], choices: Sequence[Measure], models: Mapping[str, str]
) -> dict[str, Any]:
    """What the first page shows. Its script finds what it needs in ``choice``."""
    shown = columns(registry, bundles)
    picks = {stop.pick for measure in choices for stop in measure.stops}
    facts = {
        name: {
            "href": models[name],
            "facts": [
                [one.title + (", %" if one.key in TITLES else ""), f"{cell.text} {cell.note}".strip()]
                for one in shown
                if one.number and (cell := one.cell(registry.models[name]))
            ],
        }
        for name in picks
    }
    choice = {
        "measures": [
            {
                "protocol": measure.protocol,
                "command": commands.of_pick(measure),
                "stops": [[stop.budget, stop.text, stop.pick] for stop in measure.stops],
            }
            for measure in choices
        ],
        "picks": facts,
        "models": models,
    }
    rows = [(entry, [column.cell(entry) for column in shown]) for entry in registry.models.values()]
    return {
        "columns": shown,
        "rows": rows,
        "families": sorted({entry.family for entry in registry.models.values()}),
        "measures": choices,
        "choice": choice,
        "chart_specification": charts.accuracy_over_macs(choices) if choices else None,
        "anchors": [one for task in dict.fromkeys(each.task for each in choices) for one in charts.anchors_of(task)],
    }


def _model(entry: Entry) -> dict[str, Any]:
    """What the page of a model shows besides its entry."""
    curve, search = stories.learning_curve(entry), stories.search(entry)
    tutors = list(stories.tutors(search)) if search else []
    return {
        "entry": entry,
        "task": Task(entry.dataset, entry.threat),
        "commands": list(commands.of_model(entry)),
        "toolchains": _toolchains(entry),
        "batches": {
            device: sorted({batch for times in engines.values() for batch in times}, key=int)
            for device, engines in entry.latency.items()
        },
        "curve": curve,
        "curve_chart": charts.learning_curve(curve) if curve else None,
        "search": search,
        "tutors": tutors,
        "tutor_chart": charts.tutor_map(tutors, search["teacher_layers"]) if search else None,
    }


def _toolchains(entry: Entry) -> list[tuple[Mapping[str, str], list[str]]]:
    """Each toolchain that the entry was measured with, and the protocols."""
    found: list[tuple[Mapping[str, str], list[str]]] = []
    for name, result in entry.results.items():
        names = next((names for toolchain, names in found if toolchain == result.toolchain), None)
        if names is None:
            found.append((result.toolchain, [name]))
        else:
            names.append(name)
    return found


def _places(folder: str, names: Iterable[str]) -> list[str]:
    """A file for each of the names, in letters that are safe in links; no two differ by case alone."""
    places: list[str] = []
    taken: set[str] = set()
    for number, name in enumerate(names):
        safe = re.sub(r"[^A-Za-z0-9@._-]", "-", name)[:200]
        place = f"{folder}/{safe}.html"
        while place.lower() in taken:
            safe = f"{safe}-{number}"
            place = f"{folder}/{safe}.html"
        taken.add(place.lower())
        places.append(place)
    return places


def _environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup, escape

    def breakable(text: str) -> Markup:
        """With places for line breaks in long names."""
        parts = re.split(r"(?<=[-_@./])|(?<=[a-z])(?=[A-Z])", text)
        return Markup("<wbr>").join(escape(part) for part in parts)

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "breakable": breakable,
        "combined": lambda one, other: {**one, **other},
        "commas": "{:,}".format,
        "count": format_count,
        "size": format_size,
        "share": format_share,
        "ms": format_ms,
        "points": points,
        "described": described,
        "architecture": in_words,
        "conditions": conditions_in_words,
        "dataset": dataset_title,
        "explained": explained,
        "attack": attack_of,
        "threat": threat_of,
        "verdict": _sentence,
    }
    return environment


def _sentence(rung: Rung) -> str:
    """What a rung found, without its name, which stands above."""
    said = verdict(rung).removeprefix(f"{rung.name}: ")
    return f"{said[0].upper()}{said[1:]}."
