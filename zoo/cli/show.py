"""``zoo show``: all that the registry knows of a model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from zoo.cli.options import AsJson, ModelName, Quiet
from zoo.cli.output import Output, table
from zoo.registry.entry import Entry, Latency, Phase, Registry, Subnet, Teacher


def command(name: ModelName, as_json: AsJson = False, quiet: Quiet = False) -> None:
    """Show a model: architecture, cost, every measured accuracy beside the paper's, how it was trained.

    Of a folder, local-dir:PATH, its config.json is shown: what is measured there is not stored.

    \b
    Examples:
      zoo show trades-s7
      zoo show local-dir:runs/trades-s7/model
      zoo show trades-s7 --json
    """
    from zoo.registry.file import info, load_registry
    from zoo.weights.address import LOCAL, Address

    if Address.parse(name).scheme == LOCAL:
        facts = _folder(name)
        Output(as_json=as_json, quiet=quiet).result(facts, lambda: "\n".join(_folder_lines(facts)))
        return
    registry = load_registry()
    entry = info(name, registry=registry)
    facts = {"name": entry.name, **entry.to_dict()}
    Output(as_json=as_json, quiet=quiet).result(facts, lambda: "\n".join(_lines(registry, entry)))


def _folder(name: str) -> dict[str, Any]:
    """What is known of the model in a folder: its config.json, cost and weights."""
    from dataclasses import asdict

    from zoo.specs import cost
    from zoo.weights.load import find

    found = find(name)
    assert found.path is not None
    macs, params = cost(found.spec)
    config = {key: value for key, value in asdict(found.facts).items() if value is not None}
    weights = {"file": str(found.path), "size": found.path.stat().st_size, "sha256": found.sha256}
    task = {"dataset": found.task.dataset, "threat": asdict(found.task.threat)}
    return {**config, "name": found.title, **task, "macs": macs, "params": params, "weights": weights}


def _folder_lines(facts: Mapping[str, Any]) -> Iterator[str]:
    from zoo.cli.tables import wrapped
    from zoo.evaluation.threat import ThreatModel
    from zoo.registry.words import in_words
    from zoo.system.units import format_count, format_size

    yield facts["name"]
    yield from wrapped(facts.get("description", ""))
    yield ""
    train, weights = facts.get("train") or {}, facts["weights"]
    terms = {
        "family": facts.get("family"),
        "architecture": in_words(facts["spec"]),
        "cost": f"{facts['macs']:,} MACs (multiply-accumulates) an image, {format_count(facts['params'])} parameters",
        "data set": facts["dataset"],
        "threat model": str(ThreatModel(**facts["threat"])),
        "weights": f"{weights['file']}, {format_size(weights['size'])}, sha256 {weights['sha256'][:16]}...",
        "paper": facts.get("paper"),
        "training": f"recipe {train['recipe']}, {train['epochs']:g} epochs"
        if {"recipe", "epochs"} <= train.keys()
        else "",
    }
    yield from _terms(terms)


def _terms(facts: Mapping[str, str | None]) -> Iterator[str]:
    from zoo.cli.tables import wrapped

    for term, fact in facts.items():
        if fact:
            yield from wrapped(f"{term:13}{fact}", indent=" " * 13)


def _lines(registry: Registry, entry: Entry) -> Iterator[str]:
    from zoo.cli.tables import corruptions_table, wrapped
    from zoo.evaluation.flags import explained
    from zoo.registry.words import described, in_words
    from zoo.system.units import format_count, format_size

    yield entry.name
    yield from wrapped(f"{entry.description.rstrip('.')}.")
    yield ""
    facts = {
        "also called": ", ".join(entry.aliases),
        "family": entry.family,
        "architecture": in_words(entry.spec),
        "cost": f"{entry.macs:,} MACs (multiply-accumulates) an image, {format_count(entry.params)} parameters",
        "data set": entry.dataset,
        "threat model": str(entry.threat),
        "weights": f"{entry.weights.file}, {format_size(entry.weights.size)}, sha256 {entry.weights.sha256[:16]}...",
        "dynamic net": f"sub-nets of space {entry.supernet}: zoo search {entry.name}" if entry.supernet else None,
        "sub-net": _subnet(entry.subnet) if entry.subnet else None,
        "license": entry.license,
        "paper": entry.paper,
        "training": f"recipe {entry.train.recipe}, seed {entry.train.seed}, {entry.train.epochs:g} epochs, "
        f"{entry.train.wall_s / 60:.0f} min on {entry.train.device}"
        + (f" in {entry.train.precision}" if entry.train.precision else ""),
        "phases": "; ".join(map(_phase, entry.train.phases)),
        "start": entry.train.start.name if entry.train.start else "random weights",
        "teacher": _teacher(entry.train.teacher) if entry.train.teacher else "none",
        "flags": "; ".join(explained(entry.flags)) or None,
    }
    yield from _terms(facts)
    yield ""
    names = list(dict.fromkeys([*entry.results, *entry.reported]))
    yield _accuracies(entry, names) if names else "Nothing was measured."
    yield ""
    for name in entry.results:  # not of what only the paper has: its protocol may differ in detail
        yield from wrapped(f"{name}: {described(registry.protocols[name], [entry.measured(name)])}.", indent="  ")
    for source in dict.fromkeys(number.source for number in entry.reported.values()):
        stated = ", ".join(name for name, number in entry.reported.items() if number.source == source)
        yield from wrapped(f"paper % ({stated}), as stated, not measured here: {source}", indent="  ")
    for name, result in entry.results.items():
        if result.corruptions:
            yield from ["", f"{name}, %:", corruptions_table(result.corruptions.cells, result.accuracy.n)]
    for device, engines in entry.latency.items():
        yield from ["", f"Latency on {device}:", _latencies(engines)]


def _accuracies(entry: Entry, names: list[str]) -> str:
    """A row for every protocol of ``names``: measured here, and where a paper states any number, what it states."""
    columns = ["protocol", "accuracy %", "95 % interval", "n", "measured"]
    rows = []
    for name in names:
        row = [name, "-", "", "", ""]
        if result := entry.results.get(name):
            low, high = result.accuracy.ci95
            value, interval = f"{100 * result.accuracy.value:.2f}", f"{100 * low:.1f} - {100 * high:.1f}"
            row = [name, value, interval, f"{result.accuracy.n:,}", result.measured_at[:10]]
        rows.append(row)
    if entry.reported:
        columns.insert(2, "paper %")
        for name, row in zip(names, rows, strict=True):
            row.insert(2, f"{100 * entry.reported[name].value:.2f}" if name in entry.reported else "-")
    return table(columns, rows)


def _latencies(engines: Mapping[str, Mapping[str, Latency]]) -> str:
    """A row for every engine and batch size."""
    from zoo.system.units import format_ms

    columns = ["engine", "batch", "p50 ms", "p95 ms", "p99 ms", "images/s", "measured", ""]
    rows = [
        [
            *(engine, batch),
            *(format_ms(ms) for ms in (one.p50_ms, one.p95_ms, one.p99_ms)),
            f"{one.images_per_s:,.0f}",
            one.measured_at[:10],
            "busy" if one.busy else "",
        ]
        for engine, batches in engines.items()
        for batch, one in batches.items()
    ]
    return table(columns, rows)


def _phase(phase: Phase) -> str:
    return f"{phase.name} {phase.epochs:g} epochs, {phase.wall_s / 60:.0f} min"


def _subnet(subnet: Subnet) -> str:
    from zoo.system.units import format_size

    chosen = ", ".join(f"{name} {value:g}" for name, value in subnet.values.items())
    return f"of {subnet.of} ({chosen}); by itself {format_size(subnet.size)}"


def _teacher(teacher: Teacher) -> str:
    """Its name, and its accuracy where it was measured: ``nfgsm-wrn34-2, clean 79.4 ±0.8, pgd20 48.1 ±1.0``."""
    from zoo.registry.words import points

    known = [f"{name} {points(teacher.accuracy[name])}" for name in ("clean", "pgd20") if name in teacher.accuracy]
    return ", ".join([teacher.name, *known])
