"""The phases of a recipe, one after the other, each a run of the training loop in its own folder."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from zoo.datasets.base import Dataset
from zoo.models import build
from zoo.system.errors import IntegrityError, TrainingDiverged, UsageError, ZooError
from zoo.system.files import lock_of, stored_json, write_atomic
from zoo.train.methods.rnascl import SEARCHED
from zoo.train.proard import accounting
from zoo.train.proard.trainer import SupernetTrainer
from zoo.train.recipes.schema import Recipe
from zoo.train.rnascl.plot import draw_if_possible
from zoo.train.rnascl.search import Searcher
from zoo.train.run.loop import CHECKPOINT, fit
from zoo.train.run.trainer import Trainer
from zoo.train.teachers.teacher import Teacher, held_out_accuracy
from zoo.weights.folder import ModelFolder
from zoo.weights.load import find

ASKED = "asked.json"
Report = Callable[[str, dict[str, Any]], None]
Tick = Callable[[str, int, int, float], None]


def run(
    phases: Mapping[str, Recipe],
    dataset: Dataset,
    out: Path,
    *,
    resume: bool = False,
    time_budget: float | None = None,
    asked: Mapping[str, Any] | None = None,
    report: Report = lambda phase, metrics: None,
    tick: Tick = lambda phase, step, total, loss: None,
) -> dict[str, Path]:
    """Run ``phases`` (of :func:`zoo.train.recipes.phases.load_phases`) in order; returns the result of each.

    A search writes ``out/search/search.json``, and the phases after it train that architecture with its tutors. Every
    other phase writes a model folder ``out/PHASE/model`` and starts from the model of the phase before, if there is
    one. The folder's ``held_out.json`` has the clean and PGD-20 accuracy on held-out training images. A single phase
    runs in ``out`` itself. A resumed run skips finished phases.

    Args:
        time_budget: seconds for all phases, divided by their forward and backward passes, or by their
            multiply-accumulates for dynamic nets.
        asked: the preset and the overrides that ``phases`` were loaded with, which are stored for :func:`asked_of`.

    Raises:
        UsageError: another process trains in ``out``; a layer that a later phase names does not exist; and as
            :func:`zoo.train.run.loop.fit`.
        IntegrityError: the weights of a later phase's teacher do not fit its architecture.
        TrainingDiverged, Interrupted: as :func:`zoo.train.run.loop.fit`.
    """
    work = {phase: recipe.train.epochs * _per_image(recipe, phases) for phase, recipe in phases.items()}
    left: dict[str, Path] = {}
    earlier: list[dict[str, Any]] = []
    result: dict[str, Any] | None = None  # of the search
    model: Path | None = None
    with _alone(out), _asked(out, asked):
        _check_later(phases, dataset)
        for phase, recipe in phases.items():
            left[phase] = fit(
                recipe if result is None else with_result(recipe, result),
                dataset,
                out / phase if len(phases) > 1 else out,
                kind=Searcher if recipe.search else SupernetTrainer if recipe.supernet else Trainer,
                start=recipe.start if model is None else str(model),
                resume=resume,
                time_budget=None if time_budget is None else time_budget * work[phase] / sum(work.values()),
                phase=phase,
                earlier=earlier,
                teacher=_earlier_teacher(recipe, left),
                report=lambda metrics, phase=phase: report(phase, metrics),
                tick=lambda step, total, loss, phase=phase: tick(phase, step, total, loss),
            )
            if recipe.search is not None:
                result = stored_json(left[phase])
                if _first():
                    draw_if_possible(result, left[phase].with_suffix(".png"))
                earlier.append(result["effort"])
            else:
                model = left[phase]
                if _first():
                    _judge(model, dataset, recipe.guard.images)
                earlier = (ModelFolder(model).read().train or {})["phases"]
        if model is not None and recipe.supernet is not None and _first():
            _predict(model, recipe, dataset, lambda done, total: tick("predictor", done, total, 0.0))
    return left


def asked_of(out: Path) -> dict[str, Any] | None:
    """The preset and the overrides of the run in ``out``, as :func:`zoo.train.recipes.phases.load_phases` takes them;
    None if there is no run, or one that was refused."""
    try:
        asked = json.loads((out / ASKED).read_text(encoding="utf-8"))
        preset, overrides = asked["preset"], asked["overrides"]
        listed = isinstance(overrides, list) and all(isinstance(one, str) for one in overrides)
        if not isinstance(preset, str | None) or not listed:
            raise TypeError
        return {"preset": preset, "overrides": overrides}
    except FileNotFoundError:
        return None
    except (KeyError, TypeError, ValueError):
        raise IntegrityError(f"'{out / ASKED}' is damaged: remove it, and give every --set again") from None


@contextmanager
def _asked(out: Path, asked: Mapping[str, Any] | None) -> Iterator[None]:
    """Store ``asked`` for :func:`asked_of`; a run that is refused before it has a checkpoint takes it back."""
    if asked is None or not _first():
        yield
        return
    file = out / ASKED
    before = file.read_bytes() if file.exists() else None
    write_atomic(file, (json.dumps(dict(asked), indent=2) + "\n").encode())
    try:
        yield
    except TrainingDiverged:
        raise
    except ZooError:
        if not any(out.rglob(CHECKPOINT)):
            file.unlink() if before is None else write_atomic(file, before)
        raise


def _check_later(phases: Mapping[str, Recipe], dataset: Dataset) -> None:
    """Raise now what building the trainer of a later phase would raise, of its teacher and of the layers that it names:
    not after the phases before it. The layers of what a search finds are those of the largest architecture."""
    for recipe in list(phases.values())[1:]:
        name = recipe.teacher.name if recipe.teacher and recipe.method.needs else None
        if name is None or (recipe.supernet and name in ("largest", *phases)):
            continue
        teacher, how = Teacher(name, torch.device("cpu")), {"compile": False, "seed": recipe.train.seed}
        teacher.check(recipe.arch, dataset.classes)
        if getattr(recipe.method, "tutors", None) != SEARCHED:
            recipe.method.parts(build(recipe.arch), teacher, dynamic=recipe.supernet is not None, **how)


def _first() -> bool:
    """Whether this is the first of the processes that train together, which writes for all."""
    return PartialState(cpu=not torch.cuda.is_available()).is_main_process


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Hold the folder of a run, so that no other process trains in it (on Windows nothing is held)."""
    if not _first():
        yield
        return
    new = [folder for folder in (out, *out.parents) if not folder.exists()]
    out.mkdir(parents=True, exist_ok=True)
    lock = lock_of(out)
    if lock is None and os.name != "nt":
        raise UsageError(f"another process trains in '{out}': wait for it, or choose another --out")
    try:
        yield
    finally:
        with suppress(OSError):  # one is not empty: the run was not refused
            for folder in new:
                folder.rmdir()
        if lock is not None:
            os.close(lock)


