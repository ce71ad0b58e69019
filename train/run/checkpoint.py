"""Atomic checkpoints: if the process is killed while writing, the last complete one remains."""

from __future__ import annotations

from errno import EINVAL
from pathlib import Path
from typing import Any

import torch

from zoo.system.errors import IntegrityError
from zoo.system.files import replaced


def save_checkpoint(state: dict[str, Any], path: Path) -> None:
    """Write ``state`` to ``path`` atomically."""
    with replaced(path) as file:
        torch.save(state, file)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """The state saved at ``path``, with tensors on the CPU; code in the file is never run.

    Raises:
        IntegrityError: the file is damaged or not a checkpoint.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file raises anything, one that is cut short EINVAL
        if isinstance(error, OSError) and error.errno != EINVAL:
            raise
        raise IntegrityError(
            f"'{path}' is not a readable checkpoint ({type(error).__name__}): choose another --out"
        ) from None
