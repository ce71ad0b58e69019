"""The training loop, on Accelerate: a CPU, one GPU, many GPUs, many machines."""

from __future__ import annotations

import json
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from zoo.datasets.base import Dataset
from zoo.system.errors import IntegrityError, TrainingDiverged, UsageError, ZooError
from zoo.system.files import check_folder, write_atomic
from zoo.train.recipes.schema import ONLY, Recipe
from zoo.train.run.checkpoint import load_checkpoint, save_checkpoint
from zoo.train.run.trainer import Trainer
from zoo.weights.folder import CONFIG

CHECKPOINT = "checkpoint.pt"
Report = Callable[[dict[str, Any]], None]


@dataclass
class _Signals:
    """What signals said: that the run is to stop after this step, and when the process last went on after a pause."""

    stop: bool = False
    continued: float = -math.inf


class Interrupted(KeyboardInterrupt):
    """SIGTERM or SIGINT stopped the run; its checkpoint includes the last step."""


def check_free(out: Path, *, resume: bool) -> None:
    """Raise UsageError if ``out`` is a file, holds a run and ``resume`` is off, or holds what a run left without its
    checkpoint, which would be overwritten."""
    check_folder(out)
    if (out / CHECKPOINT).exists():
        if not resume:
            raise UsageError(f"'{out}' already holds a run: pass --resume to continue it, or choose another --out")
        return
    for left in (Trainer.leaves(out) / CONFIG, out / "search.json"):
        if left.exists():
            raise UsageError(f"'{left}' is the result of a run whose checkpoint is gone: choose another --out")


def fit(
    recipe: Recipe,
    dataset: Dataset,
    out: Path,
    *,
    kind: type[Trainer] = Trainer,
    start: str | None = None,
    resume: bool = False,
    time_budget: float | None = None,
    phase: str = ONLY,
    earlier: Sequence[Mapping[str, Any]] = (),
    teacher: str | None = None,
    report: Report = lambda metrics: None,
    tick: Callable[[int, int, float], None] = lambda step, total, loss: None,
) -> Path:
    """Train ``recipe`` and write its averaged weights as a model folder ``out/model`` (config and safetensors).

    Args:
        dataset: the training data; its validation split guards the run, its test split is never used.
        out: the folder for checkpoint, metrics (JSON lines and TensorBoard), resolved recipe and model.
        kind: the trainer; a search writes ``out/search.json`` instead of a model.
        start: a model of this architecture to start from, by name or folder; by default, random weights.
        resume: continue from the checkpoint in ``out``, if there is one.
        time_budget: seconds of training in all, with earlier sessions of the run; the schedule is shortened to fit.
            While the process is stopped (SIGSTOP, Ctrl-Z), no time passes.
        phase: the name of this run among the phases of a training. ``earlier`` has the efforts of the phases before
            (``Trainer.effort()``), for the facts of the model.
        teacher: the folder of the teacher, if the recipe's teacher is an earlier phase.
        report: called with the metrics of every epoch that the guard judges; ``tick`` with step, total and loss during
            an epoch.

    Raises:
        UsageError: ``out`` holds a run and ``resume`` is off, or it holds the run of another recipe.
        IntegrityError: the checkpoint is damaged, or of a version that stored other things.
        TrainingDiverged: robustness collapsed more often than ``guard.rollbacks``.
        Interrupted: a signal stopped the run.
    """
    checkpoint, state = out / CHECKPOINT, None
    check_free(out, resume=resume)  # before the trainer is built, which may take minutes
    if checkpoint.exists():
        state = load_checkpoint(checkpoint)
        if not isinstance(state, dict) or "recipe" not in state or not isinstance(state.get("position"), dict):
            raise UsageError(f"'{checkpoint}' is not a checkpoint of zoo train: choose another --out")
        if state["recipe"] != recipe.model_dump(mode="json"):
            raise UsageError(f"'{out}' holds a run of another recipe or other settings: choose another --out")
        left = kind.leaves(out)
        if state["position"].get("done") and (left.is_file() or (left / CONFIG).is_file()):  # which is written last
            return left
    trainer = kind(recipe, dataset, start=start, time_budget=time_budget, phase=phase, earlier=earlier, teacher=teacher)
    accelerator, main = trainer.accelerator, trainer.accelerator.is_main_process
    if state is not None:
        try:
            trainer.restore(state)
        except torch.OutOfMemoryError:
            raise
        except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            raise IntegrityError(
                f"'{checkpoint}' is damaged, or was written by another version ({type(error).__name__}): "
                "continue it with that version, or choose another --out"
            ) from None
    elif main:
        out.mkdir(parents=True, exist_ok=True)
        write_atomic(out / "recipe.json", json.dumps(recipe.model_dump(mode="json"), indent=2) + "\n")
    accelerator.wait_for_everyone()

    with _signals() as signals, _tensorboard(out, enabled=main) as board:
        try:
            _run(trainer, checkpoint, signals, report, board, tick)
            if _anyone(trainer, signals.stop):
                raise Interrupted("stopped after the last step")
        except Exception as error:
            if not signals.stop or isinstance(error, ZooError):
                raise
            raise Interrupted("stopped within a step") from error  # Ctrl-C ends the compiler's own processes too
    result = trainer.finish(out)
    accelerator.wait_for_everyone()
    return result


