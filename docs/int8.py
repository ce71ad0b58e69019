"""The study of int8 graphs. To measure: ``python docs/int8.py MODEL ...``, which passes over what is stored.

Each model is made into three graphs: int8 as usual, with layers in float that a search chose, and with weights in 7
bits. They are timed side by side and attacked on the first 1,000 test images, as the ladder does it: all models by
walks first, then by Square. docs/int8.json keeps what was found; ``python docs/int8.py`` alone redraws the table of
docs/int8.md from it.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from results import markdown, put
from rounding import p50

import zoo
from zoo.datasets import dataset_called
from zoo.datasets.base import to_float
from zoo.evaluation.evaluate import prepare
from zoo.evaluation.perturb import perturb
from zoo.evaluation.protocols import PROTOCOLS
from zoo.evaluation.statistics import Paired
from zoo.export.engines import onnxruntime
from zoo.export.engines.twin import Twin
from zoo.export.ladder.climb import SQUARE, TARGETED, WALK
from zoo.export.ladder.rungs import BATCH, right
from zoo.export.ladder.surrogate import surrogate_pgd
from zoo.export.mixed import search
from zoo.export.onnx.calibration import Sampling, calibration_images
from zoo.export.onnx.graph import save_onnx
from zoo.export.onnx.int8 import to_int8
from zoo.system.device import cpu_id
from zoo.system.files import locked, pretty

DOCS = Path(__file__).parent
STORE, PAGE = DOCS / "int8.json", DOCS / "int8.md"
VARIANTS = {"int8": "all layers", "searched": "searched", "portable": "portable"}
N, ALLOWED, MARGIN = 1000, 0.005, 0.01

Bits = dict[str, np.ndarray]  # by graph: bool [N], who is right
Cell = dict[str, Any]


def stored() -> dict[str, Cell]:
    return json.loads(STORE.read_bytes()) if STORE.exists() else {}


class Study:
    """A model and its graphs; what was measured is stored at once."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name, self.model, self.dataset = name, zoo.load(name).eval(), dataset_called("cifar10").load()
        self.images, _ = calibration_images(self.model, self.dataset, Sampling())
        self.graphs = {variant: folder / f"{variant}.onnx" for variant in ("fp32", *VARIANTS)}
        for graph in self.graphs.values():
            save_onnx(self.model, graph)
        split = self.dataset.split("test")
        self.x, self.y = to_float(split.images[:N]), torch.from_numpy(split.labels[:N].astype(np.int64))
        self.twin = Twin.of(self.model)

    def measure(self, *cells: str) -> None:
        """Fill in those of the cells "search", "times", "walks" and "square" that are missing."""
        self.cell("search", self.search)
        to_int8(self.graphs["int8"], self.images)
        to_int8(self.graphs["portable"], self.images, portable=True)
        kept = stored()[self.name]["search"]["kept"]
        to_int8(self.graphs["searched"], self.images, kept=kept)
        self.engines = {variant: onnxruntime.load(graph, threads=1) for variant, graph in self.graphs.items()}
        self.attacked = [variant for variant in VARIANTS if variant != "searched" or kept]  # else it is the usual graph
        for name in cells:
            self.cell(name, getattr(self, name))

    def cell(self, name: str, measure: Callable[[], Cell]) -> None:
        if name in stored().get(self.name, {}):
            return
        found = measure()
        with locked(DOCS):
            before = stored()
            content = {**before, self.name: {**before.get(self.name, {}), name: found}}
            STORE.write_text(pretty(content) + "\n", encoding="utf-8", newline="\n")
        print(f"{self.name}: {name} done", flush=True)

    def search(self) -> Cell:
        walk, clock = PROTOCOLS[TARGETED].model_copy(update={"split": "validation", "n": N}), time.process_time()
        held_out, quantise = self.dataset.split("validation"), partial(to_int8, images=self.images)
        found = search(self.model, self.graphs["searched"], quantise, held_out, walk, allowed=ALLOWED)
        save_onnx(self.model, self.graphs["searched"])
        return {**found.model_dump(mode="json"), "cpu_s": round(time.process_time() - clock)}

    def times(self) -> Cell:
        """Milliseconds of an image, side by side on one thread."""
        found = p50(self.engines, self.x[:1])
        return {"p50_ms": found, "device": cpu_id(1), "onnxruntime": onnxruntime.runtime().__version__}

    def walks(self) -> Cell:
        """PGD-20 along the twin's gradients and along the graph's own, each for both."""
        walk: Cell = {key: getattr(PROTOCOLS[WALK], key) for key in ("eps", "norm", "step", "steps")}
        engines = [self.engines[variant] for variant in self.attacked]
        own = [prepare(engine.differentiable(self.model)) for engine in engines]
        of_twin, of_graph = ({variant: np.ones(N, bool) for variant in self.attacked} for _ in range(2))
        for start in range(0, N, BATCH):
            part = slice(start, start + BATCH)
            x, y = self.x[part], self.y[part]
            first, *others = surrogate_pgd(self.twin.model, [self.twin, *engines], x, y, seed=start, **walk)
            for variant, engine, gradients, other in zip(self.attacked, engines, own, others, strict=True):
                for_twin, for_graph = surrogate_pgd(gradients, [self.twin, engine], x, y, seed=start, **walk)
                of_twin[variant][part] = right(self.twin, first, y) & right(self.twin, for_twin, y)
                of_graph[variant][part] = right(engine, other, y) & right(engine, for_graph, y)
        return {"twin": packed(of_twin), "graph": packed(of_graph)}

    def square(self) -> Cell:
        """Square on the images that twin or graphs still get right, with the same random numbers for all."""
        walked = stored()[self.name]["walks"]
        of_twin, of_graph = unpacked(walked["twin"]), unpacked(walked["graph"])
        standing = np.flatnonzero(np.any([*of_twin.values(), *of_graph.values()], axis=0))
        for start in range(0, len(standing), BATCH):
            part = standing[start : start + BATCH]
            x, y, protocol = self.x[part], self.y[part], SQUARE.model_copy(update={"seed": start})
            holds = right(self.twin, perturb(protocol, self.twin, x, y), y)
            for variant in self.attacked:
                engine = self.engines[variant]
                of_twin[variant][part] &= holds
                of_graph[variant][part] &= right(engine, perturb(protocol, engine, x, y), y)
        return {"twin": packed(of_twin), "graph": packed(of_graph)}


