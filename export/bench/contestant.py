"""One contestant of a bench, seen from outside: an engine of a bundle, or a peer that runs the same float model.

Each has a process of its own, which computes only while it is asked to: so its memory can be measured, and
threads and compilers of one do not disturb the others.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import zoo.system.errors
from zoo.export.bench.times import Timed, Times
from zoo.system.errors import ZooError

PEERS = ("pytorch", "torch.compile", "aotinductor")  # as PyTorch runs and compiles a model by default
COMMAND = (sys.executable, "-m", "zoo.export.bench.stopwatch")


@dataclass
class Contestant:
    """What is known of a contestant, and its process while it has one.

    Attributes:
        job: what the process is to load: ``kind`` ("engine" or one of :data:`PEERS`), ``threads``, ``cpus`` (numbers
            of the processors to stay on, or None), ``batches``, ``image_size``; for engines ``engine``, its name, and
            ``file``; for peers ``folder``, with the float model, and ``device``, "cpu" or "cuda".
        why: it cannot be had, or not any longer; None while it can.
        peaks_mb: memory by batch size.
        cpu_s: CPU time that the timed calls took.
    """

    facts: dict[str, Any]
    job: dict[str, Any]
    why: str | None = None
    peaks_mb: dict[int, float | None] = field(default_factory=dict)
    times: list[Times] = field(default_factory=list)
    cpu_s: float = 0.0
    process: subprocess.Popen[str] | None = None
    log: Path = Path(os.devnull)

    def start(self, log: Path) -> None:
        """Start the process and have it load the engine; ``log`` is a file for whatever it prints."""
        threads = str(self.job["threads"])
        with open(log, "wb") as out:
            self.log, self.process = (
                log,
                subprocess.Popen(
                    COMMAND,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=out,
                    text=True,
                    env={**os.environ, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads},
                ),
            )
        reply = self._ask(self.job)
        if reply is not None:
            self.peaks_mb = dict(zip(self.job["batches"], reply.pop("peaks_mb"), strict=True))
            self.facts |= reply

    def run(self, batch: int, seconds: float) -> list[float]:
        """Milliseconds of each call with ``batch`` images, for ``seconds``, once at least; none if it fails."""
        reply = self._ask({"batch": batch, "seconds": seconds})
        if reply is None:
            return []
        self.cpu_s += reply["cpu_s"]
        return reply["ms"]

    def close(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.communicate()

    def record(self) -> Timed:
        return Timed(**self.facts, times=tuple(self.times), why=self.why)

    def _ask(self, order: dict[str, Any]) -> dict[str, Any] | None:
        """The answer of the process; None, and ``why``, where a peer fails.

        Raises:
            ZooError: a bundle's engine fails; of the class that the process met, if it is one of ours.
        """
        assert self.process is not None
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            self.process.stdin.write(json.dumps(order) + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        whole = line.endswith("\n")
        reply = json.loads(line) if whole else {"error": {"kind": "its process ended", "message": self._last_words()}}
        if "error" not in reply:
            return reply
        kind, message = reply["error"]["kind"], reply["error"]["message"]
        if self.job["kind"] != "engine":
            self.why = f"{kind}: {message}"
            return None
        ours = getattr(zoo.system.errors, kind, None)
        if isinstance(ours, type) and issubclass(ours, ZooError):
            raise ours(message)
        raise ZooError(f"{self.facts['engine']} of {self.facts['model']} failed: {kind}: {message}")

    def _last_words(self) -> str:
        assert self.process is not None
        code = self.process.wait()
        printed = [line for line in self.log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
        return f"exit code {code}" + (f", after '{printed[-1].strip()}'" if printed else "")
