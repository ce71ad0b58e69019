"""How fast an engine is, beside other ways to run the same model: interleaved rounds, each contestant in its process.

Rounds go from one contestant to the next, so that a drift of the machine falls on all alike; one computes at a time.
What is timed, :mod:`zoo.export.bench.stopwatch` says.
"""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from zoo.export.bench.contestant import PEERS, Contestant
from zoo.export.bench.entrants import entrants
from zoo.export.bench.machine import Watch, warnings_of
from zoo.export.bench.remote import RemoteContestant
from zoo.export.bench.times import Bench, Times
from zoo.export.bundle.manifest import now
from zoo.system.errors import UsageError
from zoo.system.toolchain import toolchain

ROUNDS = 10


def bench(
    subjects: Sequence[Path | str],
    *,
    batches: Sequence[int] = (1, 32),
    threads: int = 1,
    seconds: float = 3.0,
    peers: Collection[str] = PEERS,
    engine: str = "onnx",
    device: str | None = None,
    offline: bool = False,
    notify: Callable[[str], None] = lambda message: None,
) -> Bench:
    """Time the engines of ``subjects``, and ``peers`` of each of their models.

    Args:
        subjects: bundles' folders, and names of models, which are exported in fp32 and dropped afterwards.
        threads: of every contestant, which stays on as many processors where the system allows. One by default: it is
            the steadiest, and the same on every machine.
        seconds: for timed calls, of each contestant and batch size.
        engine: for names.
        device: where the engines run, see :func:`zoo.export.remote.engine.connect`; without peers, which need PyTorch.
        notify: takes what begins, in a sentence.

    Raises:
        UsageError: an option is out of range, or two subjects have the same engine of the same model.
        ZooError: an engine cannot be loaded or run; of whatever class that trouble is. A peer may fail, and says why.
    """
    _check(subjects, batches, seconds, peers)
    if device and peers:
        raise UsageError("peers need PyTorch and this package where they run: with a device, ask for none of them")
    sizes, cpus = sorted(set(batches)), None if device else processors_of(threads)
    terms = {"threads": threads, "cpus": cpus, "batches": sizes}
    with tempfile.TemporaryDirectory(prefix="zoo-bench-") as scratch, ExitStack() as stack:
        folder = Path(scratch)
        found = entrants(
            subjects, peers, folder, engine=engine, device=device, offline=offline, notify=notify, terms=terms
        )
        contestants: list[Contestant] = [RemoteContestant.of(one, device) if device else one for one in found]
        for i, one in enumerate(contestants):
            if one.why is None:
                notify(f"starting {one.facts['engine']} of {one.facts['model']} ...")
                stack.callback(one.close)
                one.start(folder / f"{i}.log")
        watch = Watch()
        for batch in sizes:
            notify(f"timing batches of {batch} ...")
            time_batch(contestants, batch, seconds)
        # What else a device did is not known.
        machine = {} if device else watch.seen(sum(one.cpu_s for one in contestants))
    return Bench(
        threads=threads,
        cpus=cpus,
        seconds=seconds,
        rounds=ROUNDS,
        engines=tuple(one.record() for one in contestants),
        machine=machine,
        warnings=tuple(warnings_of(machine)),
        toolchain=toolchain(),
        created=now(),
    )


def time_batch(contestants: Sequence[Contestant], batch: int, seconds: float) -> None:
    """Give each contestant ``seconds`` with batches of this size, in rounds; who has used them up sits out the rest."""
    found: list[list[float]] = [[] for _ in contestants]  # milliseconds of each call
    for _ in range(ROUNDS):
        for one, ms in zip(contestants, found, strict=True):
            if one.why is None and sum(ms) < 1e3 * seconds:
                ms += one.run(batch, seconds / ROUNDS)
    for one, ms in zip(contestants, found, strict=True):
        if one.why is None:
            one.times.append(_times(ms, batch, one.peaks_mb.get(batch)))


def _times(ms: Sequence[float], batch: int, peak_mb: float | None) -> Times:
    p50, p95, p99 = (round(float(value), 4) for value in np.percentile(ms, (50, 95, 99)))
    rate = round(batch * len(ms) / (sum(ms) / 1e3), 1)
    return Times(batch=batch, p50_ms=p50, p95_ms=p95, p99_ms=p99, images_per_s=rate, calls=len(ms), peak_mb=peak_mb)


def _check(subjects: Sequence[Path | str], batches: Sequence[int], seconds: float, peers: Collection[str]) -> None:
    unknown = sorted(set(peers) - set(PEERS))
    if unknown:
        raise UsageError(f"peers are {', '.join(PEERS)}, not '{unknown[0]}'")
    if not subjects or not batches or min(batches) < 1:
        raise UsageError("a bench takes at least one model or bundle, and batch sizes of 1 or more")
    if not 0 < seconds < math.inf:
        raise UsageError(f"a bench takes a number of seconds above 0, not {seconds:g}")


def processors_of(threads: int) -> tuple[int, ...] | None:
    """Those that all contestants stay on: the last, because the first has most of the system's own work; None where the
    system does not let them be chosen."""
    free = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
    most = len(free) if free else os.cpu_count() or 1
    if not 1 <= threads <= most:
        raise UsageError(
            f"a bench takes 1 to {most} threads here, one for each processor that it may use, not {threads}"
        )
    return tuple(free[-threads:]) if free else None
