"""The process of the command line: its standard streams and Ctrl-C. Only light modules are imported here."""

from __future__ import annotations

import codecs
import io
import os
import signal
import sys
from types import FrameType
from typing import NoReturn

INTERRUPTED = 130


def open_streams() -> None:
    """Make the standard streams accept every character and exist.

    A character that the stream's encoding lacks is written as an escape, and a name of a file as the bytes that it has.
    Without a locale (ASCII) the encoding becomes UTF-8, unless PYTHONIOENCODING chooses it. A closed stream becomes the
    null device: otherwise the next file that is opened would get its number.
    """
    codecs.register_error("zoo", _bytes_or_escape)
    for name in ("stdin", "stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "r" if name == "stdin" else "w", encoding="utf-8"))  # noqa: SIM115
        elif isinstance(stream, io.TextIOWrapper) and name != "stdin":
            plain = codecs.lookup(stream.encoding).name == "ascii" and "PYTHONIOENCODING" not in os.environ
            stream.reconfigure(encoding="utf-8" if plain else stream.encoding, errors="zoo")


def _bytes_or_escape(error: UnicodeError) -> tuple[str | bytes, int]:
    try:
        return codecs.lookup_error("surrogateescape")(error)
    except UnicodeError:
        return codecs.lookup_error("backslashreplace")(error)


def handle_interrupts() -> None:
    """Let Ctrl-C raise KeyboardInterrupt, except during an import: there it ends the process at once.

    Extension modules turn the exception into errors of their own, or ignore it, and are left half imported.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not ignored, as by nohup
        signal.signal(signal.SIGINT, _interrupt)


def _interrupt(number: int, frame: FrameType | None) -> None:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            os.write(2, b"zoo: interrupted\n")
            os._exit(INTERRUPTED)
        frame = frame.f_back
    raise KeyboardInterrupt


def leave(code: int) -> NoReturn:
    """Exit with ``code``, also if stderr is full. A Ctrl-C from now on ends the process without a traceback."""
    if signal.getsignal(signal.SIGINT) is _interrupt:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        sys.stderr.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    sys.exit(code)


def speaks() -> bool:
    """Whether this process prints: of those that torchrun or ``accelerate launch`` started, the first one does."""
    return os.environ.get("WORLD_SIZE", "1") == "1" or os.environ.get("RANK", "0") == "0"