def _run(
    trainer: Trainer,
    checkpoint: Path,
    signals: _Signals,
    report: Report,
    board: Callable[[dict[str, Any]], None],
    tick: Callable[[int, int, float], None],
) -> None:
    """Train until the run is done; write a checkpoint after every ``guard.every`` epochs and when a signal stops it."""
    recipe, main = trainer.recipe, trainer.accelerator.is_main_process
    period = trainer.steps_per_epoch * recipe.guard.every
    running, clock = 0.0, time.monotonic()
    since = clock
    progress = trainer.progress(trainer.position.seconds)
    while progress < 1:
        for group in trainer.optimizer.param_groups:
            group["lr"] = trainer.rate(progress)
        trainer.net.train()
        loss = trainer.train_step()
        position = trainer.position
        now = time.monotonic()
        position.seconds += max(0.0, now - max(clock, signals.continued))
        clock = now
        progress = trainer.progress(position.seconds)
        if _anyone(trainer, signals.stop):
            _save(trainer, checkpoint)
            trainer.accelerator.wait_for_everyone()
            raise Interrupted(f"stopped at step {position.step} of {trainer.total_steps}")
        in_period = position.step % period
        if position.step % trainer.steps_per_epoch % 20 == 0 or progress >= 1:
            running = loss.item()
            tick(position.step, trainer.total_steps, running)
        if in_period and progress < 1:
            continue

        raw_clean, raw = trainer.guarded_accuracy(trainer.net)
        collapsed = recipe.method.attacks and raw < recipe.guard.drop * position.best
        if _anyone(trainer, collapsed or not math.isfinite(running)):
            _roll_back(trainer, checkpoint)
            progress = trainer.progress(trainer.position.seconds)
            continue
        position.best = max(position.best, raw)
        clean, pgd = trainer.guarded_accuracy(trainer.averaged())
        images = (in_period or period) * recipe.train.batch_size
        metrics = {
            "epoch": round(position.step / trainer.steps_per_epoch, 3),
            "step": position.step,
            "loss": running,
            "lr": trainer.optimizer.param_groups[0]["lr"],
            "clean": clean,
            "pgd": pgd,
            "raw_clean": raw_clean,
            "raw_pgd": raw,
            "images_per_s": images / (time.monotonic() - since),
            "seconds": position.seconds,
            **trainer.metrics(),
        }
        position.history.append(metrics)
        position.done = progress >= 1
        _save(trainer, checkpoint)
        if main:
            board(metrics)
            report(metrics)
        since = time.monotonic()


def _save(trainer: Trainer, checkpoint: Path) -> None:
    state = trainer.state()  # in every process: a method may gather its parts
    if trainer.accelerator.is_main_process:
        save_checkpoint(state, checkpoint)


def _roll_back(trainer: Trainer, checkpoint: Path) -> None:
    """Return to the last good epoch and continue with other random numbers (Rice et al. 2020 stop there)."""
    attempt, seconds = trainer.position.attempt + 1, trainer.position.seconds
    if attempt > trainer.recipe.guard.rollbacks or not checkpoint.exists():
        raise TrainingDiverged(
            f"robust accuracy collapsed at step {trainer.position.step} after {attempt - 1} rollbacks: "
            f"lower optimizer.lr, or set more attack.steps"
        )
    trainer.restore(load_checkpoint(checkpoint))
    trainer.position.attempt, trainer.position.seconds = attempt, seconds


def _anyone(trainer: Trainer, stop: bool) -> bool:
    """Whether ``stop`` holds in any process, so that all stop after the same step."""
    if trainer.accelerator.num_processes == 1:
        return stop
    asked = torch.tensor(int(stop), device=trainer.device)
    return bool(trainer.accelerator.reduce(asked, "sum").item())


@contextmanager
def _signals() -> Iterator[_Signals]:
    """What SIGTERM, SIGINT and SIGCONT say meanwhile. A second SIGINT stops the run at once."""
    said = _Signals()
    if threading.current_thread() is not threading.main_thread():
        yield said
        return

    def stop(signum: int, frame: Any) -> None:
        if said.stop and signum == signal.SIGINT:
            raise KeyboardInterrupt
        said.stop = True

    def go_on(signum: int, frame: Any) -> None:
        said.continued = time.monotonic()

    handlers = {signal.SIGTERM: stop, signal.SIGINT: stop}
    if hasattr(signal, "SIGCONT"):  # not on Windows
        handlers[signal.SIGCONT] = go_on
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield said
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _tensorboard(out: Path, *, enabled: bool) -> Iterator[Callable[[dict[str, Any]], None]]:
    """A function that appends an epoch's metrics to TensorBoard and to ``metrics.jsonl``."""
    if not enabled:
        yield lambda metrics: None
        return
    from torch.utils.tensorboard import SummaryWriter

    with (
        SummaryWriter(str(out / "tensorboard")) as writer,
        open(out / "metrics.jsonl", "a", encoding="utf-8", newline="\n") as lines,
    ):

        def write(metrics: dict[str, Any]) -> None:
            for key, value in metrics.items():
                if isinstance(value, int | float):
                    writer.add_scalar(key, value, metrics["step"])
            lines.write(json.dumps(metrics) + "\n")
            lines.flush()

        yield write
