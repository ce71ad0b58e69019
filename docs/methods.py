"""Training methods compared where one thing differs: the runs, their measurements, and docs/methods.md.

    python docs/methods.py train [GLOB ...]     train the cells whose models are missing
    python docs/methods.py measure [GLOB ...]   measure the models under attack, into docs/methods.json
    python docs/methods.py time                 seconds per epoch of each method on this machine, into docs/methods.json
    python docs/methods.py                      write the tables and plots of docs/methods.md from docs/methods.json

A cell is GROUP/STUDENT/ROW/SEED, a run of train/recipes/methods-s3.toml in the folder runs/methods/CELL. Every verb
goes on where it was interrupted.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import t as student
from workers import Stopped, images, picked, run_or_exit, stopped, store, stored, train_run, trained, work

from zoo.report.stories import RELEASED

DOCS = Path(__file__).parent
STORE = DOCS / "methods.json"
RECIPE, PASSES, SEEDS = "methods-s3", 105, 3
ROWS = {  # presets of the recipe
    "n-fgsm": "N-FGSM, the control",
    "n-fgsm-twice": "N-FGSM, twice the loss",
    "natural": "natural",
    "pgd-at": "PGD-AT",
    "trades": "TRADES",
    "mart": "MART",
    "kd": "KD, t = 1",
    "kd-t30": "KD, t = 30",
    "ard": "ARD, t = 1",
    "ard-t30": "ARD, t = 30",
    "ard-nfgsm": "N-FGSM + soft labels (ARD)",
    "fast-ard": "Fast-ARD, m = 4",
    "rrm": "RRM",
    "rslad": "RSLAD",
    "adaad": "AdaAD",
    "rdt": "RDT",
    "fast-at": "Fast AT",
    "free-at": "Free AT, m = 4",
    "pgd-at-10": "PGD-AT, 10 steps",
    "ard-10": "ARD, 10 steps",
}
W4 = ("arch.widths=[[20],[28,28,28],[64,64,64]]", "arch.resolutions=[16,8,4]", "arch.activation=silu")
W2 = ("arch.widths=[[16],[20,20,20],[44,44,44]]", "arch.resolutions=[16,8,4]", "arch.activation=silu")
W1 = ("arch.widths=[[8],[12,12],[24,24]]", "arch.resolutions=[16,8,4]", "arch.activation=silu")
W15 = ("arch.widths=[[24,24,24],[56,56,56],[136,136,136]]", "arch.resolutions=[16,8,4]", "arch.activation=silu")


# -- the cells ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cell:
    """A run: a preset of the recipe and what else is set. ``teacher`` is a cell whose model it learns from."""

    name: str
    preset: str
    changes: tuple[str, ...] = ()
    teacher: str | None = None

    @property
    def seed(self) -> int:
        return int(self.name.rsplit("/", 1)[1])


def cells(seeds: int = SEEDS) -> list[Cell]:
    """All cells, the most important first."""
    found = [Cell(f"methods/s3/{row}/0", row) for row in ROWS]
    found += [Cell(f"methods/w4/{row}/0", row, W4) for row in ROWS]
    found += [Cell(f"methods/s3/{row}/{seed}", row) for seed in range(1, seeds) for row in ROWS]
    for space in ("s3", "s5", "s7"):
        found += rnascl(space)
    found += [Cell(f"alpha/s3/{alpha}/0", "ard", (f"method.alpha={alpha}",)) for alpha in (0.5, 0.7, 0.9)]
    found += [Cell(f"temperature/s3/{t}/0", "ard", (f"method.temperature={t}",)) for t in (5.0, 10.0)]
    found += [Cell(f"lambda/s3/{lam}/0", "rrm", (f"method.lam={lam}",)) for lam in (5e-5, 5e-4, 5e-2, 0.5)]
    for net, arch in (("w1", W1), ("w2", W2), ("w15", W15)):
        found += [Cell(f"students/{net}/{row}/0", row, arch) for row in ("n-fgsm", "n-fgsm-twice", "rrm", "ard-nfgsm")]
    found.append(natural := Cell("teachers/w15/natural/0", "natural", W15))
    for row in ("ard-nfgsm", "kd"):
        for teacher in ("trades-s3", "nfgsm-wrn34-2", "nfgsm-w100"):
            found.append(Cell(f"teachers/s3/{row}-{teacher}/0", row, (f"teacher.name={teacher}",)))
        found.append(Cell(f"teachers/s3/{row}-natural/0", row, teacher=natural.name))
    return found


def rnascl(space: str) -> Iterator[Cell]:
    """The pairs of RNAS-CL on the architecture that a search found: its students under TRADES, and TRADES alone."""
    result = json.loads((RELEASED / f"search-{space}.json").read_bytes())
    arch = (f"arch.widths={result['spec']['widths']}", f"arch.resolutions={result['spec']['resolutions']}")
    searched = "method.tutors={" + ", ".join(f'"{one}" = "{other}"' for one, other in result["tutors"].items()) + "}"
    for beta in (6.0, 10.0):
        row = f"rnascl/{space}/beta{beta:g}"
        shared = (*arch, f"method.beta={beta}")
        yield Cell(f"{row}-none/0", "trades", shared)
        yield Cell(f"{row}-gamma0/0", "rnascl", (*shared, "method.gamma=0.0"))
        for gamma in (1.0, 34.0):
            yield Cell(f"{row}-gamma{gamma:g}/0", "rnascl", (*shared, f"method.gamma={gamma}", searched))
        for tutors in ("depth", "random") if beta == 6 else ():
            yield Cell(f"{row}-gamma34-{tutors}/0", "rnascl", (*shared, "method.gamma=34.0", f"method.tutors={tutors}"))


def chosen(globs: Iterable[str], seeds: int) -> list[Cell]:
    by_name = {cell.name: cell for cell in cells(seeds)}
    return [by_name[name] for name in picked(by_name, globs)]


def settings(cell: Cell, out: Path, *, passes: int = PASSES, changes: Iterable[str] = ()) -> list[str]:
    """What the cell sets beside its preset, with as many epochs as the student's passes an image allow."""
    from zoo.train.recipes.phases import load_recipe

    asked = [*cell.changes, f"train.seed={cell.seed}", *changes]
    if cell.teacher:
        asked.append(f"teacher.name={json.dumps(str(out / cell.teacher / 'model'))}")
    recipe = load_recipe(RECIPE, preset=cell.preset, overrides=asked)
    replays = recipe.method.replays
    epochs = replays * max(1, round(passes / recipe.method.passes(recipe.attack) / replays))
    return [*asked, f"train.epochs={epochs}"]


