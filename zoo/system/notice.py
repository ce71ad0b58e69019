"""Notices for the user that are no errors: the work goes on, but not as expected."""

from __future__ import annotations

import sys
from contextlib import suppress
from functools import cache


@cache
def say_once(message: str) -> None:
    """Print ``message``, one sentence, on stderr, once in a process."""
    with suppress(OSError):  # stderr may be full or closed
        print(f"zoo: {message}", file=sys.stderr, flush=True)
