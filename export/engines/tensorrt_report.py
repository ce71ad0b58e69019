"""For owners of an NVIDIA GPU: build, check and time TensorRT engines of a released model, in a report to send back.

``pip install "robust-zoo[trt]"``, then ``python -m zoo.export.engines.tensorrt_report``. An error ends one precision,
and not the report: it is for what does not work, too.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from zoo.export import export_model
from zoo.export.bundle.folder import MANIFEST
from zoo.export.bundle.manifest import LEVELS, PRECISIONS, Precision, Report, now, read_manifest
from zoo.export.bundle.source import load_source
from zoo.export.engines.tensorrt import TensorRt, load
from zoo.export.engines.tensorrt_device import here, package
from zoo.system.errors import ZooError
from zoo.system.toolchain import toolchain

BATCHES = (1, 8, 64)
WARMUP, ROUNDS = 20, 200


def report(name: str, *, level: Any, data: Path | None, offline: bool, n: int) -> dict[str, Any]:
    """Facts of the machine, and for each precision the rungs that were climbed and the times, or the error.

    Raises:
        MissingDependency: TensorRT cannot be used here.
        UnknownModel, Unreachable, IntegrityError: the model cannot be had.
    """
    facts = machine()
    load_source(name, offline=offline)  # what cannot be had is no finding about TensorRT
    engines: dict[str, Any] = {}
    for precision in PRECISIONS:
        print(f"TensorRT {precision} ...", file=sys.stderr, flush=True)
        with tempfile.TemporaryDirectory() as out:
            options = {"verify": level, "data": data, "offline": offline, "n": n}
            engines[precision] = _tried(name, precision, Path(out), options)
    return {"model": name, "created": now(), "machine": facts, "toolchain": toolchain(), "engines": engines}


def machine() -> dict[str, Any]:
    """The GPU, its driver, and the versions that decide what is built."""
    facts = {**here(package()), "cuda": torch.version.cuda, "driver": "unknown"}
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    with suppress(OSError):
        facts["driver"] = subprocess.run(query, capture_output=True, text=True).stdout.partition("\n")[0] or "unknown"
    return facts


def _tried(name: str, precision: Precision, out: Path, options: dict[str, Any]) -> dict[str, Any]:
    """What an export came to, kept also where a gate failed: how far off an engine is says what is wrong with it."""
    found: dict[str, Any] = {}
    since = time.perf_counter()
    try:
        export_model(
            name, format="tensorrt", precision=precision, batches=BATCHES, out=out, keep_failed=True, **options
        )
    except Exception as error:
        found["error"] = _told(error)
    found["seconds"] = round(time.perf_counter() - since, 1)
    for bundle in out.iterdir():  # at most one, perhaps as BUNDLE.failed
        try:
            climbed = Report.model_validate_json((bundle / "reports" / "verify.json").read_bytes())
            artifact = read_manifest(bundle / MANIFEST).artifact
            found["rungs"] = [rung.model_dump(mode="json", exclude={"bits", "protocols"}) for rung in climbed.rungs]
            found |= {"reached": climbed.reached, "engine": climbed.engine}
            found |= {"size": artifact.size, "built_for": artifact.built_for, "options": artifact.options}
            engine = load(bundle / artifact.file)
            found["times"] = times(_from_cpu(engine), engine.shape[1])
            found["times_on_gpu"] = times(_on_gpu(engine), engine.shape[1])
        except Exception as error:
            found.setdefault("error", _told(error))
    return found


def _told(error: Exception) -> dict[str, Any]:
    """An error without the folders of the machine that it was raised on."""
    frames = traceback.extract_tb(error.__traceback__)
    return {
        "kind": type(error).__name__,
        "exit_code": error.exit_code if isinstance(error, ZooError) else 1,
        "message": str(error),
        "where": [f"{Path(frame.filename).name}:{frame.lineno} {frame.name}" for frame in frames],
    }


Timed = Callable[[torch.Tensor], float]  # images on the CPU to milliseconds


def times(run: Timed, size: int) -> dict[str, dict[str, float]]:
    """Milliseconds of one call by batch size: median and 95th percentile of many."""
    measured = {}
    for batch in BATCHES:
        images = torch.rand(batch, 3, size, size, generator=torch.Generator().manual_seed(batch))
        rounds = [run(images) for _ in range(WARMUP + ROUNDS)][WARMUP:]
        measured[str(batch)] = {"p50_ms": statistics.median(rounds), "p95_ms": statistics.quantiles(rounds, n=20)[-1]}
    return measured


def _from_cpu(engine: TensorRt) -> Timed:
    """From images on the CPU to logits there."""

    def run(images: torch.Tensor) -> float:
        since = time.perf_counter()
        engine(images)
        return 1000 * (time.perf_counter() - since)

    return run


def _on_gpu(engine: TensorRt) -> Timed:
    """The engine alone, without the ways to the GPU and back."""

    def run(images: torch.Tensor) -> float:
        x = images.to(engine.device)
        logits = torch.empty((len(x), engine.classes), device=engine.device)
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        start.record(engine.stream)
        engine.enqueue(x, logits)
        end.record(engine.stream)
        engine.stream.synchronize()
        return start.elapsed_time(end)

    return run


def as_markdown(facts: dict[str, Any]) -> str:
    """The report for people."""
    place = facts["machine"]
    lines = [
        f"# TensorRT engines of {facts['model']}",
        "",
        f"{place['gpu']} (compute capability {place['compute_capability']}), driver {place['driver']}, TensorRT "
        f"{place['tensorrt']}, torch {facts['toolchain']['torch']} with CUDA {place['cuda']}, {place['platform']}; "
        f"{facts['created']}. Milliseconds a call, median (95th percentile), from the CPU and back; in brackets on the "
        "GPU alone.",
        "",
        "| precision | reached | logits off by | " + " | ".join(f"batch {batch}" for batch in BATCHES) + " |",
        "| --- " * (3 + len(BATCHES)) + "|",
    ]
    for name, found in facts["engines"].items():
        off = [rung["measured"]["max_logit_difference"] for rung in found.get("rungs", ()) if rung["name"] == "parity"]
        cells = [found.get("reached", "-"), "-" if not off else "NaN" if off[0] is None else f"{off[0]:.2g}"]
        for batch in map(str, BATCHES):
            whole, alone = (found.get(kind, {}).get(batch) for kind in ("times", "times_on_gpu"))
            cell = f"{whole['p50_ms']:.3f} ({whole['p95_ms']:.3f})" if whole else "-"
            cells.append(cell + (f" [{alone['p50_ms']:.3f}]" if alone else ""))
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    for name, found in facts["engines"].items():
        if "error" in found:
            lines += ["", f"{name}: {found['error']['kind']}: {found['error']['message']}"]
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str]) -> int:
    """Write the report as JSON and Markdown; returns the exit code of the first error in it, else 0."""
    parser = argparse.ArgumentParser(prog="python -m zoo.export.engines.tensorrt_report", description=__doc__)
    parser.add_argument("name", nargs="?", default="trades-s7", help="a model's name")
    parser.add_argument("--verify", choices=LEVELS, help="how high to climb; else as far as the data allow")
    parser.add_argument("--data", type=Path, help="CIFAR-10's parquet files, else ZOO_DATA, the cache, the Hub")
    parser.add_argument("--offline", action="store_true", help="never use the network")
    parser.add_argument("-n", type=int, default=1000, help="test images that are attacked")
    parser.add_argument("-o", "--out", type=Path, default=Path("tensorrt-report"), help="where the report goes")
    asked = parser.parse_args(arguments)
    try:
        facts = report(asked.name, level=asked.verify, data=asked.data, offline=asked.offline, n=asked.n)
    except ZooError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    asked.out.mkdir(parents=True, exist_ok=True)
    (asked.out / "tensorrt-report.json").write_text(json.dumps(facts, indent=2) + "\n")
    (asked.out / "tensorrt-report.md").write_text(as_markdown(facts))
    print(as_markdown(facts))
    print(f"Written to {asked.out}: please send both files back.", file=sys.stderr)
    return next((found["error"]["exit_code"] for found in facts["engines"].values() if "error" in found), 0)


if __name__ == "__main__":
    faulthandler.enable()  # should TensorRT kill the process, this tells where
    sys.exit(main(sys.argv[1:]))
