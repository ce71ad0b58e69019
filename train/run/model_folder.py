"""What a run leaves for the rest of the house: a model folder with weights, spec and the facts of the training."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from zoo.train.teachers import teacher
from zoo.train.teachers.start import origin
from zoo.train.teachers.teacher import HELD_OUT
from zoo.weights.load import LABELS, PREDICTOR, save_weights

if TYPE_CHECKING:
    from zoo.train.run.trainer import Trainer


def save_model(trainer: Trainer, weights: Mapping[str, Tensor], folder: Path) -> None:
    """The averaged weights with their spec and the facts of the run: a folder for ``load("local-dir:...")``."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in (HELD_OUT, PREDICTOR, LABELS):
        (folder / name).unlink(missing_ok=True)  # of other weights
    recipe, position = trainer.recipe, trainer.position
    phases = [*trainer.earlier, trainer.effort()]
    distiller = trainer.distiller
    config: dict[str, Any] = {
        "name": recipe.name,
        "family": recipe.family,
        "description": recipe.description,
        "paper": recipe.paper,
        "spec": recipe.arch.to_dict(),
        "dataset": trainer.dataset.name,
        "reported": {key: {"value": value, "source": recipe.paper} for key, value in recipe.reported.items()},
        "train": {
            "recipe": recipe.name,
            "settings": recipe.model_dump(mode="json"),
            "seed": recipe.train.seed,
            "start": origin(recipe.start),
            "teacher": None if trainer.taught_by is None else teacher.record(trainer.taught_by, trainer.dataset),
            **{key: round(sum(one[key] for one in phases), 2) for key in ("epochs", "images_seen", "wall_s")},
            "phases": phases,
            "device": device_name(trainer.device),
            "precision": trainer.precision,
            "commit": commit(),
            "torch": torch.__version__,
            "history": position.history,
        },
    }
    if distiller is not None:
        config["tutors"] = distiller.tutors
    if recipe.supernet is not None:
        config["supernet"] = recipe.supernet.space
    if recipe.train.weights == "fp16":
        weights = {key: value.half() if value.is_floating_point() else value for key, value in weights.items()}
    save_weights(weights, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{torch.get_num_threads()} of {os.cpu_count()} CPU cores ({platform.machine()})"


def commit() -> str | None:
    """The commit of the checkout that this code is run from, if it is one."""
    ask = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(ask, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
