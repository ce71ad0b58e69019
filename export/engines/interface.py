"""What every engine is: a function from images to logits that can say what runs it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from zoo.export.bundle.manifest import Precision
from zoo.models import Classifier
from zoo.system.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class Order:
    """What an engine is to be built from.

    Attributes:
        model: the float model, in eval mode, as it was loaded.
        graph: ``model.onnx``: in ``precision`` for engines that start from ONNX, in fp32 for the others.
        batches: batch sizes that will be used; the engine must take these, 1 and 2.
        calibration: images [N, C, H, W] in [0, 1] to choose int8 ranges by; None for the other precisions.
    """

    model: Classifier
    graph: Path
    precision: Precision
    batches: tuple[int, ...]
    calibration: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class Built:
    """What an engine's ``build`` left in the bundle's folder.

    Attributes:
        file: what ``load`` takes, relative to the folder.
        format: of that file, as "onnx" or "openvino-ir".
        companions: files that ``file`` cannot do without.
        built_for: facts of the device and runtime that it is bound to; empty where it runs anywhere.
        options: how it was built, for the manifest.
    """

    file: str
    format: str
    companions: tuple[str, ...] = ()
    built_for: dict[str, str] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)


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
