"""The pipe to a runner: a target such as ``ssh://pi@board``, the process that reaches it, frames there and back."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zoo.export.remote import frame
from zoo.export.remote.frame import BadFrame, Frame
from zoo.system import fingerprint
from zoo.system.errors import IntegrityError, MissingDependency, Unreachable, UsageError, WrongDevice, ZooError

TOO_OLD = 90  # exit status of a Python that is too old
# No quotes, dollars or backslashes: between double quotes every shell leaves it alone.
BOOT = (
    f"import sys;i=sys.stdin.buffer if sys.version_info>=(3,9) else sys.exit({TOO_OLD});exec(i.read(int(i.readline())))"
)
PRELUDE = """
import sys, types
sys.path[:] = [path for path in sys.path if path]  # what lies in the working folder there is not to be imported
package = sys.modules["zoo.export.remote"] = types.ModuleType("zoo.export.remote")
for name, text in {files!r}.items():
    module = sys.modules[name] = types.ModuleType(name)
    setattr(package, name.rpartition(".")[2], module)
    exec(compile(text, name + ".py", "exec"), module.__dict__)
package.runner.main(package.runtime)
"""
HERE = Path(__file__).parent
RUNTIMES = HERE.with_name("runtimes")
FINGERPRINT = Path(fingerprint.__file__)
TRAVELLING = ("frame", "runner")  # each after what it imports; and the fingerprint's file and the runtime's
OPTIONS = (
    *("-T", "-oBatchMode=yes", "-oClearAllForwardings=yes"),
    *("-oConnectTimeout=15", "-oServerAliveInterval=15", "-oServerAliveCountMax=4"),
)
ADDRESS = re.compile(
    r"ssh://(?:(?P<user>\w[\w.+-]*)@)?(?P<host>\w[\w.-]*|\[[0-9A-Fa-f:.]+(?:%\w+)?\])(?::(?P<port>\d{1,5}))?"
    r"(?P<python>/.*)?",
    re.ASCII,
)
ERRORS: dict[str, type[ZooError]] = {
    "missing": MissingDependency,
    "integrity": IntegrityError,
    "device": WrongDevice,
    "usage": UsageError,
}


class Dropped(Exception):
    """The connection ended; a new one may succeed."""


@dataclass(frozen=True)
class Target:
    """A device: its name for people, and the command whose pipe ends in a Python there that runs ``BOOT``."""

    name: str
    command: tuple[str, ...]


def target_of(text: str, *, ssh: Sequence[str] = ("ssh",)) -> Target:
    """What ``ssh://[user@]host[:port][/path/to/python]`` or ``local:[path/to/python]`` stands for.

    ``/~/`` starts a path in the home there, as in ``ssh://pi@board/~/venv/bin/python``; without a path it is the
    ``python3`` there. What else ssh needs (keys, jump hosts) is for its own configuration, or comes in ``ssh``.

    Raises:
        UsageError: it is neither.
    """
    if text.startswith("local:"):
        return Target(text, (text.removeprefix("local:") or sys.executable, "-c", BOOT))
    parts = ADDRESS.fullmatch(text)
    if not parts or int(parts["port"] or 22) not in range(1, 65536):
        raise UsageError(
            "a device is given as ssh://user@host, ssh://user@host:port/path/to/python, or local: for another process "
            f"here, not as '{text}'"
        )
    python = parts["python"] or "/"
    python = "python3" if python == "/" else re.sub("^/~/", "./", python)
    port = ("-p", parts["port"]) if parts["port"] else ()
    host = f"{parts['user']}@" * bool(parts["user"]) + parts["host"].strip("[]")
    return Target(text, (*ssh, *OPTIONS, *port, "--", host, f'{shlex.quote(python)} -c "{BOOT}"'))


def source(runtime: str) -> bytes:
    """The runner and the file of a runtime as one text, with its length in front, as ``BOOT`` reads it."""
    here = {name: HERE / f"{name}.py" for name in TRAVELLING} | {"runtime": RUNTIMES / f"{runtime}.py"}
    paths = {fingerprint.__name__: FINGERPRINT} | {f"zoo.export.remote.{name}": path for name, path in here.items()}
    files = {name: path.read_text(encoding="utf-8") for name, path in paths.items()}
    text = PRELUDE.format(files=files).encode()
    return b"%d\n" % len(text) + text


class Link:
    """A process at whose other end a runner answers. Its standard error is kept, for messages."""

    def __init__(self, target: Target, runtime: str, *, timeout: float) -> None:
        """Start it; nothing is known of the device before the first answer.

        Args:
            runtime: what runs the artifact there, a file of ``zoo/export/runtimes``.
            timeout: seconds that an answer may take.

        Raises:
            MissingDependency: there is no such program here.
        """
        self.target, self.timeout = target, timeout
        self.noise: bytearray | None = bytearray()  # what login scripts print before the first frame
        self.greeting = source(runtime)
        self.waiting: threading.Thread | None = None  # for the latest answer
        self.log = tempfile.TemporaryFile()  # noqa: SIM115 - open as long as the process lives
        try:
            process = subprocess.Popen(
                target.command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self.log,
                start_new_session=True,  # so that it can be killed with its children, which may hold the pipe open
            )
        except OSError as error:
            self.log.close()
            raise MissingDependency(f"'{target.command[0]}' cannot be run here: {error.strerror}") from None
        assert process.stdin is not None
        assert process.stdout is not None
        self.process, self.there, self.back = process, process.stdin, process.stdout

    def ask(self, kind: int, head: dict[str, Any], payload: bytes = b"") -> Frame:
        """Send a frame and wait for the one that answers it.

        Raises:
            Dropped: the connection ended before the answer was complete.
            Unreachable: there was no answer in time.
            IntegrityError: the answer is not a frame.
            MissingDependency, WrongDevice, UsageError: as the device says.
        """
        try:
            request = frame.encode(kind, head, payload)
        except BadFrame as error:
            raise UsageError(f"this is too much to send to '{self.target.name}' at once: {error}") from None
        answers: list[Frame | Exception] = []

        def exchange() -> None:
            try:
                with suppress(BrokenPipeError):  # a process that ends before it has read everything may have said why
                    self.there.write(self.greeting + request)
                    self.there.flush()
                answers.append(frame.read_frame(self.back, self.noise))
            except Exception as error:
                answers.append(error)

        # In a thread of its own: a descendant of the process may hold the pipe open however often it is killed.
        self.waiting = threading.Thread(target=exchange, daemon=True)
        self.waiting.start()
        self.waiting.join(self.timeout)
        if not answers:
            self._kill()
            raise Unreachable(f"'{self.target.name}' has not answered within {self.timeout:g} s{self._said()}")
        self.greeting = b""
        if isinstance(answers[0], EOFError | OSError):
            raise self._ended() from None
        if isinstance(answers[0], BadFrame):
            raise IntegrityError(
                f"'{self.target.name}' sends an answer that cannot be understood: {answers[0]}{self._said()}"
            ) from None
        if isinstance(answers[0], Exception):
            raise answers[0]
        answer, facts, content = answers[0]
        self.noise = None
        if answer == frame.ERROR:
            trouble = ERRORS.get(str(facts.get("kind")), IntegrityError)
            raise trouble(f"the device '{self.target.name}' says: {facts.get('message')}")
        return answer, facts, content

    def _kill(self) -> None:
        if os.name == "nt":
            self.process.kill()
        elif self.process.returncode is None:  # else the number may be another's by now
            os.killpg(self.process.pid, signal.SIGKILL)

    def _ended(self) -> Exception:
        """Why the process ended: it never started, or the connection dropped."""
        name = self.target.name
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(5)
        status = self.process.returncode
        another = "name another, as in ssh://host/path/to/python"
        if self.noise is not None and status == TOO_OLD:
            return MissingDependency(f"the Python of '{name}' is older than 3.9: {another}")
        if self.noise is not None and status in (126, 127):  # what shells return for a command that is not there
            return MissingDependency(f"'{name}' has no such Python: {another}{self._said()}")
        return Dropped(f"the connection ended, with status {status}{self._said()}")

    def _said(self) -> str:
        """A clause with the last lines that the other side printed, if any."""
        self.log.seek(0)
        text = bytes(self.noise or b"") + b"\n" + self.log.read()
        lines = [line.strip() for line in text.decode(errors="replace").splitlines() if line.strip()]
        return f" (it said: {' | '.join(lines[-3:])[-500:]})" if lines else ""

    def close(self, *, kill: bool = False) -> None:
        """Say goodbye, or just ``kill`` the process; it has ended when this returns."""
        if kill:
            self._kill()
        if self.waiting is not None:
            self.waiting.join(1)
            if self.waiting.is_alive():  # it is within a read of the pipe, which then cannot be closed
                self._kill()
                self.process.wait()
                self.log.close()
                return
        with suppress(OSError):
            self.there.write(frame.encode(frame.BYE, {}))
        with suppress(OSError):
            self.there.close()
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self._kill()
            self.process.wait()
        self.back.close()
        self.log.close()
