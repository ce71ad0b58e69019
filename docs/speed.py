"""How costs grow. To measure: ``python docs/speed.py CURVE ...`` (or ``all``); points that are stored are passed over.

Processor seconds, the least of three runs: other programs that run on the machine count little in them. docs/speed.json
keeps them; ``python docs/speed.py`` alone redraws docs/speed.png and the table of docs/speed.md.
"""

from __future__ import annotations

import json
import math
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import installed
from results import markdown, put

from zoo.registry.file import PACKAGED
from zoo.system.files import locked, pretty
from zoo.system.toolchain import toolchain

DOCS = Path(__file__).parent
STORE, PAGE, PLOT = DOCS / "speed.json", DOCS / "speed.md", DOCS / "speed.png"
ROUNDS = 3
MODEL = "ard-p4-w15"
ENTRIES = (10, 100, 1000, 10_000)

Task = Callable[[], object]


@contextmanager
def over_images(n: int) -> Iterator[Task]:
    """PGD-20 on the first n test images."""
    import zoo
    from zoo.datasets import dataset_called
    from zoo.evaluation.evaluate import evaluate_split
    from zoo.evaluation.protocols import protocol

    model, split = zoo.load(MODEL), dataset_called("cifar10").load().split("test")
    walk = protocol("pgd20").model_copy(update={"n": n})
    yield lambda: evaluate_split(model, split, walk)


@contextmanager
def attacked(batch: int, **spec: Any) -> Iterator[Task]:
    """All 20 steps of PGD on images of noise, random weights."""
    import torch

    from zoo.attacks import pgd
    from zoo.evaluation.evaluate import prepare
    from zoo.models import build
    from zoo.specs import parse_spec

    torch.manual_seed(0)
    model = prepare(build(parse_spec(spec)).eval())
    x = torch.rand(batch, 3, model.spec.image_size, model.spec.image_size)
    y = model(x).argmax(1)
    yield lambda: pgd(model, x, y, eps=8 / 255, step=2 / 255, steps=20, early_stop=False)


def over_classes(n: int) -> Any:
    widths = {"arch": "staged", "widths": [[16], [32], [64]], "resolutions": [16, 8, 4]}
    return attacked(50, **widths, classes=n)


def over_pixels(n: int) -> Any:
    return attacked(4, arch="resnet", depth=18, stem="7x7", image_size=n)


@contextmanager
def registry(n: int) -> Iterator[Path]:
    """A registry of n entries, each as one of the released has it."""
    data = json.loads(PACKAGED.read_bytes())
    released = [entry for entry in data["models"].values() if not entry.get("subnet")]
    models = {f"model-{i:05}": {**released[i % len(released)], "aliases": []} for i in range(n)}
    with TemporaryDirectory() as folder:
        path = Path(folder) / "registry.json"
        path.write_text(pretty({**data, "models": models}) + "\n", encoding="utf-8", newline="\n")
        os.environ |= {"ZOO_REGISTRY": str(path), "ZOO_CACHE": str(Path(folder) / "cache")}
        yield path
        del os.environ["ZOO_REGISTRY"], os.environ["ZOO_CACHE"]


def zoo_process(*words: str) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    command = [sys.executable, "-m", "zoo", *words]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment)


def over_entries(*words: str) -> Callable[[int], Any]:
    @contextmanager
    def task(n: int) -> Iterator[Task]:
        with registry(n):
            zoo_process("list")  # the first time it is validated
            yield lambda: zoo_process(*words)

    return task


@contextmanager
def first_time(n: int) -> Iterator[Task]:
    from shutil import rmtree

    with registry(n) as path:
        yield lambda: (rmtree(path.parent / "cache", ignore_errors=True), zoo_process("list"))


@contextmanager
def reported(n: int) -> Iterator[Task]:
    with registry(n) as path:
        zoo_process("list")
        yield lambda: zoo_process("report", "--force", "--out", str(path.parent / "site"))


def bundle(use: Callable[[Path], object]) -> Callable[[int], Any]:
    @contextmanager
    def task(channels: int) -> Iterator[Task]:
        from zoo.export import export_model
        from zoo.models import build
        from zoo.specs import parse_spec
        from zoo.weights.folder import ModelConfig, ModelFolder
        from zoo.weights.tensors import save_weights

        spec = parse_spec(
            {"arch": "staged", "widths": [[channels]] * 3, "resolutions": [8, 4, 2], "stem_resolution": 16}
        )
        with TemporaryDirectory() as scratch:
            folder = Path(scratch) / "model"
            ModelFolder(folder).write(ModelConfig(name="wide", spec=spec.to_dict(), dataset="cifar10"))
            save_weights(build(spec).state_dict(), folder / "model.safetensors")
            made = export_model(f"local-dir:{folder}", out=scratch, verify="none", notify=lambda text: None).folder
            yield lambda: use(made)

    return task


def read(folder: Path) -> None:
    from zoo.export import read_bundle

    read_bundle(folder)


def opened(folder: Path) -> None:
    from zoo.export.engines import onnxruntime

    onnxruntime.load(folder / "model.onnx", threads=1).close()


def megabytes(channels: int) -> float:
    """Of such a bundle: two layers of 3x3 convolutions, in the graph and in the twin's weights."""
    return 2 * 4 * 2 * 9 * channels**2 / 1e6


