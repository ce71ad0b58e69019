"""Write the site: every page from its template, the libraries once, all of it or nothing."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from shutil import copytree
from typing import TYPE_CHECKING, Any

from zoo.evaluation.flags import explained
from zoo.export.bundle.conditions import in_words as conditions_in_words
from zoo.export.bundle.folder import Kind, check_free, files, staged
from zoo.export.bundle.manifest import Rung
from zoo.export.ladder.gate import verdict
from zoo.registry.entry import Entry, Registry
from zoo.registry.file import load_registry, registry_path
from zoo.registry.words import attack_of, described, in_words, points
from zoo.report import charts, commands, stories
from zoo.report.bundles import Shown, read_bundles
from zoo.report.choice import TITLES, Measure, Task, dataset_title, measures
from zoo.report.libraries import libraries, require
from zoo.report.table import columns
from zoo.system.errors import UsageError
from zoo.system.units import format_count, format_ms, format_share, format_size
from zoo.version import __version__

if TYPE_CHECKING:
    from jinja2 import Environment

HERE = Path(__file__).parent
MARK = "report.json"  # the list of the site's files, by which it is known as one
MADE_BY = "robust-zoo report"


@dataclass(frozen=True)
class Site:
    """A site that was just written; ``size`` in bytes."""

    folder: Path
    models: int
    bundles: int
    size: int


def write_site(
    out: Path | str,
    *,
    registry: Path | str | None = None,
    bundles: Iterable[Path | str] = (),
    force: bool = False,
) -> Site:
    """Write a static site about the models of a registry, and about bundles, to the folder ``out``.

    Args:
        registry: the file; None: as :func:`zoo.registry.file.load_registry` finds it.
        bundles: bundles, and folders of bundles.
        force: replace a site that is there; nothing else is ever replaced.

    Raises:
        MissingDependency: the extra ``report`` is not installed.
        UsageError: ``out`` exists and may not be replaced, a place holds no bundle, or the registry holds no model.
        IntegrityError: the registry or a bundle is damaged.
        ExportFailed: the operating system refused a write.
    """
    require()
    out = Path(out)
    check_free(out, force=force, kind=REPORT)
    known = load_registry(registry)
    if not known.models:
        raise UsageError(f"the registry '{registry_path(registry)}' holds no model yet: there is nothing to report")
    shown = read_bundles(bundles, known)
    with staged(out, force=force, kind=REPORT) as scratch:
        for folder in ("assets", "models", "bundles"):
            (scratch / folder).mkdir()
        for name, text in chain(_scripts(), _pages(known, shown)):
            (scratch / name).write_text(text, encoding="utf-8", newline="\n")
        copytree(HERE / "assets", scratch / "assets", dirs_exist_ok=True)
        listed = {"made_by": MADE_BY, "version": __version__, "created": _now(), "files": files(scratch)}
        (scratch / MARK).write_text(json.dumps(listed, indent=1) + "\n", encoding="utf-8", newline="\n")
        size = sum((scratch / name).stat().st_size for name in files(scratch))
    return Site(out, len(known.models), len(shown), size)


def _is_report(folder: Path) -> bool:
    """Whether ``folder`` holds a site and nothing else."""
    try:
        listed = json.loads((folder / MARK).read_bytes())
        return listed["made_by"] == MADE_BY and set(files(folder)) - {MARK} <= set(listed["files"])
    except (OSError, ValueError, LookupError, TypeError):
        return False


REPORT = Kind("report", _is_report, "not a report, or holds other files too")


def _scripts() -> Iterator[tuple[str, str]]:
    return ((f"assets/{name}", script) for name, script in libraries().items())


def _pages(registry: Registry, bundles: Sequence[Shown]) -> Iterator[tuple[str, str]]:
    """Each page with the name of its file."""
    models = dict(zip(registry.models, _places("models", registry.models), strict=True))
    of_bundles = list(zip(bundles, _places("bundles", [one.title for one in bundles]), strict=True))
    by_model: dict[str, list[tuple[Shown, str]]] = {}
    for one, place in of_bundles:
        if one.model:
            by_model.setdefault(one.model.name, []).append((one, place))
    environment = _environment()
    template = {name: environment.get_template(f"{name}.html.j2") for name in ("index", "model", "bundle")}
    shared = {"registry": registry, "models": models, "version": __version__, "created": _now()}
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
        yield place, template["bundle"].render(shared, shown=one, commands=list(commands.of_bundle(one)))


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
        safe = re.sub(r"[^A-Za-z0-9@._-]", "-", name)
        place = f"{folder}/{safe}.html"
        if place.lower() in taken:
            place = f"{folder}/{safe}-{number}.html"
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
        loader=FileSystemLoader(HERE / "templates"),
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
        "verdict": _sentence,
    }
    return environment


def _sentence(rung: Rung) -> str:
    """What a rung found, without its name, which stands above."""
    said = verdict(rung).removeprefix(f"{rung.name}: ")
    return f"{said[0].upper()}{said[1:]}."


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