def check_same(folder: Path, preset: str, overrides: list[str]) -> None:
    """Raise UsageError if ``folder`` holds a run of other settings."""
    from zoo.system.errors import UsageError
    from zoo.train.recipes.phases import load_recipe

    recipe, file = load_recipe(RECIPE, preset=preset, overrides=overrides), folder / "recipe.json"
    if file.exists() and json.loads(file.read_bytes()) != recipe.model_dump(mode="json"):
        raise UsageError(f"'{folder}' holds a run of other settings: remove it, or choose another --out")


# -- training ----------------------------------------------------------------------------------------------------


def train(args: argparse.Namespace) -> None:
    out, teachers, todo = args.out.absolute(), {}, []
    for cell in chosen(args.globs, args.seeds):
        folder, overrides = out / cell.name, settings(cell, out, passes=args.passes, changes=args.set)
        check_same(folder, cell.preset, overrides)
        if not trained(folder):
            todo.append((cell.name, (RECIPE, cell.preset, overrides, folder)))
            teachers[cell.name] = cell.teacher
    images()  # decoded here, not by all processes at once

    def ready(name: str) -> bool:
        return teachers[name] is None or trained(out / teachers[name])

    count, begun = len(todo), time.monotonic()
    print(f"{count} cells to train in {out}", flush=True)
    for done, (name, last) in enumerate(work(args.jobs, args.until, train_run, todo, ready), 1):
        print(
            f"[{done}/{count}, {time.monotonic() - begun:.0f} s] {name}  clean {last['clean']:.1%}  "
            f"PGD {last['pgd']:.1%}  {last['wall_s']:.0f} s",
            flush=True,
        )


# -- measuring ---------------------------------------------------------------------------------------------------