# By name: the panel, the line in it, its points, what is done at a point, and how a point is counted on the axis.
CURVES: dict[str, tuple[str, str, tuple[int, ...], Callable[[int], Any], Callable[[int], float]]] = {
    "images": ("images attacked", "zoo eval, PGD-20", (100, 200, 400, 800, 1600), over_images, float),
    "classes": ("classes", "PGD-20, 50 images", (10, 30, 100, 300, 1000), over_classes, float),
    "pixels": ("pixels an image", "PGD-20, 4 images", (32, 64, 96, 128, 160, 224), over_pixels, lambda n: float(n * n)),
    "list": ("registry entries", "zoo list", ENTRIES, over_entries("list"), float),
    "pick": ("registry entries", "zoo pick", ENTRIES, over_entries("pick", "--flops", "15M"), float),
    "show": ("registry entries", "zoo show", ENTRIES, over_entries("show", "model-00003"), float),
    "first": ("registry entries, all read", "first zoo list", ENTRIES, first_time, float),
    "json": ("registry entries, all read", "zoo list --json", ENTRIES, over_entries("list", "--json"), float),
    "report": ("registry entries, all read", "zoo report", ENTRIES, reported, float),
    "read": ("MB of a bundle", "checked", (64, 192, 512, 768, 1152), bundle(read), megabytes),
    "open": ("MB of a bundle", "opened", (64, 192, 512, 768, 1152), bundle(opened), megabytes),
}


def stored() -> dict[str, Any]:
    return json.loads(STORE.read_bytes()) if STORE.exists() else {"machine": {}, "seconds": {}}


@contextmanager
def changed() -> Iterator[dict[str, Any]]:
    """What is stored, to change it."""
    with locked(DOCS):
        content = stored()
        yield content
        STORE.write_text(pretty(content) + "\n", encoding="utf-8", newline="\n")


def spent() -> float:
    """Processor seconds of this process and of those that it has waited for."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def measure(curve: str) -> None:
    _, _, points, task, _ = CURVES[curve]
    for point in points:
        if str(point) in stored()["seconds"].get(curve, {}):
            continue
        with task(point) as do:
            do()
            runs = []
            for _ in range(ROUNDS):
                since = spent()
                do()
                runs.append(spent() - since)
        with changed() as content:
            content["machine"] = toolchain("onnxruntime-gpu")
            content["seconds"].setdefault(curve, {})[str(point)] = round(min(runs), 4)
        print(f"{curve} {point}: {min(runs):.3f} s", flush=True)


def points_of(curve: str) -> list[tuple[float, float]]:
    """Where the points are on the axis, and their seconds."""
    _, _, points, _, count = CURVES[curve]
    seconds = stored()["seconds"].get(curve, {})
    return [(count(point), seconds[str(point)]) for point in points if str(point) in seconds]


def exponent(points: list[tuple[float, float]]) -> float:
    """Of the growth at the upper end: 1 is linear, less has a fixed part."""
    (x0, s0), (x1, s1) = points[-2:]
    return math.log(s1 / s0) / math.log(x1 / x0)


def table() -> str:
    heads = ["what", "along", "from", "to", "seconds", "then", "exponent"]
    rows = []
    for curve, (axis, what, *_) in CURVES.items():
        if len(points := points_of(curve)) > 1:
            (x0, s0), (x1, s1) = points[0], points[-1]
            along = [f"{x:,.0f}" if x >= 10 else f"{x:.1f}" for x in (x0, x1)]
            rows.append([what, axis, *along, f"{s0:.2g}", f"{s1:.2g}", f"{exponent(points):.2f}"])
    return markdown(heads, rows, 2)


def draw() -> None:
    """A panel for each axis, logarithmic; the grey lines are linear growth."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import NullFormatter

    panels = list(dict.fromkeys(axis for axis, *_ in CURVES.values()))
    figure, axes = plt.subplots(2, 3, figsize=(9, 5.4), dpi=150)
    colours, marks = ("#0b6e99", "#c2571a", "#4f7a28"), "osD"
    for place, panel in zip(axes.flat, panels, strict=True):
        curves = [curve for curve, (axis, *_) in CURVES.items() if axis == panel and points_of(curve)]
        for curve, colour, mark in zip(curves, colours, marks, strict=False):
            xs, ys = zip(*points_of(curve), strict=True)
            place.loglog(xs, [ys[-1] * x / xs[-1] for x in xs], ":", color="#b0b0b0", linewidth=1, zorder=0)
            place.loglog(xs, ys, f"{mark}-", color=colour, markersize=4, linewidth=1.2, label=CURVES[curve][1])
        seconds = [math.log10(s) for curve in curves for _, s in points_of(curve)]
        place.set_ylim(10 ** math.floor(min(seconds)), 10 ** math.ceil(max(seconds) + 0.2))
        place.yaxis.set_minor_formatter(NullFormatter())
        place.set_xlabel(panel)
        place.legend(frameon=False, fontsize=7, loc="upper left")
        place.spines[["top", "right"]].set_visible(False)
    for place in axes[:, 0]:
        place.set_ylabel("processor seconds")
    figure.tight_layout()
    figure.savefig(PLOT)


def redraw() -> None:
    machine = stored()["machine"]
    said = f"{machine['cpu']} ({machine['isa']}), torch {machine['torch']}, onnxruntime {machine['onnxruntime-gpu']}"
    put(PAGE, {"growth": table(), "machine": f"{said}.", "installed": installed.table(stored()["installed"])})
    draw()


if __name__ == "__main__":
    os.environ["OMP_NUM_THREADS"] = "1"
    named = [*CURVES, "installed"] if sys.argv[1:] == ["all"] else sys.argv[1:]
    for name in named:
        if name == "installed":
            with changed() as content:
                content["installed"] = installed.installed()
        else:
            measure(name)
    if not named:
        redraw()
