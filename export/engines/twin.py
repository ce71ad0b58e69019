"""The float twin as an engine: the PyTorch model that an exported artifact is judged against."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from zoo.export.engines.interface import checked
from zoo.models import Classifier


class Twin:
    """A float32 classifier with the interface of an engine; ``model`` stays at hand for gradients.

    The model is used as it is: put it into eval mode first.
    """

    def __init__(self, model: nn.Module, shape: tuple[int, int, int] = (3, 32, 32)) -> None:
        self.model = model
        self.shape = shape

    @torch.no_grad()
    def __call__(self, images: Tensor | np.ndarray) -> Tensor:
        """Images [N, C, H, W] to logits [N, classes].

        Raises:
            UsageError: not a batch of float32 images in [0, 1].
        """
        return self.model(checked(images, self.shape)).float()

    def differentiable(self, model: Classifier) -> nn.Module | None:
        return self.model

    def describe(self) -> dict[str, Any]:
        return {"engine": "pytorch", "version": torch.__version__, "device": "cpu"}
