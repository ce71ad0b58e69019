"""Start-up of whole processes in processor seconds: beside importing what all of them need, and beside timm."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import partial
from tempfile import TemporaryDirectory

from benchmarks.timing import interleaved, processor, row
from zoo.weights.load import find

MODEL = "trades-s7"
BROWSING = (("list",), ("pick", "--flops", "15M"), ("show", MODEL))
TYPER = "import typer, rich"
TORCH = "import torch, weights read"
# Runs the command line up to the first attack, or up to the conversion: its call ends the process.
FIRST = """
import os, sys
from zoo.attacks.inputs import ATTACKS

if sys.argv[1] == "export" and "attacked" not in sys.argv:
    import zoo.export.exporter
    zoo.export.exporter.save_onnx = lambda *given, **options: os._exit(0)

def first(attack):
    def reached(model, x, y, **options):
        os._exit(0)
    reached.__signature__ = __import__("inspect").signature(attack)
    return reached

ATTACKS.update({name: first(attack) for name, attack in ATTACKS.items()})
from zoo.cli.app import run
sys.exit(f"no attack was reached (exit code {run(sys.argv[1:])})")
"""


def process(*arguments: str) -> None:
    """A process that finds compiled modules, as there are after the first start."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    subprocess.run([sys.executable, *arguments], check=True, capture_output=True, env=environment)


def run() -> list[dict]:
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
    browsing = {f"zoo {words[0]}": lambda words=words: process("-m", "zoo", *words) for words in BROWSING}
    seconds = interleaved(
        {
            **browsing,
            "timm.list_models()": lambda: process("-c", "import timm; timm.list_models()"),
            TYPER: lambda: process("-c", TYPER),
        },
        rounds=7,
    )
    rows = [
        row(
            "start-up and list the models",
            "zoo list",
            only(seconds, "zoo list", "timm.list_models()"),
            goal={"timm.list_models()": 25.0},
        )
    ]
    rows += [row("start-up", ours, only(seconds, ours, TYPER), goal={TYPER: 1 / 4}) for ours in browsing]
    return [*rows, *first_attacks()]


def only(seconds: dict[str, list[float]], *names: str) -> dict[str, list[float]]:
    return {name: seconds[name] for name in names}


def first_attacks() -> list[dict]:
    """To a loaded model, and to the first image attacked; the latter needs CIFAR-10."""
    if not os.environ.get("ZOO_DATA"):
        print("zoo eval and zoo export are left out: set ZOO_DATA", file=sys.stderr)
    leave = "; import os; os._exit(0)"  # as the others do: to take PyTorch down takes a sixth of a second
    read = f"import torch, safetensors.torch; safetensors.torch.load_file({str(find(MODEL).path)!r}){leave}"
    with TemporaryDirectory() as folder:
        attacked = {
            "zoo eval -n 1, to the first attack": ("eval", MODEL, "-p", "pgd20", "-n", "1"),
            "zoo export, to the conversion": ("export", MODEL, "--out", folder, "--force"),
            # It converts the net, and has the answers of engine and twin to the clean test images.
            "zoo export, to the first attack": ("export", MODEL, "--verify", "attacked", "--out", folder, "--force"),
        }
        ours = {"zoo.load()": lambda: process("-c", f"import zoo; zoo.load({MODEL!r}){leave}")}
        if os.environ.get("ZOO_DATA"):
            ours |= {name: partial(process, "-c", FIRST, *words) for name, words in attacked.items()}
        seconds = interleaved({**ours, TORCH: lambda: process("-c", read)}, rounds=3, clock=processor)
    return [row("start-up with a model", name, only(seconds, name, TORCH), goal={TORCH: 1 / 1.3}) for name in ours]
