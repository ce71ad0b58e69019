"""The float twin as an engine: the PyTorch model that an exported artifact is judged against."""

from __future__ import annotations

from contextlib import nullcontext

import numpy as np
import torch
from torch import nn

from zoo.evaluation.evaluate import prepare
from zoo.export.engines.interface import Engine
from zoo.models import Classifier


class Twin(Engine):
    """A float32 classifier with the interface of an engine; ``model`` stays at hand for gradients.

    The model is used as it is: put it into eval mode first.
    """

    def __init__(self, model: nn.Module, shape: tuple[int, int, int] = (3, 32, 32)) -> None:
        facts = {"engine": "pytorch", "version": torch.__version__, "device": "cpu"}
        self.model = model
        super().__init__(self._forward, shape, facts, lambda _: model)
        self._turn = nullcontext()  # PyTorch's nets answer several threads at once

    @classmethod
    def of(cls, model: Classifier) -> Twin:
        """Of a model in any mode, which is not changed: it is prepared as for an attack."""
        size = model.spec.image_size
        return cls(prepare(model), shape=(3, size, size))

    @torch.no_grad()
    def _forward(self, images: np.ndarray) -> np.ndarray:
        return self.model(torch.from_numpy(images)).float().numpy()
