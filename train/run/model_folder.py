"""The result of a run: a model folder with weights, spec and the facts of the training."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from zoo.system.errors import TrainingDiverged
from zoo.weights.folder import ModelConfig, ModelFolder
from zoo.weights.tensors import save_weights

if TYPE_CHECKING:
    from zoo.train.run.trainer import Trainer


def save_model(trainer: Trainer, weights: Mapping[str, Tensor], folder: Path) -> None:
    """Write weights, spec and the facts of the run to a folder for ``load("local-dir:...")``.

    Raises:
        TrainingDiverged: a weight is infinite or NaN; nothing was written.
    """
    if odd := [name for name, value in weights.items() if not value.isfinite().all()]:
        raise TrainingDiverged(f"the weights in '{odd[0]}' are not finite: lower optimizer.lr")
    model = ModelFolder(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for file in (model.held_out, model.predictor, model.labels):
        file.unlink(missing_ok=True)  # they describe older weights
    recipe, position = trainer.recipe, trainer.position
    phases = [*trainer.earlier, trainer.effort()]
    config = ModelConfig(
        name=recipe.name,
        family=recipe.family,
        description=recipe.description,
        paper=recipe.paper,
        spec=recipe.arch.to_dict(),
        dataset=trainer.dataset.name,
        threat=recipe.attack.threat,
        classes=trainer.dataset.classes or None,
        reported={key: {"value": value, "source": recipe.paper} for key, value in recipe.reported.items()},
        train={
            "recipe": recipe.name,
            "settings": recipe.model_dump(mode="json"),
            "seed": recipe.train.seed,
            "start": trainer.started_from if recipe.start else None,
            "teacher": trainer.teacher_record,
            **{key: round(sum(phase[key] for phase in phases), 2) for key in ("epochs", "images_seen", "wall_s")},
            "phases": phases,
            "device": device_name(trainer.device),
            "precision": trainer.precision,
            "commit": commit(),
            "torch": torch.__version__,
            "history": position.history,
        },
        **recipe.method.facts(trainer.parts),
        supernet=recipe.supernet.space if recipe.supernet else None,
    )
    if recipe.train.weights == "fp16":
        weights = {key: value.half() if value.is_floating_point() else value for key, value in weights.items()}
    save_weights(weights, model.weights)
    model.write(config)


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{torch.get_num_threads()} of {os.cpu_count()} CPU cores ({platform.machine()})"


def commit() -> str | None:
    """The commit of this code if git tracks it: an installed package may lie in the checkout of another project."""
    here = Path(__file__)
    try:
        _git(here.parent, "ls-files", "--error-unmatch", here.name)
        return _git(here.parent, "rev-parse", "HEAD")
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(folder: Path, *command: str) -> str:
    return subprocess.run(
        ["git", "-C", str(folder), *command], capture_output=True, text=True, check=True
    ).stdout.strip()
