"""What verbs print: results on stdout, messages and progress on stderr."""

from __future__ import annotations

import json
import math
import shutil
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

Progress = Callable[[str, int, int], None]  # stage, done, total
EVERY = 30.0  # seconds between two lines where there is no terminal


class OutputLost(Exception):
    """Stdout does not take what is printed; the cause is the OSError."""


def show(text: str) -> None:
    """Print ``text`` on stdout.

    Raises:
        OutputLost: the disk is full, or the reader has left.
    """
    try:
        print(text, flush=True)
    except OSError as error:
        raise OutputLost from error


def _finite(data: Any) -> Any:
    """``data`` with None for numbers that JSON lacks, which a file from elsewhere may hold."""
    if isinstance(data, dict):
        return {key: _finite(value) for key, value in data.items()}
    if isinstance(data, (list, tuple)):
        return [_finite(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data


@dataclass(frozen=True)
class Output:
    """How this call prints: as JSON or text, with or without messages."""

    as_json: bool = False
    quiet: bool = False

    def say(self, message: str) -> None:
        """A message for a person, on stderr."""
        if not self.quiet:
            with suppress(OSError):  # stderr may be full or closed
                print(message, file=sys.stderr, flush=True)

    def result(self, data: Any, text: str | Callable[[], str]) -> None:
        """The outcome, on stdout: ``data`` as JSON, or ``text``; either may be a function that makes it."""
        shown = data if self.as_json else text
        found = shown() if callable(shown) else shown
        show(json.dumps(_finite(found), indent=2) if self.as_json else found)

    @contextmanager
    def progress(self) -> Iterator[Progress]:
        """A callback ``(stage, done, total)`` that draws a bar for each stage on a terminal; elsewhere a line about the
        latest stage is written every half minute."""
        if self.quiet:
            yield lambda stage, done, total: None
        else:
            with _bars() if sys.stderr.isatty() else _lines() as advance:
                yield advance


@contextmanager
def _bars() -> Iterator[Progress]:
    from rich.console import Console
    from rich.progress import Progress as Bars
    from rich.progress import ProgressColumn, Task, TaskID

    class Speed(ProgressColumn):
        def render(self, task: Task) -> str:
            return f"{task.speed:,.0f} images/s" if task.speed else ""

    with Bars(*Bars.get_default_columns(), Speed(), console=Console(stderr=True), transient=True) as bars:
        stages: dict[str, TaskID] = {}

        def advance(stage: str, done: int, total: int) -> None:
            if stage not in stages:
                stages[stage] = bars.add_task(stage)
            bars.update(stages[stage], completed=done, total=total)

        yield advance


@contextmanager
def _lines() -> Iterator[Progress]:
    """Write from a thread, so that a stage that is silent for minutes has lines too."""
    latest: tuple[str, int, int] | None = None
    begun: dict[str, tuple[float, int]] = {}  # when a stage began, and what was done of it then
    over = threading.Event()

    def advance(stage: str, done: int, total: int) -> None:
        nonlocal latest
        begun.setdefault(stage, (time.monotonic(), done))
        latest = stage, done, total

    def speak() -> None:
        while not over.wait(EVERY):
            if latest is not None:
                with suppress(OSError):
                    print(_line(*latest, *begun[latest[0]]), file=sys.stderr, flush=True)

    thread = threading.Thread(target=speak, daemon=True)
    thread.start()
    try:
        yield advance
    finally:
        over.set()
        thread.join()


def _line(stage: str, done: int, total: int, since: float, before: int) -> str:
    """``pgd20: 120 of 1,000, about 4 min left``."""
    line = f"{stage}: {done:,} of {total:,}"
    if not before < done < total:
        return line
    left = (time.monotonic() - since) * (total - done) / (done - before)
    shown = f"{left:.0f} s" if left < 90 else f"{left / 60:.0f} min" if left < 5400 else f"{left / 3600:.1f} h"
    return f"{line}, about {shown} left"


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, right: Collection[int] | None = None) -> str:
    """Aligned columns, no wider than the terminal (80 columns where there is none).

    Columns in ``right`` (by default all but the first) are flush right. Where a row's first cell is too long, it gets
    a line of its own, so that names are never cut.
    """
    right = range(1, len(columns)) if right is None else right
    room = shutil.get_terminal_size((80, 24)).columns
    widths = [max(len(cell) for cell in column) for column in zip(columns, *rows, strict=True)]
    widths[0] = max(len(columns[0]), min(widths[0], room - sum(widths[1:]) - 2 * (len(widths) - 1)))

    aligned = "  ".join(f"{{:{'>' if i in right else '<'}{width}}}" for i, width in enumerate(widths)).format

    def line(cells: Sequence[str]) -> str:
        if len(cells[0]) > widths[0]:
            return f"{cells[0]}\n{line(('', *cells[1:]))}"
        return aligned(*cells).rstrip()

    rule = "  ".join("-" * width for width in widths)
    return "\n".join([line(columns), rule, *map(line, rows)])
