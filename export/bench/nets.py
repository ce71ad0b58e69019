"""How long architectures take on an engine, whatever their weights: what a space's latency table is fitted to.

Unlike in a bench, all engines are in one process: with hundreds, one each would not fit into memory.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from zoo.export.bench.bench import ROUNDS, processors_of
from zoo.export.bench.machine import Watch, warnings_of
from zoo.export.bench.stopwatch import FIRST_CALLS, facts_of, timed
from zoo.export.bundle.manifest import now
from zoo.export.engines import backend
from zoo.export.engines.interface import Engine, Order
from zoo.export.onnx.graph import GRAPH, save_onnx
from zoo.models import build
from zoo.specs import Spec
from zoo.system.errors import UsageError
from zoo.system.toolchain import toolchain


def time_architectures(
    specs: Sequence[Spec],
    *,
    engine: str = "onnx",
    threads: int = 1,
    batch: int = 1,
    seconds: float = 0.5,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[list[float], dict[str, Any]]:
    """Export nets of these architectures with fresh weights, in fp32, and time them side by side, in rounds.

    Args:
        seconds: for timed calls, of each.
        progress: takes how many are exported, of how many.

    Returns:
        The median of a call in milliseconds, of each; and what they ran on, as JSON has it: "engine", "runtime",
        "device", "threads", "batch", "warnings", "toolchain", "measured_at".

    Raises:
        UsageError: an option is out of range.
        MissingDependency, ExportFailed: the engine is not installed, or cannot be built.
    """
    if not specs or batch < 1 or not seconds > 0:
        raise UsageError("timing takes one architecture at least, batches of 1 or more, and seconds above 0")
    processors, kind = processors_of(threads), backend(engine)
    kind.require(build=True)
    with ExitStack() as stack, tempfile.TemporaryDirectory(prefix="zoo-time-") as scratch, torch.inference_mode():
        engines: list[Engine] = []
        for place, spec in enumerate(specs):
            folder = Path(scratch) / str(place)
            folder.mkdir()
            engines.append(stack.enter_context(_built(spec, kind.load_module(), folder, threads, batch)))
            progress(place + 1, len(specs))
        seeded = torch.Generator().manual_seed(0)
        images = [torch.rand(batch, 3, spec.image_size, spec.image_size, generator=seeded) for spec in specs]
        found: list[list[float]] = [[] for _ in specs]
        calls = [partial(one, x) for one, x in zip(engines, images, strict=True)]
        watch = Watch()
        with _on(processors):
            for call in calls:
                for _ in range(FIRST_CALLS):
                    call()
            for _ in range(ROUNDS):
                for call, ms in zip(calls, found, strict=True):
                    ms += timed(call, seconds / ROUNDS)["ms"]
        warnings = warnings_of(watch.seen(0.0))
        described = facts_of(engines[0], {"kind": "engine", "threads": threads})
    terms = {"engine": kind.name, **described, "threads": threads, "batch": batch}
    return (
        [round(float(np.median(ms)), 5) for ms in found],
        {**terms, "warnings": warnings, "toolchain": toolchain(), "measured_at": now()},
    )


def _built(spec: Spec, module: Any, folder: Path, threads: int, batch: int) -> Engine:
    with torch.random.fork_rng(devices=[]), torch.inference_mode(False):
        model = build(spec).eval()
        save_onnx(model, folder / GRAPH)
        order = Order(model=model, graph=folder / GRAPH, precision="fp32", batches=tuple(sorted({1, 2, batch})))
        built = module.build(order, folder)
    return module.load(folder / built.file, threads=threads)


@contextmanager
def _on(processors: tuple[int, ...] | None) -> Iterator[None]:
    """Stay on these processors, where the system allows."""
    if processors is None:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, processors)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
