"""Which shape and which settings at a budget: short trainings, judged on held-out training images.

    python docs/shapes.py train [GLOB ...]     train the runs SIZE/VARIANT/SEED whose models are missing
    python docs/shapes.py measure [GLOB ...]   CW-20 on the 1,000 held-out images, into docs/shapes.json
    python docs/students.py                    write the table of docs/students.md

Every run differs from its base in one thing. Shapes have the MACs of their base within 6 %, the stem at 16 pixels
within 9 %.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workers import images, picked, run_or_exit, store, stored, train_run, trained, work

DOCS = Path(__file__).parent
STORE = DOCS / "shapes.json"
RECIPE, EPOCHS, SEEDS = "nfgsm-w15-long", 10, 2
BASES: dict[str, list[list[int]]] = {
    "4M": [[20], [28] * 3, [64] * 3],
    "15M": [[24] * 3, [56] * 3, [136] * 3],
    "41M": [[40] * 4, [88] * 4, [176] * 3],
}


def staged(widths: list[list[int]], *more: str) -> tuple[str, ...]:
    return f"arch.widths={widths}", *more


def inverted(width: int, blocks: int, ratio: float, *, se: bool) -> tuple[str, ...]:
    """A MobileNetV3 of three stages at 16, 8 and 4 pixels."""
    stages = []
    for each in (width, 2 * width, 4 * width):
        block = f"{{kernel=3, hidden={int(each * ratio) // 4 * 4}}}"
        kind = f'stride=2, activation="hardswish", se={"true" if se else "false"}'
        stages.append(f"{{width={each}, {kind}, blocks=[{', '.join([block] * blocks)}]}}")
    ends = f"stem=16, last={8 * width}, mix={8 * width}"
    return (f'arch={{arch="mobilenetv3", {ends}, stages=[{", ".join(stages)}]}}',)


def bottleneck(width: int, hidden: int, stem: int) -> tuple[str, ...]:
    """A ResNet of two bottleneck blocks in each of three stages at 16, 8 and 4 pixels."""
    stages = [
        f"{{width={width * times}, hidden=[{hidden * times}, {hidden * times}], stride=2}}" for times in (1, 2, 4)
    ]
    ends = f"stem={{mid={stem}, out={2 * stem}, residual=false}}"
    return (f'arch={{arch="bottleneck", {ends}, stages=[{", ".join(stages)}]}}',)


# What differs from the base, by size: a description for each variant, and its settings.
EVERYWHERE = {
    "relu": ("ReLU in place of SiLU", ("arch.activation=relu",)),
    "plain": ("no shortcuts", ("arch.shortcuts=false",)),
    "stem16": ("stem at 16 pixels in place of 32", ("arch.stem_resolution=16",)),
    "smooth0": ("no label smoothing", ("method.label_smoothing=0.0",)),
    "eps8.8": ("trained for 8.8/255", ("attack.eps=0.03450980392156863", "attack.step=0.03450980392156863")),
}
SETTINGS = {
    "batch128": ("batches of 128", ("train.batch_size=128",)),
    "batch512": ("batches of 512", ("train.batch_size=512",)),
    "lr0.1": ("learning rate 0.1 in place of 0.2", ("optimizer.lr=0.1",)),
    "lr0.4": ("learning rate 0.4", ("optimizer.lr=0.4",)),
    "wd1e-4": ("weight decay 1e-4 in place of 5e-4", ("optimizer.weight_decay=0.0001",)),
    "longer": ("16 epochs in place of 10", ("train.epochs=16",)),
    "pretrained": ("10 epochs of natural training before: the passes of 16 epochs", ()),
}
STAGE32 = "arch.resolutions=[32, 16, 8, 4]"
SHAPES: dict[str, dict[str, tuple[str, tuple[str, ...]]]] = {
    "4M": {
        "deep": ("deeper: 3, 5 and 5 blocks", staged([[12] * 3, [20] * 5, [40] * 5])),
        "shallow": ("shallower: 1, 2 and 2 blocks", staged([[24], [36] * 2, [80] * 2])),
        "flat": ("last stage as narrow as the middle", staged([[24], [36] * 3, [36] * 3])),
        "late": ("more in the last stage", staged([[16], [24] * 3, [76] * 3])),
        "early": ("more in the first stage", staged([[32], [28] * 3, [48] * 3])),
        "stage32": ("a stage at 32 pixels", staged([[8], [16], [24] * 3, [56] * 3], STAGE32)),
        "two": ("no stage at 4 pixels", staged([[20], [28] * 6], "arch.resolutions=[16, 8]")),
        "inverted": ("inverted residuals, depthwise", inverted(12, 2, 3.75, se=False)),
        "inverted-se": ("inverted residuals with SE", inverted(12, 2, 3.75, se=True)),
        "bottleneck": ("bottlenecks: most MACs in 1x1", bottleneck(64, 4, 8)),
    },
    "15M": {
        "deep": ("deeper: 5 blocks a stage", staged([[16] * 5, [40] * 5, [104] * 5])),
        "shallow": ("shallower: 2 blocks a stage", staged([[32] * 2, [72] * 2, [176] * 2])),
        "flat": ("last stage as narrow as the middle", staged([[32] * 3, [68] * 3, [72] * 3])),
        "late": ("more in the last stage", staged([[20] * 3, [48] * 3, [164] * 3])),
        "early": ("more in the first stage", staged([[36] * 3, [52] * 3, [92] * 3])),
        "stage32": ("a stage at 32 pixels", staged([[12], [24] * 3, [52] * 3, [128] * 3], STAGE32)),
        "two": ("no stage at 4 pixels", staged([[24] * 3, [60] * 6], "arch.resolutions=[16, 8]")),
        "inverted": ("inverted residuals, depthwise", inverted(28, 2, 4, se=False)),
        "inverted-se": ("inverted residuals with SE", inverted(28, 2, 4, se=True)),
        "bottleneck": ("bottlenecks: most MACs in 1x1", bottleneck(64, 24, 4)),
    },
    "41M": {
        "deep": ("deeper: 6, 6 and 5 blocks", staged([[32] * 6, [64] * 6, [132] * 5])),
        "shallow": ("shallower: 3, 3 and 2 blocks", staged([[48] * 3, [112] * 3, [220] * 2])),
        "late": ("more in the last stage", staged([[32] * 4, [84] * 4, [232] * 3])),
        "early": ("more in the first stage", staged([[52] * 4, [76] * 4, [104] * 3])),
    },
}


@dataclass(frozen=True)
class Run:
    name: str
    what: str
    overrides: tuple[str, ...]
    start: str | None = None  # the run from whose weights it starts


def runs() -> list[Run]:
    """All runs, the cheapest first."""
    return [run for size in BASES for seed in range(SEEDS) for run in _of_size(size, seed)]


def _of_size(size: str, seed: int) -> Iterator[Run]:
    variants: dict[str, tuple[str, tuple[str, ...]]] = {"base": ("the base", ()), **SHAPES[size]}
    if size != "41M":
        variants |= EVERYWHERE | SETTINGS
        yield Run(f"{size}/natural/{seed}", "", (*_shared(size, seed), "method=natural", "attack={}"))
    for name, (what, overrides) in variants.items():
        start = f"{size}/natural/{seed}" if name == "pretrained" else None
        yield Run(f"{size}/{name}/{seed}", what, (*_shared(size, seed), *overrides), start)


def _shared(size: str, seed: int) -> tuple[str, ...]:
    return (*staged(BASES[size]), f"train.epochs={EPOCHS}", f"train.seed={seed}")


def chosen(globs: Iterable[str]) -> list[Run]:
    by_name = {run.name: run for run in runs()}
    return [by_name[name] for name in picked(by_name, globs)]


def settings(run: Run, out: Path, changes: Iterable[str]) -> list[str]:
    start = [f"start={json.dumps(str(out / run.start / 'model'))}"] if run.start else []
    return [*run.overrides, *start, *changes]


def train(args: argparse.Namespace) -> None:
    out, todo, before = args.out.absolute(), [], {}
    for run in chosen(args.globs):
        if not trained(out / run.name):
            todo.append((run.name, (RECIPE, None, settings(run, out, args.set), out / run.name)))
            before[run.name] = run.start
    images()

    def ready(name: str) -> bool:
        start = before[name]
        return start is None or trained(out / start)

    for name, last in work(args.jobs, float("inf"), train_run, todo, ready):
        print(f"{name}  clean {last['clean']:.1%}  PGD {last['pgd']:.1%}  {last['wall_s']:.0f} s", flush=True)


def measure_run(folder: Path, device: str) -> dict[str, Any]:
    """Clean and CW-20 accuracy on the held-out images, and the facts of the run."""
    from zoo.evaluation.measure import measure
    from zoo.evaluation.protocols import PROTOCOLS
    from zoo.specs import cost
    from zoo.weights.load import find

    found = find(f"local-dir:{folder / 'model'}")
    held_out = {"split": "validation", "n": 1000}
    protocols = [PROTOCOLS[key].model_copy(update=held_out) for key in ("clean", "cw20")]
    results = {
        one.protocol.name: one.result["accuracy"]["value"]
        for one in measure(found.load(), found.sha256, images(), protocols, device=device)
    }
    facts = json.loads((folder / "model" / "config.json").read_bytes())["train"]
    kept = {key: facts[key] for key in ("epochs", "wall_s", "device", "precision", "commit", "torch")}
    return {"macs": cost(found.spec).macs, "weights_sha256": found.sha256, **kept, **results}


def measure_all(args: argparse.Namespace) -> None:
    import torch

    from zoo.system.files import sha256_file

    data, out = stored(STORE), args.out.absolute()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    found = data.setdefault("runs", {})
    names = [run.name for run in chosen(args.globs) if trained(out / run.name) and "/natural/" not in run.name]

    def known(name: str) -> bool:
        weights = out / name / "model" / "model.safetensors"
        return name in found and found[name].get("weights_sha256") == sha256_file(weights)

    todo = [(name, (out / name, device)) for name in names if not known(name)]
    images()
    for name, result in work(args.jobs, float("inf"), measure_run, todo):
        found[name] = result
        store(STORE, {"runs": found})
        print(f"{name}  clean {result['clean']:.1%}  CW-20 {result['cw20']:.1%}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(required=True)
    for name, do in (("train", train), ("measure", measure_all)):
        verb = verbs.add_parser(name)
        verb.set_defaults(do=do)
        verb.add_argument("globs", nargs="*", help="runs, such as '4M/*' (default: all)")
        verb.add_argument("--out", type=Path, default=Path("runs/shapes"), help="folder of the runs")
        verb.add_argument("--jobs", type=int, default=1, help="processes")
    verbs.choices["train"].add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    args = parser.parse_args()
    run_or_exit(args.do, args)


if __name__ == "__main__":
    main()
