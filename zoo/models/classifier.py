"""The class of all models: a network that normalises its input."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from zoo.specs import Spec


class Classifier(nn.Module):
    """``features`` maps normalised images [N, 3, H, W] to penultimate features [N, C], ``head`` these to logits."""

    mean: Tensor
    std: Tensor

    def __init__(self, spec: Spec, features: nn.Module, head: nn.Linear) -> None:
        super().__init__()
        self.spec = spec
        self.features = features
        self.head = head
        # Not persistent: the spec defines them, and the weights file holds only weights.
        self.register_buffer("mean", torch.tensor(spec.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(spec.std).view(1, 3, 1, 1), persistent=False)

    def penultimate(self, x: Tensor) -> Tensor:
        """Images [N, 3, H, W] in [0, 1] to the features [N, C] that the head classifies."""
        return self.features((x - self.mean) / self.std)

    def forward(self, x: Tensor) -> Tensor:
        """Images [N, 3, H, W] in [0, 1] to logits [N, classes]."""
        return self.head(self.penultimate(x))


class GlobalAveragePool(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))  # [N, C, H, W] -> [N, C]
