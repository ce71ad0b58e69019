"""Atomic checkpoints: a kill at any moment leaves the last complete one."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import torch

from zoo.system.errors import IntegrityError


def save_checkpoint(state: dict[str, Any], path: Path) -> None:
    """Write ``state`` beside ``path``, flush it to disk, rename it into place."""
    scratch = path.with_suffix(".tmp")
    with open(scratch, "wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(scratch, path)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """The state saved at ``path``, tensors on the CPU; no code in the file is ever run.

    Raises:
        IntegrityError: the file is damaged or not a checkpoint.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, pickle.UnpicklingError, KeyError) as error:
        raise IntegrityError(
            f"'{path}' is not a readable checkpoint ({type(error).__name__}): remove it to start afresh"
        ) from None
