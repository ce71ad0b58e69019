"""``python -m zoo`` runs the command ``zoo``."""

from __future__ import annotations

import sys
from typing import NoReturn

from zoo.cli.process import INTERRUPTED, handle_interrupts, leave, open_streams


def main() -> NoReturn:
    """Run the command line and exit with its code."""
    handle_interrupts()
    open_streams()
    try:
        from zoo.cli.app import run

        code = run(sys.argv[1:])
    except KeyboardInterrupt:  # while an error was reported, say
        code = INTERRUPTED
    leave(code)


if __name__ == "__main__":
    main()