def _per_image(recipe: Recipe, phases: Mapping[str, Recipe]) -> float:
    """The cost of an image in a phase, in one unit for all phases of a training."""
    return accounting.per_image(recipe, phases) if recipe.supernet else recipe.method.passes(recipe.attack)


def with_result(recipe: Recipe, result: Mapping[str, Any]) -> Recipe:
    """``recipe`` with the architecture and the tutors of a search (the contents of its ``search.json``)."""
    data = recipe.model_dump(exclude_unset=True)  # keys that the recipe does not set must stay unset
    data["arch"] = result["spec"]
    if data["method"].get("tutors") == SEARCHED:
        data["method"]["tutors"] = result["tutors"]
    return Recipe.model_validate(data)


def _earlier_teacher(recipe: Recipe, left: Mapping[str, Path]) -> str | None:
    """The model of an earlier phase, if the recipe names that phase as its teacher."""
    if recipe.supernet is None or recipe.teacher is None or recipe.teacher.name not in left:
        return None
    return str(left[recipe.teacher.name])


def _predict(model: Path, recipe: Recipe, dataset: Dataset, progress: Callable[[int, int], None]) -> None:
    """Fit the predictor of the dynamic net in the folder ``model``, and write it there with its labels and scores."""
    from zoo.train.proard import measuring, predictor
    from zoo.train.proard.dynamic import dynamic
    from zoo.train.proard.labelled import Labelling

    folder = ModelFolder(model)
    if folder.predictor.exists():
        return
    settings, net = recipe.predictor, dynamic(str(model))
    genes = measuring.drawn(net.space, settings.subnets, recipe.train.seed)
    labelling = Labelling(settings.images, settings.steps, recipe.ema.recalibrate)
    labels = measuring.label(net, genes, dataset, folder.labels, labelling, progress=progress)
    how = {"members": settings.members, "seed": recipe.train.seed}
    scores = predictor.cross_validated(net.space, labels, **how)
    write_atomic(model / "predictor.json", (json.dumps(asdict(scores), indent=2) + "\n").encode())
    replace(predictor.fit(net.space, labels, **how), labelling=labelling).save(folder.predictor)


def _judge(model: Path, dataset: Dataset, n: int) -> None:
    """Write the clean and PGD-20 accuracy on ``n`` held-out training images to the folder ``model``, once."""
    file = ModelFolder(model).held_out
    if not file.exists():
        accuracy = held_out_accuracy(find(f"local-dir:{model}"), dataset, n)
        write_atomic(file, (json.dumps(accuracy, indent=2) + "\n").encode())
