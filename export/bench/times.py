"""What a bench found, and where it is kept: in a bundle's reports, and in the registry for released models."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from zoo.export.bundle.folder import read_bundle, rewritten, write_sums
from zoo.export.bundle.manifest import Sha256, _Record, to_json
from zoo.registry.file import entry_called
from zoo.registry.write import write_latency
from zoo.system.errors import IntegrityError

REPORT = "reports/bench.json"


class Times(_Record):
    """Milliseconds of a call with ``batch`` images: median, 95th and 99th percentile.

    ``peak_mb``, 10^6 bytes, is the whole process's after calls with this batch size and smaller ones; None where the
    system does not say.
    """

    batch: int
    p50_ms: float
    p95_ms: float
    p99_ms: float
    images_per_s: float
    calls: int
    peak_mb: float | None = None


class Timed(_Record):
    """An engine of a model and its times, or ``why`` there are no more.

    ``artifact_sha256`` is of engines in bundles; ``file_sha256`` of released weights. ``ready_s`` lie between the start
    and the first answer: compilation is in them, unless PyTorch had it in its cache. ``base_mb`` is the memory of the
    process before the engine, with Python, PyTorch and this package in it.
    """

    model: str
    source: str
    tensors_sha256: Sha256
    file_sha256: Sha256 | None = None
    artifact_sha256: Sha256 | None = None
    engine: str
    device: str | None = None
    runtime: str | None = None
    ready_s: float | None = None
    base_mb: float | None = None
    times: tuple[Times, ...] = ()
    why: str | None = None

    def memory_mb(self, times: Times) -> float | None:
        """What the engine added to its process's memory; of PyTorch's own engines a part is in ``base_mb`` already."""
        if times.peak_mb is None or self.base_mb is None:
            return None
        return round(max(0.0, times.peak_mb - self.base_mb), 1)


class Bench(_Record):
    """All engines that were timed together, and the load of the machine (:mod:`zoo.export.bench.machine`)."""

    schema_version: Literal[1] = 1
    threads: int
    cpus: tuple[int, ...] | None = None  # that every process stayed on, by number; None: wherever the system put it
    seconds: float
    rounds: int
    engines: tuple[Timed, ...]
    machine: dict[str, Any]
    warnings: tuple[str, ...]
    toolchain: dict[str, str]
    created: str


def write_to_bundle(folder: Path, report: Bench) -> None:
    """Put what was timed of the bundle's model into its reports; the bundle stays whole at any moment.

    Raises:
        IntegrityError: the bundle was altered, or was not timed.
    """
    manifest = read_bundle(folder)
    if manifest.artifact.sha256 not in [one.artifact_sha256 for one in report.engines]:
        raise IntegrityError(f"'{folder}' is not a bundle that was timed: it was replaced during the bench")
    own = tuple(one for one in report.engines if one.tensors_sha256 == manifest.source.tensors_sha256)
    with rewritten(folder) as scratch:
        (scratch / REPORT).parent.mkdir(exist_ok=True)
        (scratch / REPORT).write_text(
            to_json(report.model_copy(update={"engines": own})), encoding="utf-8", newline="\n"
        )
        write_sums(scratch)


def write_to_registry(report: Bench) -> list[str]:
    """Put what was timed of released models into their registry entries; returns their names.

    Raises:
        IntegrityError: the registry would not be valid, and was left as it was.
    """
    latencies: dict[tuple[str, str], dict[str, dict[str, Any]]] = {}
    for one in report.engines:
        entry = entry_called(one.source)  # it may be an alias, or have a budget
        if entry and entry.weights.sha256 == one.file_sha256:
            latency = latencies.setdefault((entry.name, entry.weights.sha256), {})
            if one.device and one.times:
                times = {str(each.batch): _stored(each, one, report) for each in one.times}
                latency.setdefault(one.device, {})[one.engine] = times
    for (name, sha256), latency in latencies.items():
        write_latency(name, sha256, latency)
    return [name for name, _ in latencies]


def _stored(times: Times, engine: Timed, report: Bench) -> dict[str, Any]:
    """The form of :class:`zoo.registry.entry.Latency`."""
    return {
        **times.model_dump(exclude={"batch", "peak_mb"}),
        "memory_mb": engine.memory_mb(times),
        "busy": bool(report.warnings),
        "runtime": engine.runtime,
        "measured_at": report.created,
    }
