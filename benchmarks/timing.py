"""How everything here is timed: interleaved rounds, so that a drift of the machine falls on all alike; medians."""

from __future__ import annotations

import resource
import statistics
import time
from collections.abc import Callable, Mapping


def interleaved(
    contestants: Mapping[str, Callable[[], object]],
    *,
    rounds: int,
    warmup: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds of every round of every contestant, after ``warmup`` untimed rounds of each."""
    for contestant in contestants.values():
        for _ in range(warmup):
            contestant()
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, contestant in contestants.items():
            start = clock()
            contestant()
            seconds[name].append(clock() - start)
    return seconds


def processor() -> float:
    """A clock of the processor seconds of this process and of those that it has waited for."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def row(what: str, ours: str, seconds: Mapping[str, list[float]], *, goal: dict[str, float] | None = None) -> dict:
    """One benchmark's result: medians, spread, and how many times faster ``ours`` is than each peer."""
    median = {name: statistics.median(times) for name, times in seconds.items()}
    return {
        "what": what,
        "ours": ours,
        "median_s": median,
        "min_s": {name: min(times) for name, times in seconds.items()},
        "max_s": {name: max(times) for name, times in seconds.items()},
        "rounds": len(seconds[ours]),
        "speedup": {name: median[name] / median[ours] for name in median if name != ours},
        "goal": goal or {},
    }
