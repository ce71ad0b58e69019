"""What every engine is: a function from images to logits that can say what runs it."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from zoo.errors import UsageError
from zoo.models import Classifier


class Engine(Protocol):
    """float32 images [N, C, H, W] in [0, 1] to float32 logits [N, classes], a fresh tensor on the CPU each call.

    Casting to what the artifact computes in is the engine's own business, so that a caller need not know it.
    """

    def __call__(self, images: Tensor | np.ndarray) -> Tensor: ...

    def differentiable(self, model: Classifier) -> nn.Module | None:
        """``model`` with the weights that are in the artifact, for gradients; None if there is no such thing.

        Whether it computes what the engine does is for the caller to check.
        """
        ...

    def describe(self) -> dict[str, Any]:
        """Facts for the manifest: engine, version, and the device it runs on."""
        ...


def checked(images: Tensor | np.ndarray, shape: tuple[int, int, int]) -> Tensor:
    """``images`` as a detached, contiguous tensor [N, C, H, W] on the CPU; not copied where it already is one.

    Raises:
        UsageError: not a batch of float32 images of ``shape`` (C, H, W) with all values in [0, 1].
    """
    if not isinstance(images, Tensor | np.ndarray):
        raise UsageError(f"an image batch is a tensor or an array, not {type(images).__name__}")
    x = torch.from_numpy(np.ascontiguousarray(images)) if isinstance(images, np.ndarray) else images.detach().cpu()
    wanted = f"[N, {', '.join(map(str, shape))}]"
    if x.ndim != 4 or tuple(x.shape[1:]) != shape or not len(x):
        raise UsageError(f"an image batch has shape {wanted} with N >= 1, not {list(x.shape)}")
    if x.dtype != torch.float32:
        hint = "; divide by 255 first" if x.dtype == torch.uint8 else ""
        raise UsageError(f"an image batch is float32, not {str(x.dtype).removeprefix('torch.')}{hint}")
    low, high = (float(value) for value in torch.aminmax(x))
    if not (low >= 0 and high <= 1):  # also if either is NaN, which aminmax passes on
        found = "holds NaN" if low != low else f"spans [{low:.6g}, {high:.6g}]"
        raise UsageError(f"an image batch lies in [0, 1] (normalisation is inside the model), this one {found}")
    return x.contiguous()
