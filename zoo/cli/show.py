"""``zoo show``: all that the registry knows of a model."""

from __future__ import annotations

from collections.abc import Iterator

from zoo.cli.options import AsJson, ModelName, Offline, Quiet
from zoo.cli.output import Output, table
from zoo.entry import Entry, Registry


def command(name: ModelName, as_json: AsJson = False, quiet: Quiet = False, offline: Offline = False) -> None:
    """Show a model: architecture, cost, every measured accuracy, how it was trained.

    \b
    Examples:
      zoo show trades-s7
      zoo show trades-s7 --json
    """
    from zoo.registry import info, load_registry

    registry = load_registry()
    entry = info(name, registry=registry)
    facts = {"name": entry.name, **entry.to_dict()}
    Output(as_json=as_json, quiet=quiet).result(facts, lambda: "\n".join(_lines(registry, entry)))


def _lines(registry: Registry, entry: Entry) -> Iterator[str]:
    from zoo.budget import format_count, format_size
    from zoo.cli.tables import described, in_words, wrapped

    yield entry.name
    yield from wrapped(f"{entry.description.rstrip('.')}.")
    yield ""
    facts = {
        "family": entry.family,
        "architecture": in_words(entry.spec),
        "cost": f"{entry.macs:,} MACs (multiply-accumulates) an image, {format_count(entry.params)} parameters",
        "weights": f"{entry.weights.file}, {format_size(entry.weights.size)}, sha256 {entry.weights.sha256[:16]}...",
        "license": entry.license,
        "paper": entry.paper,
        "training": f"recipe {entry.train.recipe}, seed {entry.train.seed}, teacher {entry.train.teacher or 'none'}, "
        f"{entry.train.epochs:g} epochs, {entry.train.wall_s / 60:.0f} min on {entry.train.device}",
        "flags": ", ".join(entry.flags) or None,
    }
    for term, fact in facts.items():
        if fact:
            first, *more = wrapped(f"{term:13}{fact}", indent=" " * 13)
            yield from (first, *more)
    yield ""
    rows = []
    for name, result in entry.results.items():
        low, high = result.accuracy.ci95
        value, interval = f"{100 * result.accuracy.value:.2f}", f"{100 * low:.1f} - {100 * high:.1f}"
        rows.append([name, value, interval, f"{result.accuracy.n:,}", result.measured_at[:10]])
    yield table(["protocol", "accuracy %", "95 % interval", "n", "measured"], rows) if rows else "Nothing was measured."
    yield ""
    for name in entry.results:
        yield from wrapped(f"{name}: {described(registry.protocols[name])}.", indent="  ")
    for name, number in entry.reported.items():
        told = f"{name} {100 * number.value:.2f} ({number.source})"
        yield from wrapped(f"reported, not measured here: {told}", indent="  ")
    for device, engines in entry.latency.items():
        for engine, times in engines.items():
            yield f"latency on {device}, {engine}, batch {times.batch}: {times.p50_ms:g} ms (p95 {times.p95_ms:g} ms)"
