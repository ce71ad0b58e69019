"""Start-up of ``zoo list`` against importing timm and listing its models: whole processes."""

from __future__ import annotations

import subprocess
import sys

from benchmarks.timing import interleaved, row


def run() -> list[dict]:
    def process(*arguments: str) -> object:
        return subprocess.run([sys.executable, *arguments], check=True, capture_output=True)

    code = "from zoo.cli.app import run; run(['list']); import sys; "
    loaded = subprocess.run(
        [sys.executable, "-c", code + "print(sorted({'torch', 'numpy'} & set(sys.modules)))"],
        check=True,
        capture_output=True,
        text=True,
    )
    heavy = loaded.stdout.splitlines()[-1]
    if heavy != "[]":
        raise SystemExit(f"zoo list imported {heavy}")
    seconds = interleaved(
        {
            "zoo list": lambda: process("-m", "zoo", "list"),
            "timm.list_models()": lambda: process("-c", "import timm; timm.list_models()"),
            "python -c pass": lambda: process("-c", "pass"),
        },
        rounds=7,
    )
    return [row("start-up and list the models", "zoo list", seconds, goal={"timm.list_models()": 25.0})]