def measure_cell(folder: Path, key: str, n: int, device: str) -> dict[str, Any]:
    """Measure the model of a cell under the protocol ``key``, on the first ``n`` test images."""
    from zoo.evaluation.measure import measure
    from zoo.evaluation.protocols import PROTOCOLS
    from zoo.weights.load import load, weights_sha256

    def progress(protocol: Any, done: int, total: int) -> None:
        if stopped():
            raise Stopped(f"at {done} of {total} images")

    if stopped():
        raise Stopped("before it began")
    model = load(f"local-dir:{folder / 'model'}")
    protocol = PROTOCOLS[key].model_copy(update={"n": n})
    how = {"batch_size": 1000 if device == "cuda" else 250, "device": device, "resume": folder / "unfinished"}
    (one,) = measure(model, weights_sha256(model), images(), [protocol], progress=progress, **how)
    return {
        **one.result["accuracy"],
        "flags": list(one.flags),
        "wall_s": one.result["wall_s"],
        "device": device,
        "bits": np.packbits(one.bits).tobytes().hex(),
    }


def facts_of(cell: Cell, folder: Path) -> dict[str, Any]:
    """What the store says of a cell besides its results."""
    from zoo.system.files import sha256_file
    from zoo.train.pipeline import asked_of

    facts, asked = json.loads((folder / "model" / "config.json").read_bytes())["train"], asked_of(folder)
    overrides = asked["overrides"]
    if cell.teacher:  # wherever it was trained
        overrides = [one for one in overrides if not one.startswith("teacher.name=")]
        overrides.append(f"teacher.name=runs/methods/{cell.teacher}/model")
    return {
        "weights_sha256": sha256_file(folder / "model" / "model.safetensors"),
        "preset": asked["preset"],
        "overrides": overrides,
        **{key: facts[key] for key in ("epochs", "images_seen", "wall_s", "device", "precision", "torch")},
        "held_out": {key: facts["history"][-1][key] for key in ("clean", "pgd", "raw_clean", "raw_pgd")},
    }


def measure(args: argparse.Namespace) -> None:
    import torch

    from zoo.evaluation.protocols import protocol

    out, data, todo = args.out.absolute(), stored(args.store), []
    keys = [protocol(key).name for key in args.protocols.split(",")]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    for cell in chosen(args.globs, args.seeds):
        folder = out / cell.name
        if not trained(folder):
            continue
        facts, before = facts_of(cell, folder), data["runs"].get(cell.name, {})
        same = before.get("weights_sha256") == facts["weights_sha256"]
        results = before["results"] if same else {}
        data["runs"][cell.name] = {**facts, "results": results}
        for key in keys:
            if results.get(key, {}).get("n") != args.n:
                todo.append((f"{cell.name} {key}", (folder, key, args.n, device)))
    store(args.store, data)
    images()
    count, begun = len(todo), time.monotonic()
    print(f"{count} measurements on {device}", flush=True)
    for done, (name, result) in enumerate(work(args.jobs, args.until, measure_cell, todo), 1):
        cell, key = name.split()
        data["runs"][cell]["results"][key] = result
        store(args.store, data)
        spent = time.monotonic() - begun
        print(f"[{done}/{count}, {spent:.0f} s] {name}  {result['value']:.1%}  {result['wall_s']:.0f} s", flush=True)


# -- seconds per epoch -------------------------------------------------------------------------------------------

TEACHERS = ("nfgsm-w15", "nfgsm-w15-int8")  # recipes: the second is the teacher, and starts from the first


