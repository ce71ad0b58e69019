"""The float twin as an engine: the PyTorch model that an exported artifact is judged against."""

from __future__ import annotations

from contextlib import nullcontext

import numpy as np
import torch
from torch import nn

from zoo.export.engines.interface import Engine


class Twin(Engine):
    """A float32 classifier with the interface of an engine; ``model`` stays at hand for gradients.

    The model is used as it is: put it into eval mode first.
    """

    def __init__(self, model: nn.Module, shape: tuple[int, int, int] = (3, 32, 32)) -> None:
        facts = {"engine": "pytorch", "version": torch.__version__, "device": "cpu"}
        self.model = model
        super().__init__(self._forward, shape, facts, lambda _: model)
        self._turn = nullcontext()  # PyTorch's nets answer several threads at once

    @torch.no_grad()
    def _forward(self, images: np.ndarray) -> np.ndarray:
        return self.model(torch.from_numpy(images)).float().numpy()
