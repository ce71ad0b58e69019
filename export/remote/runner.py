"""What runs on the device: it answers the client's frames by the artifact's runtime.

Python 3.9 or newer, numpy and that runtime are needed there, not this package: this file, the two that it imports and
the runtime's from ``zoo/export/runtimes`` are sent as they are, see :mod:`zoo.export.remote.link`. Frames come on
standard input and leave on standard output until the pipe closes. The artifact's files stay in ``$ZOO_CACHE/remote``,
by default ``~/.cache/robust-zoo/remote``.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import sys
import time
import traceback
from typing import Any

from zoo.export.remote import frame
from zoo.export.remote.frame import BadFrame, Frame
from zoo.system.fingerprint import cores, fingerprint

MAX_CALLS = 10_000  # of one measurement


class Trouble(Exception):
    """The content of an ERROR: its kind is missing, integrity, device or usage."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class Session:
    """One artifact: its files come, it is loaded, it answers."""

    def __init__(self, runtime: Any) -> None:
        self.runtime = runtime  # one of zoo/export/runtimes
        root = os.environ.get("ZOO_CACHE") or os.path.join(os.path.expanduser("~"), ".cache", "robust-zoo")
        self.folder = os.path.join(root, "remote")
        self.run: Any = None

    def answer(self, kind: int, head: dict[str, Any], payload: bytes) -> Frame:
        """The frame that answers this one."""
        if kind == frame.OPEN:
            self.np = _package("numpy", "numpy")
            self.threads, self.options, self.files = head["threads"] or cores(), head["options"], head["files"]
            return self._ready()
        if kind == frame.FILE:
            self._keep(head["sha256"], payload)
            return self._ready()
        if kind == frame.INFER:
            x = self.np.frombuffer(payload, "<f4").astype(self.np.float32).reshape(head["shape"])
            logits = self.np.ascontiguousarray(self._logits(x), "<f4")
            return frame.LOGITS, {"id": head["id"], "shape": logits.shape}, logits.tobytes()
        if kind == frame.TIME:
            return frame.TIMES, {"ns": self._clocked(head["shape"], head["warmup"], head["repeats"])}, b""
        raise BadFrame(f"a frame of kind {kind} is not a request")

    def _keep(self, digest: str, content: bytes) -> None:
        """Write a file under its SHA-256, whole or not at all."""
        if hashlib.sha256(content).hexdigest() != digest:
            raise Trouble("integrity", f"a file arrived there with another SHA-256 than the announced {digest}")
        scratch = os.path.join(self.folder, f".{digest}.{os.getpid()}")
        try:
            os.makedirs(self.folder, exist_ok=True)
            with open(scratch, "wb") as file:
                file.write(content)
            os.replace(scratch, os.path.join(self.folder, digest))
        except OSError as error:
            raise Trouble(
                "usage",
                f"the cache '{self.folder}' cannot be written there ({error.strerror}): set ZOO_CACHE on the device",
            ) from None
        finally:
            if os.path.exists(scratch):
                os.remove(scratch)

    def _held(self, digest: str) -> bytes | None:
        """The content of the file in the cache, None if it is not there or damaged."""
        try:
            with open(os.path.join(self.folder, digest), "rb") as file:
                content = file.read()
        except OSError:
            return None
        return content if hashlib.sha256(content).hexdigest() == digest else None

    def _ready(self) -> Frame:
        """Load the artifact if all of it is here: the runtime gets the very bytes that were hashed."""
        held = {name: self._held(digest) for name, digest in self.files.items()}
        missing = [self.files[name] for name, content in held.items() if content is None]
        if missing:
            return frame.NEED, {"missing": missing}, b""
        parts = {name: content for name, content in held.items() if content is not None}
        pip = self.runtime.PIP
        version = _package(self.runtime.PACKAGE, pip).__version__
        for besides in getattr(self.runtime, "BESIDES", ()):
            _package(besides, besides)
        try:
            self.run, _, own = self.runtime.open(list(parts.values()), self.threads, **self.options)
        except Exception as error:  # the runtimes' exceptions have no base class of their own
            if hasattr(error, "kind"):
                raise Trouble(error.kind, str(error)) from error
            raise Trouble("device", f"{pip} {version} cannot load the artifact there: {_first_line(error)}") from error
        digests = {name: hashlib.sha256(content).hexdigest() for name, content in parts.items()}
        facts = {**fingerprint(), "runtime": pip, "version": version, "threads": self.threads, **own}
        facts["numpy"] = self.np.__version__
        return frame.HELLO, {"files": digests, "facts": facts}, b""

    def _logits(self, x: Any) -> Any:
        if self.run is None:
            raise Trouble("usage", "no artifact is loaded yet")
        try:
            return self.run(x)
        except Exception as error:
            raise Trouble("device", f"the runtime failed on a batch {list(x.shape)}: {_first_line(error)}") from error

    def _clocked(self, shape: list[int], warmup: int, repeats: int) -> list[int]:
        """Nanoseconds of each of ``repeats`` calls on the same uniform noise, after some that do not count."""
        if not (shape[0] >= 1 and warmup >= 0 and repeats >= 1 and warmup + repeats <= MAX_CALLS):
            asked = f"{warmup} + {repeats} calls with {shape[0]}"
            raise Trouble("usage", f"a measurement takes 1 to {MAX_CALLS} calls with 1 image or more, not {asked}")
        x = self.np.random.default_rng(0).random(shape, dtype=self.np.float32)
        clock = [0] * (warmup + repeats)
        for call in range(warmup + repeats):
            start = time.perf_counter_ns()
            self._logits(x)
            clock[call] = time.perf_counter_ns() - start
        return clock[warmup:]


def _package(name: str, pip: str) -> Any:
    """The module ``name``, or Trouble that says what to install."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        install = f"run '{sys.executable} -m pip install {pip}' on the device"
        raise Trouble("missing", f"{name} cannot be imported there ({error}): {install}") from None


def _first_line(error: Exception) -> str:
    """That of zoo.system.errors, which does not travel."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def main(runtime: Any) -> None:
    """Answer until the pipe closes. Bytes that are not a frame end it: where the next frame starts is unknown."""
    asked, answered = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # so that nothing that a library prints gets between frames
    session = Session(runtime)
    while True:
        sound = True
        try:
            kind, head, payload = frame.read_frame(asked)
            if kind == frame.BYE:
                return
            answer = session.answer(kind, head, payload)
        except EOFError:
            return
        except Trouble as error:
            answer = frame.ERROR, {"kind": error.kind, "message": str(error)}, b""
        except Exception as error:
            sound = False
            traceback.print_exc()
            blame = "device" if isinstance(error, MemoryError) else "integrity"
            answer = frame.ERROR, {"kind": blame, "message": f"the runner cannot answer: {error!r}"}, b""
        answered.write(frame.encode(*answer))
        answered.flush()
        if not sound:
            return
