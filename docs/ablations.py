"""What RNAS-CL's parts are worth: ``python docs/ablations.py [PRESET ...]`` runs train/recipes/ablation-s3.toml.

Runs go to runs/ablation-s3/PRESET and resume; results to docs/ablations.json, from which the table in docs/rnascl.md
is written. All students are measured on the same 1,000 held-out training images.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from results import markdown, put

from zoo.datasets.cifar10 import CIFAR10
from zoo.evaluation.measure import measure
from zoo.evaluation.protocols import PROTOCOLS
from zoo.train.pipeline import run
from zoo.train.recipes.phases import load_phases
from zoo.weights.load import load, weights_sha256

DOCS = Path(__file__).parent
STORE, PAGE = DOCS / "ablations.json", DOCS / "rnascl.md"
PRESETS = {
    "no-teacher": "no teacher",
    "no-tutor": "KL only, no tutors",
    "fixed": "tutor at the same relative depth",
    "random": "random tutors",
    "searched": "searched tutors (the paper's)",
    "strong": "searched tutors, attention 36 times as heavy",
    "no-latency": "searched tutors, no latency term",
    "natural-teacher": "searched tutors, teacher not robust",
}
ATTACKS = {
    "clean": PROTOCOLS["clean"],
    "PGD-20 2/255": PROTOCOLS["pgd20"].model_copy(update={"eps": 2 / 255, "step": 0.5 / 255}),
    "PGD-20 8/255": PROTOCOLS["pgd20"],
}


def accuracies(folder: Path) -> dict[str, dict]:
    """Accuracy of the model in ``folder`` under every attack, on the held-out training images."""
    model = load(f"local-dir:{folder}")
    protocols = [one.model_copy(update={"split": "validation", "n": 1000}) for one in ATTACKS.values()]
    measured = measure(model, weights_sha256(model), CIFAR10.load(), protocols)
    return {name: one.result["accuracy"] for name, one in zip(ATTACKS, measured, strict=True)}


def ablate(preset: str) -> dict:
    left = run(
        load_phases("ablation-s3", preset=preset),
        CIFAR10.load(),
        Path("runs/ablation-s3") / preset,
        resume=True,
        report=lambda phase, epoch: print(preset, phase, epoch["epoch"], epoch["clean"], epoch["pgd"], flush=True),
    )
    found = json.loads(left["search"].read_bytes())
    return {"macs": found["macs"], **{phase: accuracies(left[phase]) for phase in ("train", "trades")}}


def table(results: dict[str, dict]) -> str:
    heads = [f"{phase}: {attack}" for phase in ("distilled", "then TRADES") for attack in ATTACKS]
    rows = []
    for preset, words in PRESETS.items():
        if preset in results:
            one = results[preset]
            cells = [f"{100 * one[phase][attack]['value']:.1f}" for phase in ("train", "trades") for attack in ATTACKS]
            rows.append([words, f"{one['macs'] / 1e6:.2f}", *cells])
    return markdown(["", "M MACs", *heads], rows)


if __name__ == "__main__":
    results = json.loads(STORE.read_bytes()) if STORE.exists() else {}
    for preset in sys.argv[1:]:
        results[preset] = ablate(preset)
        STORE.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8", newline="\n")
    put(PAGE, {"ablations": table(results)})
