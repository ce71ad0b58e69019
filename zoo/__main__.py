"""``python -m zoo`` runs the command ``zoo``."""

from __future__ import annotations

import sys
from typing import NoReturn

from zoo.cli.app import run


def main() -> NoReturn:
    """Run the command line and exit with its code."""
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
