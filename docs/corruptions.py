"""The study of corruptions. To measure: ``python docs/corruptions.py MODEL ... [-f ENGINES] [--precision LIST]``.

It exports each model to each engine into bundles/corruptions, corrupts the first test images of CIFAR-10 in every kind
and severity, and asks every engine and its float twin. What is done is kept there, so that it can be interrupted.
``python docs/corruptions.py`` alone takes what is there over into docs/corruptions.json, and redraws the tables of
docs/corruptions.md from it.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from results import markdown, put

from zoo import load
from zoo.datasets import DATASETS
from zoo.datasets.base import Split, to_float
from zoo.evaluation.cells import summary
from zoo.evaluation.corruptions import CELLS, KINDS, SEVERITIES, source_of, versions
from zoo.evaluation.protocols import PROTOCOLS
from zoo.evaluation.statistics import Accuracy, clustered
from zoo.export import export_model, read_bundle
from zoo.export.bundle.folder import MANIFEST
from zoo.export.engines import ENGINES, backend
from zoo.export.engines.interface import Engine
from zoo.export.engines.options import reloading
from zoo.export.engines.twin import Twin
from zoo.export.ladder.rungs import right
from zoo.system.errors import ZooError
from zoo.system.files import pretty

DOCS = Path(__file__).parent
STORE, PAGE = DOCS / "corruptions.json", DOCS / "corruptions.md"
STUDY = Path("bundles/corruptions")
GROUPS = {"noise": KINDS[:3], "blur": KINDS[3:7], "weather": KINDS[7:11], "digital": KINDS[11:]}
BATCH = 64

Facts = dict[str, Any]


def exported(model: str, engine: str, precision: str) -> Path | None:
    """The bundle of a model; None where the engine does not have the precision, or cannot be built."""
    folder = STUDY / f"{model}--{engine}-{precision}"
    if precision not in backend(engine).precisions:
        return None
    if not (folder / MANIFEST).exists():
        try:
            export_model(model, format=engine, precision=precision, out=STUDY, verify="parity", batches=(1, BATCH))
        except ZooError as error:
            print(f"{folder.name}: {error}", flush=True)
            return None
    return folder


def opened(bundle: Path) -> Engine:
    manifest = read_bundle(bundle)
    kind = backend(manifest.engine)
    options = reloading(kind, manifest.artifact.options, {})
    return kind.load_module().load(bundle / manifest.artifact.file, **options)


def answers(engine: Engine, x: torch.Tensor, y: torch.Tensor) -> np.ndarray:
    """Which images are right, bool [n]."""
    parts = zip(x.split(BATCH), y.split(BATCH), strict=True)
    return np.concatenate([right(engine, images, labels) for images, labels in parts])


def kept(cell: str, n: int) -> Path:
    return STUDY / "bits" / f"{cell}-{n}.npz"


def stored(path: Path) -> dict[str, np.ndarray]:
    """Who is right on which image of a cell, bool [n] by bundle or model."""
    if not path.exists():
        return {}
    with np.load(path) as arrays:
        return dict(arrays)


def measure(models: list[str], bundles: list[Path], n: int) -> None:
    """Ask all engines and float models in every cell, and without corruption; what is stored is passed over."""
    test = DATASETS["cifar10"].load().split("test")
    split = Split("test", test.images[:n], test.labels[:n])
    y = torch.from_numpy(split.labels.astype(np.int64))
    source = source_of(PROTOCOLS["corruptions"], split)
    asked: dict[str, Engine] = {name: Twin.of(load(name)) for name in models}
    asked |= {bundle.name: opened(bundle) for bundle in bundles}
    (STUDY / "bits").mkdir(parents=True, exist_ok=True)
    for kind, severity in (("clean", 0), *CELLS):
        path = kept(f"{kind}-{severity}", n)
        known = stored(path)
        missing = [name for name in asked if name not in known]
        if missing:
            x = to_float(split.images if kind == "clean" else source.images(kind, severity, n))
            known |= {name: answers(asked[name], x, y) for name in missing}
            scratch = path.with_suffix(".part.npz")
            np.savez_compressed(scratch, **known)
            scratch.replace(path)
        print(f"{kind}-{severity}: {len(missing)} asked", flush=True)


def found(n: int) -> Iterator[Facts]:
    """What the study keeps of every bundle in bundles/corruptions, from the kinds that it met at all severities."""
    clean = stored(kept("clean-0", n))
    cells = {cell: stored(kept(f"{cell[0]}-{cell[1]}", n)) for cell in CELLS}
    for path in sorted(STUDY.glob(f"*/{MANIFEST}")):
        manifest, name = read_bundle(path.parent), path.parent.name
        kinds = [kind for kind in KINDS if all(name in cells[kind, severity] for severity in SEVERITIES)]
        if not kinds:
            continue
        own = [cells[kind, severity] for kind in kinds for severity in SEVERITIES]
        twin, engine = (np.array([cell[who] for cell in own]) for who in (manifest.name, name))  # bool [5 kinds, n]
        rows = {group: np.repeat([kind in members for kind in kinds], 5) for group, members in GROUPS.items()}
        yield {
            "model": manifest.name,
            "engine": manifest.engine,
            "precision": manifest.artifact.precision,
            "artifact_sha256": manifest.artifact.sha256,
            "n": n,
            "toolchain": manifest.toolchain | versions(),
            "clean": _compared(clean[manifest.name][None], clean[name][None]),
            "mean": _compared(twin, engine),
            "groups": {group: _compared(twin[one], engine[one]) for group, one in rows.items() if one.any()},
            "twin": summary(twin, kinds),
            "engine_table": summary(engine, kinds),
        }


def _compared(twin: np.ndarray, engine: np.ndarray) -> Facts:
    """Accuracies with their intervals, and twin - engine with its interval over images."""
    lost, interval = clustered(twin, engine)
    each = {"twin": Accuracy.over(twin).to_dict(), "engine": Accuracy.over(engine).to_dict()}
    return each | {"lost": lost, "lost95": list(interval)}


def take_over(n: int) -> list[Facts]:
    """The stored results, with those of bundles/corruptions in the place of older ones."""
    results = json.loads(STORE.read_bytes()) if STORE.exists() else []
    results += found(n)
    latest = {(one["model"], one["engine"], one["precision"]): one for one in results}
    order = [(engine.name, precision) for engine in ENGINES for precision in ("fp32", "fp16", "int8")]
    results = sorted(latest.values(), key=lambda one: (one["model"], order.index((one["engine"], one["precision"]))))
    STORE.write_text(pretty(results) + "\n", encoding="utf-8", newline="\n")
    return results


def _percent(accuracy: Facts) -> str:
    low, high = accuracy["ci95"]
    return f"{100 * accuracy['value']:.1f} ±{50 * (high - low):.1f}"


def _lost(pair: Facts) -> str:
    """Points lost against the twin with the interval; bold where it does not contain 0."""
    low, high = (100 * end for end in pair["lost95"])
    text = f"{100 * pair['lost']:.2f} ({low:.2f} to {high:.2f})"
    return text if low <= 0 <= high else f"**{text}**"


def tables(results: list[Facts]) -> str:
    """For each model a table, below what its float twin gets right."""
    parts = []
    for model in dict.fromkeys(one["model"] for one in results):
        own = [one for one in results if one["model"] == model]
        twin = own[0]
        heads = ["engine", "precision", "clean", "mean", "worst kind", "lost clean", "lost in the mean", *GROUPS]
        rows = []
        for one in own:
            worst = one["engine_table"]
            row = [
                *(one["engine"], one["precision"]),
                *(_percent(one[key]["engine"]) for key in ("clean", "mean")),
                f"{worst['worst']} {_percent(worst['accuracy'])}",
                *(_lost(one[key]) for key in ("clean", "mean")),
                *(_lost(one["groups"][group]) if group in one["groups"] else "-" for group in GROUPS),
            ]
            rows.append(row)
        worst = twin["twin"]
        said = [f"clean {_percent(twin['clean']['twin'])}", f"mean {_percent(twin['mean']['twin'])}"]
        said += [f"worst {worst['worst']} {_percent(worst['accuracy'])}; {len(worst['cells'])} of {len(KINDS)} kinds"]
        parts.append(f"**{model}** — float twin: {', '.join(said)}.\n\n{markdown(heads, rows, 2)}")
    return "\n\n".join(parts)


def cells(results: list[Facts]) -> str:
    """The accuracy of each float twin in every kind, mean over the severities and at severities 1 and 5."""
    twins = {one["model"]: one for one in results}
    rows = []
    measured = [kind for kind in KINDS if all(kind in one["twin"]["cells"] for one in twins.values())]
    for kind in measured:
        row = [kind]
        for one in twins.values():
            right, n = one["twin"]["cells"][kind], one["n"]
            row.append(f"{20 * sum(right) / n:.1f} ({100 * right[0] / n:.0f} to {100 * right[-1] / n:.0f})")
        rows.append(row)
    return markdown(["kind", *twins], rows)


def redraw(n: int) -> None:
    results = take_over(n)
    put(PAGE, {"study": tables(results), "kinds": cells(results)})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", metavar="MODEL", nargs="*")
    parser.add_argument("--format", "-f", default="onnxruntime,openvino,executorch,litert")
    parser.add_argument("--precision", default="fp32,fp16,int8")
    parser.add_argument("-n", type=int, default=1000, help="test images that are corrupted")
    given = parser.parse_args()
    if given.models:
        built = [exported(*one) for one in product(given.models, given.format.split(","), given.precision.split(","))]
        measure(given.models, [bundle for bundle in built if bundle], given.n)
    else:
        redraw(given.n)
