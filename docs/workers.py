"""Many trainings and measurements in processes side by side, each resumed where it stopped, and the files of results.

docs/methods.py and docs/shapes.py say which.
"""

from __future__ import annotations

import gc
import json
import multiprocessing
import os
import signal
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from typing import Any

# -- work in processes -------------------------------------------------------------------------------------------

_stopped: Callable[[], bool] = lambda: False  # noqa: E731


def _begin(event: Any, deadline: float) -> None:
    """Prepare a worker process: it stops when ``event`` is set, or at the time ``deadline``."""
    global _stopped
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the event stops this one
    _stopped = lambda: event.is_set() or time.time() > deadline  # noqa: E731


def stopped() -> bool:
    """Whether this worker process is to stop."""
    return _stopped()


class Stopped(Exception):
    """The work was stopped before it was done."""


def work(
    jobs: int,
    deadline: float,
    do: Callable[..., Any],
    todo: list[tuple[str, tuple[Any, ...]]],
    ready: Callable[[str], bool] = lambda name: True,
) -> Iterator[tuple[str, Any]]:
    """The results of ``do(*arguments)`` by name, as they are done in ``jobs`` persistent processes. Failures are
    reported and stop nothing else. A signal stops all: what runs then ends early.

    Args:
        todo: names and arguments; each is started once ``ready(name)`` holds, the first such first.
    """
    os.environ |= {"OMP_NUM_THREADS": "1", "TORCHINDUCTOR_COMPILE_THREADS": "1"}
    context = multiprocessing.get_context("spawn")
    event, asked = context.Event(), []  # a signal handler must not wait for the lock of an event
    before = {number: signal.signal(number, lambda *_: asked.append(1)) for number in (signal.SIGTERM, signal.SIGINT)}
    tries: Counter[str] = Counter()
    running: dict[Future[Any], tuple[str, tuple[Any, ...]]] = {}
    begin = (event, deadline)
    pool = ProcessPoolExecutor(jobs, context, initializer=_begin, initargs=begin)
    try:
        while todo or running:
            if asked or time.time() > deadline:
                event.set()
                todo.clear()
            startable = [one for one in todo if ready(one[0])][: jobs - len(running)]
            for one in startable:
                todo.remove(one)
                running[pool.submit(do, *one[1])] = one
            if not running:
                break
            done, _ = wait(running, timeout=1, return_when=FIRST_COMPLETED)
            broken = False
            for future in done:
                one = name, _ = running.pop(future)
                try:
                    yield name, future.result()
                except BrokenProcessPool:
                    broken = True
                    tries[name] += 1
                    if tries[name] < 3:
                        todo.insert(0, one)
                    else:
                        print(f"{name}  FAILED: its process died", flush=True)
                except Stopped as early:
                    print(f"{name}  stopped {early}", flush=True)
                except Exception as error:
                    print(f"{name}  FAILED: {''.join(traceback.format_exception(error))}", flush=True)
            if broken and not running:
                pool.shutdown()
                pool = ProcessPoolExecutor(jobs, context, initializer=_begin, initargs=begin)
    finally:
        event.set()
        pool.shutdown(cancel_futures=True)
        for number, handler in before.items():
            signal.signal(number, handler)
    for name, _ in todo:
        print(f"{name}  left out: what it needs is missing", flush=True)


@cache
def images() -> Any:
    """CIFAR-10, loaded once in each process."""
    from zoo.datasets.cifar10 import CIFAR10

    return CIFAR10.load()


# -- trainings ----------------------------------------------------------------------------------------------------


def train_run(recipe: str, preset: str | None, overrides: list[str], out: Path) -> dict[str, Any]:
    """Train a recipe in the folder ``out``; returns the metrics of its last epoch."""
    import torch

    from zoo.train.pipeline import run
    from zoo.train.recipes.phases import load_phases
    from zoo.train.run.loop import Interrupted

    def tick(phase: str, step: int, total: int, loss: float) -> None:
        if stopped():
            signal.raise_signal(signal.SIGTERM)  # the loop writes a checkpoint after its next step

    if stopped():
        raise Stopped("before it began")
    asked = {"preset": preset, "overrides": overrides}
    try:
        run(load_phases(recipe, **asked), images(), out, resume=True, asked=asked, tick=tick)
    except Interrupted as early:
        raise Stopped(str(early).removeprefix("stopped ")) from None
    finally:
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    facts = json.loads((out / "model" / "config.json").read_bytes())["train"]
    return {**facts["history"][-1], "wall_s": facts["wall_s"]}


def picked(names: Iterable[str], globs: Iterable[str]) -> list[str]:
    """The names that one of the ``globs`` matches, all without globs; it ends the program where a glob matches none."""
    names, globs = list(names), list(globs)
    for glob in globs:
        if not any(fnmatch(name, glob) for name in names):
            raise SystemExit(f"no run is called '{glob}': they have names such as '{names[0]}'")
    return [name for name in names if not globs or any(fnmatch(name, glob) for glob in globs)]


def trained(folder: Path) -> bool:
    return (folder / "model" / "held_out.json").exists()  # the last file that a run leaves


def run_or_exit(do: Callable[[Any], None], args: Any) -> None:
    """Run ``do(args)``; an error that is for the user ends the program with its sentence."""
    from zoo.system.errors import ZooError

    try:
        do(args)
    except ZooError as error:
        raise SystemExit(str(error)) from None


# -- results ----------------------------------------------------------------------------------------------------


def stored(path: Path) -> dict[str, Any]:
    return json.loads(path.read_bytes()) if path.exists() else {"runs": {}, "times": {}}


def store(path: Path, data: Mapping[str, Any]) -> None:
    """Write ``data`` with a line for each run."""
    from zoo.system.files import write_atomic

    parts = []
    for section, entries in sorted(data.items()):
        lines = ",\n".join(f" {json.dumps(name)}: {json.dumps(entry)}" for name, entry in sorted(entries.items()))
        parts.append(f"{json.dumps(section)}: {{\n{lines}\n}}")
    write_atomic(path, ("{\n" + ",\n".join(parts) + "\n}\n").encode())
