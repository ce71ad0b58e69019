"""Atomic checkpoints: a kill at any moment leaves the last complete one."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch

from zoo.system.errors import IntegrityError
from zoo.system.files import replaced


def save_checkpoint(state: dict[str, Any], path: Path) -> None:
    """Write ``state`` to ``path``, whole or not at all."""
    with replaced(path) as file:
        torch.save(state, file)


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
