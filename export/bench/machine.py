"""Was the machine left to a bench, or had it other work meanwhile?"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

STAT = Path("/proc/stat")
OTHERS, STEAL = 0.1, 0.02  # shares of the processors from which on a bench was disturbed


class Watch:
    """Looks at the machine from its making until it is asked; what the system does not report is None."""

    def __init__(self) -> None:
        self.cores = os.cpu_count() or 1
        self.load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
        self.start, self.cpu, self.before = time.perf_counter(), time.process_time(), _ticks()

    def seen(self, own_s: float) -> dict[str, Any]:
        """What the machine did but for the bench, whose processes used ``own_s`` seconds of CPU besides this one.

        Returns:
            ``load_before``: processes that were running, or waiting to, in the minute before; ``others`` and ``steal``:
            shares of all processors that went to other work here, and to other guests of a virtual machine's host.
        """
        total = (time.perf_counter() - self.start) * self.cores
        own = own_s + time.process_time() - self.cpu
        after, others, steal = _ticks(), None, None
        if self.before and after and total > 0:
            busy, stolen = ((b - a) / os.sysconf("SC_CLK_TCK") for a, b in zip(self.before, after, strict=True))
            others, steal = (round(min(1.0, max(0.0, share / total)), 3) for share in (busy - own, stolen))
        return {"cores": self.cores, "load_before": self.load, "others": others, "steal": steal}


def warnings_of(machine: dict[str, Any]) -> list[str]:
    """What in the facts of :meth:`Watch.seen` makes times longer than they need be, in sentences."""
    found = []
    if (machine.get("load_before") or 0) > machine.get("cores", 0) / 2:
        found.append(f"the machine was busy before: a load of {machine['load_before']:.1f} on {machine['cores']} cores")
    if (machine.get("others") or 0) > OTHERS:
        found.append(f"other work took {machine['others']:.0%} of the processors meanwhile")
    if (machine.get("steal") or 0) > STEAL:
        found.append(f"the host of this virtual machine kept {machine['steal']:.0%} of the processors from it")
    return found


def _ticks() -> tuple[int, int] | None:
    """Of all processors since the start of the system: busy, and stolen by the host; in clock ticks."""
    try:
        label, *numbers = STAT.read_text(encoding="utf-8").split("\n", 1)[0].split()
    except OSError:
        return None
    if label != "cpu" or len(numbers) < 8:
        return None
    user, nice, system, _, _, irq, softirq, steal = map(int, numbers[:8])
    return user + nice + system + irq + softirq, steal
