"""What verbs print: results on stdout, messages and progress on stderr."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

Progress = Callable[[str, int, int], None]  # stage, done, total


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
        """The outcome, on stdout: ``data`` as JSON, or ``text``."""
        show(json.dumps(data, indent=2) if self.as_json else text() if callable(text) else text)

    @contextmanager
    def progress(self) -> Iterator[Progress]:
        """A callback ``(stage, done, total)`` that draws a bar for each stage, on a terminal."""
        if self.quiet or not sys.stderr.isatty():
            yield lambda stage, done, total: None
            return
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


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, right: Collection[int] | None = None) -> str:
    """Aligned columns, no wider than the terminal (80 columns where there is none).

    Columns in ``right`` (by default all but the first) are flush right. Where a row's first cell is too long, it gets
    a line of its own, so that names are never cut.
    """
    right = range(1, len(columns)) if right is None else right
    room = shutil.get_terminal_size((80, 24)).columns
    widths = [max(len(cell) for cell in column) for column in zip(columns, *rows, strict=True)]
    widths[0] = max(len(columns[0]), min(widths[0], room - sum(widths[1:]) - 2 * (len(widths) - 1)))

    def line(cells: Sequence[str]) -> str:
        if len(cells[0]) > widths[0]:
            return f"{cells[0]}\n{line(('', *cells[1:]))}"
        aligned = (
            cell.rjust(width) if i in right else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
        )
        return "  ".join(aligned).rstrip()

    rule = "  ".join("-" * width for width in widths)
    return "\n".join([line(columns), rule, *map(line, rows)])
