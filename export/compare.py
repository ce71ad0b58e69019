"""Two models or engines side by side: accuracies on the same images in pairs, cost, and latencies where they are known.

Only what was measured on the same images under the same attack is compared; the rest is named, with the reason.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from zoo.evaluation.statistics import Accuracy, Paired, clustered
from zoo.export.bench.times import REPORT, Bench
from zoo.export.bundle.folder import as_bundle, read_bundle
from zoo.export.bundle.manifest import Report, read_report
from zoo.export.ladder.gate import CORRUPTIONS, flags_of
from zoo.registry.constraints import fastest
from zoo.registry.file import load_registry
from zoo.specs import cost
from zoo.system.errors import IntegrityError, UsageError
from zoo.system.hub import HubFiles
from zoo.weights.address import has_scheme
from zoo.weights.load import find

CLEAN = "no attack"


@dataclass(frozen=True)
class Measured:
    """Which images were classified correctly: ``bits``, bool [n], or [cells n] under corruptions, None where they are
    not stored; and what makes two of these comparable."""

    n: int
    dataset_sha256: str
    attack: str
    bits: np.ndarray | None


@dataclass(frozen=True)
class Subject:
    """What is compared: a released model or an exported engine.

    Attributes:
        size: bytes of the weights file, or of the engine's files.
        measured: by protocol; of a bundle, by rung of its ladder.
        latency: medians in ms with their engine, by device and batch size.
        flags: why its accuracies may be too high.
        ran: whether it was ever run; of a bundle that its device has yet to run, nothing is known.
    """

    name: str
    kind: str
    macs: int
    params: int
    size: int
    measured: dict[str, Measured]
    latency: dict[str, dict[int, tuple[float, str]]] = field(default_factory=dict)
    flags: tuple[str, ...] = ()
    ran: bool = True

    def facts(self) -> dict[str, Any]:
        """JSON-ready, without what was measured of the images."""
        latency = {
            device: {str(batch): {"p50_ms": ms, "engine": engine} for batch, (ms, engine) in times.items()}
            for device, times in self.latency.items()
        }
        plain = {key: getattr(self, key) for key in ("name", "kind", "macs", "params", "size")}
        return {**plain, "latency": latency, "flags": list(self.flags), **({} if self.ran else {"ran": False})}


@dataclass(frozen=True)
class Comparison:
    """``protocols`` are compared, JSON-ready by name; those in ``left_out`` cannot be, for the reason given."""

    a: Subject
    b: Subject
    protocols: dict[str, dict[str, Any]]
    left_out: dict[str, str]


def compare(a: str, b: str) -> Comparison:
    """Compare two models, each a name of the registry, a bundle's folder, or ``local-dir:PATH``, of which no
    measurements are stored.

    Raises:
        UnknownModel: the registry has no such name.
        UsageError: a folder holds no bundle.
        IntegrityError: a bundle was altered, or stored bits contradict the registry.
    """
    one, other = _subject(a), _subject(b)
    unrun = [who for who, subject in (("A", one), ("B", other)) if not subject.ran]
    protocols, left_out = {}, {}
    for name in dict.fromkeys([*one.measured, *other.measured]):
        reason = (
            f"{' and '.join(unrun)} was never run"
            if unrun
            else _obstacle(one.measured.get(name), other.measured.get(name))
        )
        if reason:
            left_out[name] = reason
        else:
            protocols[name] = _paired(one.measured[name].bits, other.measured[name].bits, one.measured[name].n)
    return Comparison(one, other, protocols, left_out)


def _obstacle(a: Measured | None, b: Measured | None) -> str | None:
    """Why the two cannot be compared; None where they can."""
    if a is None or b is None:
        return f"only {'A' if b is None else 'B'} was measured so"
    if a.dataset_sha256 != b.dataset_sha256:
        return "measured on other images"
    if a.attack != b.attack:
        return "the attacks have other settings"
    if a.n != b.n:
        return f"measured on {a.n:,} images and on {b.n:,}"
    missing = [who for who, one in (("A", a), ("B", b)) if one.bits is None]
    return f"no per-image bits are stored for {' and '.join(missing)}" if missing else None


def _paired(a: Any, b: Any, n: int) -> dict[str, Any]:
    """Accuracies, and A - B with Tango's two-sided 95 % score interval and McNemar's exact p; under corruptions, where
    each of the n images is in many cells, with the interval over images and no p."""
    if len(a) > n:
        a, b = a.reshape(-1, n), b.reshape(-1, n)
        difference, interval = clustered(a, b)
        means = {who: Accuracy.over(bits) for who, bits in (("a", a), ("b", b))}
        return {
            "n": n,
            **{who: {"accuracy": mean.value, "ci95": list(mean.ci95)} for who, mean in means.items()},
            "difference": difference,
            "ci95": list(interval),
        }
    pair = Paired.of(a, b)
    mirrored = Paired(pair.n, b=pair.c, c=pair.b)
    return {
        "n": pair.n,
        **{
            who: {"accuracy": (found := Accuracy.of(bits)).value, "ci95": list(found.ci95)}
            for who, bits in (("a", a), ("b", b))
        },
        "difference": pair.difference,
        "ci95": [-mirrored.upper(0.975), pair.upper(0.975)],
        "only_a_right": pair.b,
        "only_b_right": pair.c,
        "mcnemar_p": pair.mcnemar,
    }


def _subject(given: str) -> Subject:
    folder = as_bundle(given)
    if folder is not None:
        return _exported(given, folder)
    return _unreleased(given) if has_scheme(given) else _released(given)


def _unreleased(given: str) -> Subject:
    found = find(given, HubFiles(offline=True, progress=False))
    assert found.path is not None
    macs, params = cost(found.spec)
    size = found.path.stat().st_size if found.facts.subnet is None else found.facts.subnet.size
    return Subject(str(found.address), "weights that are not released", macs, params, size, {})


def _released(given: str) -> Subject:
    from zoo.registry.file import info
    from zoo.weights.release import stored_bits

    registry = load_registry()
    entry = info(given, registry=registry)
    name = entry.name
    try:
        bits = stored_bits(name)
    except UsageError:  # none at all
        bits = {}
    measured = {}
    for protocol, result in entry.results.items():
        settings, right = registry.protocols[protocol], bits.get(protocol)
        n, value = result.accuracy.n, result.accuracy.value
        if right is not None and (len(right) % n or round(value * len(right)) != right.sum()):
            raise IntegrityError(f"the per-image bits of '{name}' under {protocol} are not those of its registry entry")
        attack = CLEAN if settings["attack"] == "none" else _settings(settings)
        measured[protocol] = Measured(n, result.dataset_sha256, attack, right)
    latency: dict[str, dict[int, tuple[float, str]]] = {}
    for device, engines in entry.latency.items():
        for batch in sorted({int(batch) for batches in engines.values() for batch in batches}):
            best = fastest(entry, [device], batch=batch)
            latency.setdefault(device, {}).update({batch: best[:2]} if best else {})
    return Subject(name, "released weights", entry.macs, entry.params, entry.size, measured, latency, entry.flags)


def _exported(given: str, folder: Path) -> Subject:
    manifest = read_bundle(folder)
    kind, cost = f"{manifest.engine}-{manifest.artifact.precision}", manifest.cost
    report = read_report(folder / "reports" / "verify.json", Report)
    if report.artifact_sha256 != manifest.artifact.sha256:
        raise IntegrityError(f"the reports of '{folder}' are of another engine than the one in it: verify it again")
    measured = dict(_rungs(report))
    latency: dict[str, dict[int, tuple[float, str]]] = {}
    timed = read_report(folder / REPORT, Bench).engines if (folder / REPORT).exists() else ()
    for one in timed:
        if one.artifact_sha256 == manifest.artifact.sha256 and one.device:
            latency[one.device] = {each.batch: (each.p50_ms, kind) for each in one.times}
    flags = tuple(flags_of(report.rungs))
    ran = report.ran or bool(latency)
    return Subject(given, kind, cost.macs, cost.params, manifest.artifact.size, measured, latency, flags, ran)


def _rungs(report: Report) -> Iterator[tuple[str, Measured]]:
    """What the engine got right on every rung that has images and labels: under the attacks so far, of this rung and of
    those below."""
    attacks: list[str] = []
    for rung in report.rungs:
        attacks += map(_settings, rung.protocols)
        if rung.bits is not None:
            packed = np.frombuffer(bytes.fromhex(rung.bits["engine"]), np.uint8)
            bits = np.unpackbits(packed, count=rung.n).astype(bool)
            own = {"corruptions": [*rung.measured.get("kinds", ())], "seed": rung.seed}
            done = json.dumps(own) if rung.name == CORRUPTIONS else " ".join(attacks) or CLEAN
            yield rung.name, Measured(rung.n, rung.dataset_sha256, done, bits)


def _settings(protocol: Any) -> str:
    """What an attack does to an image, as text: not its name, nor which images."""
    rest = {key: value for key, value in protocol.items() if key not in ("name", "n") and value is not None}
    return json.dumps(rest, sort_keys=True)
