"""The phases of a recipe, one after the other: each a run of the one training loop in a folder of its own."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from accelerate import PartialState

from zoo.atomic import write_atomic
from zoo.data import Dataset
from zoo.train.loop import fit
from zoo.train.outcome import HELD_OUT
from zoo.train.proard.trainer import SupernetTrainer
from zoo.train.recipe import SEARCHED, Recipe
from zoo.train.rnascl.plot import draw_if_possible
from zoo.train.rnascl.search import Searcher
from zoo.train.teacher import held_out_accuracy
from zoo.train.trainer import Trainer
from zoo.weights import load

Report = Callable[[str, dict[str, Any]], None]
Tick = Callable[[str, int, int, float], None]


def run(
    phases: Mapping[str, Recipe],
    dataset: Dataset,
    out: Path,
    *,
    resume: bool = False,
    time_budget: float | None = None,
    report: Report = lambda phase, metrics: None,
    tick: Tick = lambda phase, step, total, loss: None,
) -> dict[str, Path]:
    """Run ``phases`` (of :func:`zoo.train.recipe.load_phases`) in order; returns what each left.

    A search leaves ``out/search/search.json``: the phases after it train the architecture that it found, with its
    tutors. Every other phase leaves a model folder ``out/PHASE/model``, and starts from the model of the one before,
    if any; its clean and PGD-20 accuracy on held-out training images is in ``held_out.json``. A single phase runs in
    ``out`` itself. A finished phase is not trained again when a run is resumed.

    Args:
        time_budget: seconds for all phases, shared out by their forward and backward passes.

    Raises:
        UsageError, TrainingDiverged, Interrupted: as :func:`zoo.train.loop.fit`.
    """
    work = {phase: recipe.train.epochs * passes(recipe) for phase, recipe in phases.items()}
    left: dict[str, Path] = {}
    earlier: list[dict[str, Any]] = []
    found: dict[str, Any] | None = None
    model: Path | None = None
    for phase, recipe in phases.items():
        searching = recipe.search is not None
        left[phase] = fit(
            recipe if found is None else with_result(recipe, found),
            dataset,
            out / phase if len(phases) > 1 else out,
            kind=_kind(recipe),
            start=recipe.start if model is None else str(model),
            resume=resume,
            time_budget=None if time_budget is None else time_budget * work[phase] / sum(work.values()),
            phase=phase,
            earlier=earlier,
            report=lambda metrics, phase=phase: report(phase, metrics),
            tick=lambda step, total, loss, phase=phase: tick(phase, step, total, loss),
        )
        if searching:
            found = json.loads(left[phase].read_text())
            if PartialState().is_main_process:
                draw_if_possible(found, left[phase].with_suffix(".png"))
            earlier.append(found["effort"])
        else:
            model = left[phase]
            if PartialState().is_main_process:
                _judge(model, dataset, recipe.guard.images)
            earlier = json.loads((model / "config.json").read_text())["train"]["phases"]
    return left


def _kind(recipe: Recipe) -> type[Trainer]:
    if recipe.search is not None:
        return Searcher
    return SupernetTrainer if recipe.supernet is not None else Trainer


def passes(recipe: Recipe) -> int:
    """Passes over the network for an image of a batch: a forward counts one, a backward two, one to the input one.

    Of a search, whose logits see a fifth of the images, this is a little too much.
    """
    attack = 2 * recipe.attack.steps
    return {"natural": 3, "n-fgsm": 3 + attack, "pgd-at": 3 + attack}.get(recipe.train.method, 6 + attack)


def with_result(recipe: Recipe, found: Mapping[str, Any]) -> Recipe:
    """``recipe`` for the architecture and the tutors that a search found (the contents of its ``search.json``)."""
    data = recipe.model_dump()
    data["arch"] = found["spec"]
    if data["distill"] is not None and data["distill"]["tutors"] == SEARCHED:
        data["distill"]["tutors"] = found["tutors"]
    return Recipe.model_validate(data)


def _judge(model: Path, dataset: Dataset, n: int) -> None:
    if (model / HELD_OUT).exists():
        return
    accuracy = held_out_accuracy(load(f"local-dir:{model}"), dataset, n)
    write_atomic(model / HELD_OUT, (json.dumps(accuracy, indent=2) + "\n").encode())
