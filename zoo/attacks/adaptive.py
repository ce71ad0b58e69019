"""Models whose gradients mislead, made fit for gradient attacks. Athalye et al. 2018, "Obfuscated gradients give a
false sense of security".

All are modules from images [N, C, H, W] to logits [N, K] with the decisions of the model that they wrap.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

DRAWS = 16
SPREAD = 20.0  # so that the log-odds are close to the margin, which does not depend on the scale


class Expectation(nn.Module):
    """The mean logits of a model with random answers, over ``DRAWS`` calls: EOT, section 4.2.

    Each call draws the same numbers, so that the result is a plain function if the model draws from torch's global
    generator. An attack fits these draws, and the accuracy that it leaves is a little too low rather than too high.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        with torch.random.fork_rng([x.device] if x.is_cuda else []):
            torch.manual_seed(0)
            return torch.stack([self.model(x) for _ in range(DRAWS)]).mean(0)


class Normalised(nn.Module):
    """The logits of each image, scaled to a standard deviation of ``SPREAD`` over the classes.

    The cross-entropy of flat logits is a weak loss, because it compares the correct class with the mean of the others.
    With two classes there is nothing to compare, and the logits are left as they are.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        z = self.model(x)
        return z * (SPREAD / z.std(1, correction=0, keepdim=True).clamp_min(1e-12)) if z.shape[1] > 2 else z


class StraightThrough(nn.Module):
    """A model whose gradient passes through rounding, signs and ``detach`` as through the identity: BPDA, section 4.1.

    It reaches what the model calls by torch's functions. Casts to integers and ``no_grad`` still stop the gradient.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        with _Identities():
            return self.model(x)


NAMES = ("round", "floor", "ceil", "trunc", "fix", "sign", "sgn")
STEPS = {getattr(place, name) for name in NAMES for place in (torch, Tensor)}
IN_PLACE = {getattr(Tensor, f"{name}_"): getattr(torch, name) for name in NAMES}
DETACHED = (Tensor.detach, torch.detach, Tensor.data.__get__)  # type: ignore[attr-defined]


class _Identities(TorchFunctionMode):
    """Inside this context the backward pass of a step function is the identity."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in DETACHED:
            return args[0]
        result = IN_PLACE.get(func, func)(*args, **(kwargs or {}))
        if func in STEPS or func in IN_PLACE:
            x = args[0]
            straight = x + (result - x).detach()
            return x.copy_(straight) if func in IN_PLACE else straight
        return result
