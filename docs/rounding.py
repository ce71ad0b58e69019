"""The study of where an int8 graph rounds. To measure: ``python docs/rounding.py MODEL ...``.

Each model runs on OpenVINO in fp32, in int8 with every operator rounding what it puts out, and in int8 with the inputs
of convolutions rounded alone: side by side for the times, and on attacked held-out images for the noise. The results
of the models named replace older ones in docs/rounding.json; ``python docs/rounding.py`` alone redraws the table of
docs/int8.md from it.
"""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from results import markdown, put

import zoo
from zoo.attacks import margin
from zoo.datasets import dataset_called
from zoo.datasets.base import to_float
from zoo.evaluation.perturb import perturb
from zoo.evaluation.protocols import PROTOCOLS
from zoo.export.bench.stopwatch import timed
from zoo.export.engines import openvino
from zoo.export.engines.interface import Engine, Order
from zoo.export.ladder.climb import WALK
from zoo.export.mixed import RANKED_ON
from zoo.export.onnx.calibration import Sampling, calibration_images
from zoo.export.onnx.graph import GRAPH, save_onnx
from zoo.export.onnx.int8 import to_int8
from zoo.system.device import cpu_id
from zoo.system.files import locked, pretty

DOCS = Path(__file__).parent
STORE, PAGE = DOCS / "rounding.json", DOCS / "int8.md"
ROUNDS, SECONDS = 20, 0.1

Cell = dict[str, Any]


def measured(name: str, folder: Path) -> Cell:
    """Median milliseconds by images and graph, and the root mean square of what rounding changes in the margins."""
    model, dataset = zoo.load(name).eval(), dataset_called("cifar10").load()
    images, _ = calibration_images(model, dataset, Sampling())
    held_out = dataset.split("validation")
    y = torch.from_numpy(held_out.labels[:RANKED_ON].astype(np.int64))
    x = perturb(PROTOCOLS[WALK], model, to_float(held_out.images[:RANKED_ON]), y, early_stop=False)

    def built(graph: str, **how: bool) -> Engine:
        (home := folder / graph).mkdir()
        save_onnx(model, home / GRAPH)
        if how:
            to_int8(home / GRAPH, images, **how)
        order = Order(model=model, graph=home / GRAPH, precision="int8" if how else "fp32", batches=(1, 32))
        return openvino.load(home / openvino.build(order, home).file, threads=1)

    engines = {"fp32": built("fp32")}
    engines |= {graph: built(graph, inputs_only=graph == "inputs") for graph in ("everything", "inputs")}
    exact = margin(engines["fp32"](x), y)
    noise = {graph: (margin(engine(x), y) - exact).square().mean().sqrt().item() for graph, engine in engines.items()}
    times = {str(n): p50(engines, x[:n]) for n in (1, 32)}
    runtime = {"device": cpu_id(1), "openvino": openvino.runtime().__version__}
    return {"activation": zoo.info(name).spec["activation"], "p50_ms": times, "noise": noise, **runtime}


def p50(engines: dict[str, Engine], x: torch.Tensor) -> dict[str, float]:
    """Median milliseconds of a call, all graphs in turn."""
    found: dict[str, list[float]] = {graph: [] for graph in engines}
    for _ in range(ROUNDS):
        for graph, engine in engines.items():
            found[graph] += timed(partial(engine, x), SECONDS)["ms"]
    return {graph: round(median(ms), 4) for graph, ms in found.items()}


def stored() -> dict[str, Cell]:
    return json.loads(STORE.read_bytes()) if STORE.exists() else {}


def redraw() -> None:
    heads = ["model", "activation"]
    heads += [f"{kind}: {graph}" for kind in ("ms", "batch 32") for graph in ("fp32", "everything", "inputs")]
    heads += ["noise: everything", "noise: inputs"]
    rows = []
    for name, one in sorted(
        stored().items(), key=lambda named: (named[1]["activation"], named[1]["p50_ms"]["1"]["fp32"])
    ):
        times = [f"{ms:#.3g}".rstrip(".") for images in ("1", "32") for ms in one["p50_ms"][images].values()]
        noise = [f"{one['noise'][graph]:.3f}" for graph in ("everything", "inputs")]
        rows.append([f"`{name}`", {"relu": "ReLU", "silu": "SiLU"}[one["activation"]], *times, *noise])
    put(PAGE, {"rounding": markdown(heads, rows, 2)})


if __name__ == "__main__":
    torch.set_num_threads(1)
    for name in sys.argv[1:]:
        with TemporaryDirectory() as folder:
            found = measured(name, Path(folder))
        with locked(DOCS):
            STORE.write_text(pretty({**stored(), name: found}) + "\n", encoding="utf-8", newline="\n")
        print(f"{name}: done", flush=True)
    redraw()
