"""The class of all models: a network that normalises its input."""

from __future__ import annotations

import torch
from torch import Tensor, fx, nn

from zoo.specs import Spec
from zoo.system.errors import UsageError

SLACK = 1.0  # beyond [0, 1]: for images with noise, as in randomised smoothing


class Classifier(nn.Module):
    """``features`` maps normalised images [N, 3, H, W] to penultimate features [N, C], ``head`` these to logits.

    A call refuses what are not such images. Graphs that are traced, exported or compiled have no check in them.
    """

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
        """Images [N, 3, H, W] in [0, 1] to logits [N, classes].

        Raises:
            UsageError: ``x`` has another shape, is not of floats, or is of float64 where the model is not; on a CPU in
                eval mode also if values are NaN, below -1 or above 2. Where gradients of ``x`` are asked for, values
                are not looked at.
        """
        if not torch.compiler.is_compiling():
            self._check(x)
        return self.head(self.penultimate(x))

    def _check(self, x: Tensor) -> None:
        if not isinstance(x, Tensor) or torch.jit.is_tracing():
            if isinstance(x, fx.Proxy | Tensor):  # the graph is traced
                return
            raise UsageError(f"images must be a tensor, not a value of type {type(x).__name__}")
        size = self.spec.image_size
        fits = x.is_floating_point() and (x.dtype != torch.float64 or self.mean.dtype == torch.float64)
        if x.dim() != 4 or x.shape[1:] != (3, size, size) or not fits:
            found = f"{str(x.dtype).removeprefix('torch.')} {list(x.shape)}"
            raise UsageError(f"images must be float32 [N, 3, {size}, {size}] in [0, 1], not {found}")
        if self.training or x.requires_grad or x.device.type != "cpu" or type(x) is not Tensor or not len(x):
            return
        if torch._C._functorch.is_functorch_wrapped_tensor(x):  # vmap has no values to look at
            return
        low, high = (end.item() for end in x.aminmax())
        if not (low >= -SLACK and high <= 1 + SLACK):  # or NaN
            raise UsageError(
                f"images must have values in [0, 1], not from {low:.4g} to {high:.4g}: divide uint8 images by 255, and "
                "leave mean and std to the model"
            )


class GlobalAveragePool(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))  # [N, C, H, W] -> [N, C]
