"""A contestant of a bench on another machine: its calls are timed there, the connection is not in them."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from zoo.export.bench.contestant import Contestant
from zoo.export.remote.engine import Remote, connect
from zoo.system.device import remote_id

MOST = 5000  # calls of one order


@dataclass
class RemoteContestant(Contestant):
    """An engine that runs at ``target``, see :func:`zoo.export.remote.engine.connect`; its memory is not known."""

    target: str = ""
    remote: Remote | None = None

    @classmethod
    def of(cls, one: Contestant, target: str) -> RemoteContestant:
        return cls(one.facts, one.job, one.why, target=target)

    def start(self, log: Path) -> None:
        begun = time.perf_counter()
        self.remote = connect(self.target, Path(self.job["file"]).parent, threads=self.job["threads"])
        facts = self.remote.facts
        self.facts |= {
            "device": remote_id(facts, self.job["threads"]),
            "runtime": f"{self.remote.engine} {facts['version']}",
            "ready_s": round(time.perf_counter() - begun, 2),
        }

    def run(self, batch: int, seconds: float) -> list[float]:
        assert self.remote is not None
        one = float(self.remote.time(batch, repeats=3, warmup=3).min()) / 1e9
        repeats = min(MOST, max(1, round(seconds / max(one, 1e-7))))
        return [float(ns) / 1e6 for ns in self.remote.time(batch, repeats=repeats, warmup=3)]

    def close(self) -> None:
        if self.remote is not None:
            self.remote.close()
