"""What a bundle says of itself, compared with what is known from elsewhere: the registry, its spec and its reports.

All that is compared was equal at the export, so a difference means that the bundle was changed afterwards.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from zoo.datasets import DATASETS
from zoo.evaluation.threat import ThreatModel
from zoo.export.bundle.conditions import conditions
from zoo.export.bundle.manifest import Manifest, Report, io_of, read_report
from zoo.registry.entry import Entry, Registry, Result
from zoo.registry.file import entry_called
from zoo.specs import cost, parse_spec
from zoo.system.errors import IntegrityError
from zoo.weights.address import has_scheme


class Claim(NamedTuple):
    """What the manifest ``said`` in a field, and what is ``known`` of it; ``source`` introduces that in a message."""

    field: str
    said: Any
    source: str
    known: Any


def check_claims(folder: Path, manifest: Manifest, registry: Registry | None = None) -> None:
    """Compare the ``manifest`` of the bundle in ``folder`` with the registry, its own spec and its own reports.

    Args:
        registry: None: the default one, see :func:`zoo.registry.file.load_registry`.

    Raises:
        IntegrityError: they contradict each other; the message names the field and both values.
    """
    report = read_report(folder / "reports" / "verify.json", Report)
    refuse(
        folder, chain(_of_the_spec(manifest), _of_the_registry(manifest, registry), _of_the_reports(manifest, report))
    )


def refuse(folder: Path, claims: Iterable[Claim]) -> None:
    """Raise IntegrityError with the first of ``claims`` that is not what is known, if there is one."""
    for field, said, source, known in claims:
        if said != known:
            raise IntegrityError(
                f"the manifest of '{folder}' says {field} = {_short(said)}, but {source} {_short(known)}: "
                "one of them was changed after the export, do not use the bundle"
            )


def _short(value: Any) -> str:
    text = str(list(value)) if isinstance(value, tuple) else repr(value)
    return text if len(text) <= 200 else f"{text[:200]}..."


def accuracies(measured: dict[str, Any]) -> dict[str, Any]:
    """The accuracy under each protocol; a result without one as it is."""
    found = {}
    for protocol, result in measured.items():
        accuracy = result.get("accuracy") if isinstance(result, dict) else None
        found[protocol] = accuracy["value"] if isinstance(accuracy, dict) and "value" in accuracy else result
    return found


def _of_the_spec(manifest: Manifest) -> Iterator[Claim]:
    spec, labels = manifest.spec, manifest.labels
    for quantity, known in cost(spec)._asdict().items():
        yield Claim(f"cost.{quantity}", getattr(manifest.cost, quantity), "its architecture has", known)
    for name, port in (("input", manifest.io.input), ("output", manifest.io.output)):
        for fact, known in getattr(io_of(spec), name):
            yield Claim(f"io.{name}.{fact}", getattr(port, fact), "every exported model of this kind has", known)
    classes = DATASETS[manifest.dataset].classes if manifest.dataset in DATASETS else ()
    if classes and len(classes) != spec.classes:
        yield Claim("dataset", manifest.dataset, "its architecture is for this number of classes:", spec.classes)
    if labels:
        yield Claim("labels", labels, f"{manifest.dataset} has", classes or labels)
        yield Claim("number of labels", len(labels), "its architecture has", spec.classes)


def _of_the_registry(manifest: Manifest, registry: Registry | None = None) -> Iterator[Claim]:
    """A released model has what its entry has; any other has neither the name nor the figures of a released one."""
    name, source = manifest.name, manifest.source
    own = source.twin is not None or has_scheme(source.name)
    entry = None if own else entry_called(source.name, registry=registry)
    if entry:
        yield from _of_the_entry(manifest, entry)
        return
    taken = entry_called(name, registry=registry)
    if taken:
        yield Claim("name", name, "its weights are not those of that model, which have SHA-256", taken.weights.sha256)
    for field, figures in (("measured", accuracies(manifest.measured)), ("reported", manifest.reported)):
        yield Claim(field, figures, "only released models have figures, and this one has", {})


def _of_the_entry(manifest: Manifest, entry: Entry) -> Iterator[Claim]:
    registry, source = f"the registry's '{entry.name}' has", manifest.source
    if manifest.name not in (entry.name, *entry.aliases, source.name):
        yield Claim("name", manifest.name, "its source has the name", entry.name)
    yield Claim("source.file_sha256", source.file_sha256 or entry.weights.sha256, registry, entry.weights.sha256)
    spec, known = manifest.spec.to_dict(), parse_spec(entry.spec).to_dict()
    for key in known | spec:
        yield Claim(f"spec.{key}", spec.get(key), registry, known.get(key))
    yield Claim("dataset", manifest.dataset, registry, entry.dataset)
    yield Claim("threat_model", str(manifest.threat_model), registry, str(entry.threat))
    for protocol, figures in manifest.measured.items():
        result = entry.results.get(protocol)
        if result is None or not _agrees(figures, result):
            said = figures.get("accuracy", figures) if isinstance(figures, dict) else figures
            yield Claim(f"measured.{protocol}", said, registry, result and result.accuracy.to_dict())
    for protocol, number in manifest.reported.items():
        stated = entry.reported.get(protocol)
        value = number.get("value") if isinstance(number, dict) else number
        yield Claim(f"reported.{protocol}", value, registry, stated and stated.value)


def _agrees(said: Any, known: Result) -> bool:
    """Whether a result is the one in the registry, or from another measurement, which may differ by chance."""
    accuracy = said.get("accuracy") if isinstance(said, dict) else None
    if not isinstance(accuracy, dict) or said.get("measured_at") == known.measured_at:
        return accuracy == known.accuracy.to_dict()
    (low, high), value = known.accuracy.ci95, accuracy.get("value")
    return accuracy.get("n") == known.accuracy.n and isinstance(value, float) and low <= value <= high


def _of_the_reports(manifest: Manifest, report: Report) -> Iterator[Claim]:
    source, threat = "reports/verify.json has", asdict(manifest.threat_model)
    yield Claim("verified", manifest.verified, source, report.reached)
    yield Claim("conditions", manifest.conditions, source, manifest.conditions and conditions(report))
    yield Claim("gates", [gate.name for gate in manifest.gates], source, [rung.name for rung in report.rungs])
    for gate, rung in zip(manifest.gates, report.rungs, strict=True):
        for fact in ("holds", "n", "threshold", "measured"):
            yield Claim(f"gates.{gate.name}.{fact}", getattr(gate, fact), source, getattr(rung, fact))
        for protocol in gate.protocols:
            attacked = {fact: protocol[fact] for fact in threat.keys() & protocol.keys()}
            if isinstance(attacked.get("eps"), float):  # decimals of 8/255 too
                attacked["eps"] = ThreatModel(norm=protocol.get("norm", "linf"), eps=attacked["eps"]).eps
            for fact, value in attacked.items():
                yield Claim(f"threat_model.{fact}", threat[fact], "its engine was attacked under", value)