def clocked(rounds: int, steps: int, changes: list[str]) -> dict[str, Any]:
    """Seconds per epoch of each row and of the teacher's trainings, with the half-width of a 95 % interval: the mean
    over interleaved rounds of some steps each. An epoch is a step for all 49,000 images; a replay counts as one."""
    import torch

    from zoo.train.recipes.phases import load_recipe
    from zoo.train.run.model_folder import device_name
    from zoo.train.run.trainer import Trainer

    trainers: dict[str, Trainer] = {}
    found: dict[str, dict[str, float]] = {}
    seconds: dict[str, list[float]] = {}
    size = len(images().split("train"))
    for row in (*ROWS, *TEACHERS):
        name, preset = (row, None) if row in TEACHERS else (RECIPE, row)
        found[row] = {"epochs": load_recipe(name, preset=preset).train.epochs}
        few = [*changes, "train.images=1024"]
        if row in TEACHERS:  # rounding to int8 needs fp32
            few = [change for change in few if not change.startswith("train.precision")]
        if row == "rdt":
            few.append("method.steps=1")
        recipe = load_recipe(name, preset=preset, overrides=few)
        trainers[row] = Trainer(recipe, images(), start=recipe.start)
        seconds[row] = []
    device = trainers["rdt"].device

    def timed(do: Callable[[], object]) -> float:
        begun = time.perf_counter()
        do()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - begun

    def epoch(trainer: Trainer) -> float:
        """Seconds per epoch from ``steps`` updates, or a few more with replays."""
        replays = trainer.recipe.method.replays
        count = -(-steps // replays)

        def run() -> None:
            for _ in range(count):
                trainer.net.train()
                trainer.train_step()

        return timed(run) / (count * replays) * (size // trainer.recipe.train.batch_size)

    for trainer in trainers.values():
        epoch(trainer)  # compiles, and looks for the fastest kernels
    for _ in range(rounds):
        for row, trainer in trainers.items():
            seconds[row].append(epoch(trainer))
    for row, values in seconds.items():
        half = student.ppf(0.975, rounds - 1) * statistics.stdev(values) / math.sqrt(rounds)
        found[row] |= {"epoch_s": statistics.mean(values), "half": half}

    x = torch.rand(500, 3, 32, 32, device=device).contiguous(memory_format=torch.channels_last)
    method, teacher = trainers["rdt"].recipe.method.model_copy(update={"steps": 5}), trainers["rdt"].teacher
    each = [timed(lambda: method.robust(x, x.flip(0), teacher)) for _ in range(2)][-1] / 5 / len(x)
    found["rdt"]["before_s"] = each * size * load_recipe(RECIPE, preset="rdt").method.steps  # its robust data
    return {device_name(device): {"rounds": rounds, "precision": trainers["n-fgsm"].precision, "rows": found}}


def clock_all(args: argparse.Namespace) -> None:
    data = stored(args.store)
    data["times"] |= clocked(args.rounds, args.steps, args.set)
    store(args.store, data)


# -- the command line --------------------------------------------------------------------------------------------


def moment(text: str) -> float:
    """The next time that the clock shows HH:MM, in seconds since the epoch."""
    now = datetime.now()
    then = datetime.combine(now.date(), datetime.strptime(text, "%H:%M").time())
    return (then if then > now else then + timedelta(days=1)).timestamp()


def parser() -> argparse.ArgumentParser:
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("globs", metavar="GLOB", nargs="*", help="cells such as 'methods/s3/*/0'; all by default")
    shared.add_argument("--jobs", type=int, default=os.cpu_count(), help="cells at a time, each on one core")
    shared.add_argument("--seeds", type=int, default=SEEDS, help="of the methods on s3")
    shared.add_argument("--out", type=Path, default=Path("runs/methods"))
    end = shared.add_mutually_exclusive_group()
    end.add_argument("--until", metavar="HH:MM", type=moment, default=float("inf"), help="stop at this time")
    end.add_argument("--seconds", dest="until", type=lambda text: time.time() + float(text), help="stop after these")
    recipes = argparse.ArgumentParser(add_help=False)
    recipes.add_argument("--set", metavar="KEY=VALUE", action="append", default=[], help="of all recipes")
    recipes.add_argument("--compile", action=argparse.BooleanOptionalAction, default=None)
    recipes.add_argument("--precision", choices=("auto", "fp32", "bf16"))
    kept = argparse.ArgumentParser(add_help=False)
    # A default here would replace what stands before the verb.
    kept.add_argument("--store", type=Path, default=argparse.SUPPRESS, help="where results are kept")
    made = argparse.ArgumentParser(description=__doc__.splitlines()[0], parents=[kept])
    verbs = made.add_subparsers(dest="verb")
    one = verbs.add_parser("train", parents=[shared, recipes])
    one.add_argument("--passes", type=int, default=PASSES, help="of the student, an image: forward 1, backward 2")
    one.set_defaults(do=train)
    one = verbs.add_parser("measure", parents=[shared, kept])
    one.add_argument("--protocols", default="clean,pgd20,cw20,apgd50,autoattack")
    one.add_argument("--n", type=int, default=1000, help="leading test images")
    one.set_defaults(do=measure)
    one = verbs.add_parser("time", parents=[recipes, kept])
    one.add_argument("--rounds", type=int, default=10)
    one.add_argument("--steps", type=int, default=8, help="of each row in a round")
    one.set_defaults(do=clock_all)
    return made


def main() -> None:
    args = parser().parse_args(namespace=argparse.Namespace(store=STORE))
    if args.verb is None:
        import methods_page

        return methods_page.write(stored(args.store))
    for key in ("compile", "precision"):
        if (value := getattr(args, key, None)) is not None:
            args.set.append(f"train.{key}={str(value).lower()}")
    run_or_exit(args.do, args)


if __name__ == "__main__":
    import methods  # not as __main__: the worker processes import it by this name

    methods.main()