def packed(bits: Bits) -> dict[str, str]:
    return {variant: np.packbits(array).tobytes().hex() for variant, array in bits.items()}


def unpacked(bits: dict[str, str]) -> Bits:
    return {
        variant: np.unpackbits(np.frombuffer(bytes.fromhex(text), np.uint8))[:N].astype(bool)
        for variant, text in bits.items()
    }


def lost(attacked: Cell, variant: str) -> str:
    """``0.4 (< 0.93)``: points lost, and the upper 95 % bound; bold where it passes no gate at one point."""
    variant = variant if variant in attacked["graph"] else "int8"
    pair = Paired.of(*(unpacked(attacked[who])[variant] for who in ("twin", "graph")))
    text = f"{100 * pair.difference:.1f} (< {100 * pair.upper():.2f})"
    return text if pair.non_inferior(MARGIN) else f"**{text}**"


def table(cells: dict[str, Cell]) -> str:
    heads = ["model", "attacks", "twin", *(f"lost: {title}" for title in VARIANTS.values())]
    heads += ["held out", "MACs in float", *(f"ms: {title}" for title in ("fp32", *VARIANTS.values()))]
    rows = []
    for name, one in cells.items():
        if "walks" not in one:
            continue
        chosen, times = one["search"], one["times"]["p50_ms"]
        for attacks in ("walks", "square"):
            if attacks in one:
                row = [f"`{name}`", "walks" if attacks == "walks" else "+ Square"]
                row += [f"{100 * unpacked(one[attacks]['twin'])['int8'].mean():.1f}"]
                row += [lost(one[attacks], variant) for variant in VARIANTS]
                row += [f"{100 * chosen['before']:.1f}, {100 * chosen['lost']:.1f}", f"{100 * chosen['macs']:.0f} %"]
                row += [f"{times[variant]:.3f}" for variant in ("fp32", *VARIANTS)]
                rows.append(row)
    return markdown(heads, rows, 2)


def redraw() -> None:
    put(PAGE, {"int8": table(stored())})


if __name__ == "__main__":
    torch.set_num_threads(1)
    for cells in (("times", "walks"), ("square",)):
        for name in sys.argv[1:]:
            if not {"search", *cells} <= stored().get(name, {}).keys():
                with TemporaryDirectory() as folder:
                    Study(name, Path(folder)).measure(*cells)
    if not sys.argv[1:]:
        redraw()
