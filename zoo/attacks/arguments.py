"""What an attack is given and what it returns: checked, and refused in one sentence."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from zoo.system.errors import UsageError

# What options may be; an option that a new attack brings has its line here.
COUNTS = ("steps", "restarts", "targets", "queries")
RANGES: dict[str, tuple[str, Callable[[float], bool]]] = {
    "decay": ("of at least 0", lambda value: value >= 0),
    "overshoot": ("of at least 0", lambda value: value >= 0),
    "p_init": ("above 0 and at most 1", lambda value: 0 < value <= 1),
}


def check_eval(model: Any) -> None:
    """Raise UsageError if ``model`` is a module in train mode, or a part of it is."""
    if isinstance(model, nn.Module):
        for name, module in model.named_modules():
            if module.training:
                part = f" (its part '{name}')" if name else ""
                raise UsageError(f"the model{part} is in train mode: call model.eval() before attacking it")


def check_options(options: Mapping[str, Any]) -> None:
    """Raise UsageError for a size, a norm or a count that is none."""
    eps, norm = options.get("eps", 0.0), options.get("norm", "linf")
    if not _is_number(eps) or not math.isfinite(eps) or eps < 0:
        raise UsageError(f"eps must be a finite number of at least 0 on the scale of [0, 1] pixels, not {eps!r}")
    step = options.get("step")
    if step is not None and not (_is_number(step) and math.isfinite(step) and step > 0):
        raise UsageError(f"the step must be a finite number above 0 on the scale of [0, 1] pixels, not {step!r}")
    if norm not in ("linf", "l2"):
        raise UsageError(f"the norm must be 'linf' or 'l2', not {norm!r}")
    if norm == "linf" and eps > 1:
        raise UsageError(f"eps must be at most 1, as pixels lie in [0, 1], not {eps!r}: 8/255 is eight grey levels")
    for name, (words, holds) in RANGES.items():
        value = options.get(name, 1.0)
        if not (_is_number(value) and math.isfinite(value) and holds(float(value))):
            raise UsageError(f"{name} must be a finite number {words}, not {value!r}")
    for name in COUNTS:
        count = options.get(name, 1)
        if not _is_number(count, int) or count < 1:
            raise UsageError(f"{name} must be a whole number of at least 1, not {count!r}")


def _is_number(value: Any, kinds: type | tuple[type, ...] = (int, float)) -> bool:
    return isinstance(value, kinds) and not isinstance(value, bool)


def check_ball(options: Mapping[str, Any], x: Tensor) -> None:
    """Raise UsageError for a ball in l2 that is larger than the box of images x [N, C, H, W]."""
    eps, most = options["eps"], x[:1].numel() ** 0.5  # how far two images can be apart
    if len(x) and options.get("norm") == "l2" and eps > most:
        raise UsageError(f"eps must be at most {most:.4g} in l2 for images of this size, not {eps!r}")


def check_images(x: Tensor) -> None:
    """Raise UsageError unless x [N, C, H, W] are floats in [0, 1]."""
    if not isinstance(x, Tensor) or x.ndim != 4:
        got = f"of shape {list(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
        raise UsageError(f"images must be a tensor of shape [N, C, H, W], not {got}")
    if x.dtype not in (torch.float32, torch.float64):
        hint = "divide by 255" if x.dtype == torch.uint8 else "half precision is too coarse for a ball of 8/255"
        raise UsageError(f"images must be float32 or float64 in [0, 1], not {x.dtype}: {hint}")
    if x.numel():
        low, high = (bound.item() for bound in x.aminmax())  # NaN if any pixel is
        if not (low >= 0 and high <= 1):
            got = "NaN" if math.isnan(low) else f"values in [{low:.4g}, {high:.4g}]"
            raise UsageError(f"images must lie in [0, 1] and be finite, but these hold {got}")


def checked_labels(y: Tensor, x: Tensor) -> Tensor:
    """Labels int64 [N] on the device of x [N, C, H, W]; UsageError unless y are integers of at least 0."""
    if not isinstance(y, Tensor) or y.is_floating_point() or y.is_complex() or y.dtype == torch.bool:
        got = y.dtype if isinstance(y, Tensor) else type(y).__name__
        raise UsageError(f"labels must be a tensor of integers, not {got}")
    if y.shape != x.shape[:1]:
        raise UsageError(f"{len(x)} images need labels of shape [{len(x)}], not {list(y.shape)}")
    if len(y) and int(y.min()) < 0:
        raise UsageError(f"labels must be at least 0, but one is {int(y.min())}")
    return y.to(x.device, torch.int64)


def fault_of(x_adv: Any, x: Tensor, options: Mapping[str, Any]) -> str | None:
    """In what ``x_adv`` is no adversarial image of x for an attack with these options; None if it is one."""
    if not isinstance(x_adv, Tensor) or (x_adv.shape, x_adv.dtype, x_adv.device) != (x.shape, x.dtype, x.device):
        got = f"{x_adv.dtype} {list(x_adv.shape)}" if isinstance(x_adv, Tensor) else type(x_adv).__name__
        return f"it must return {x.dtype} {list(x.shape)} on {x.device}, not {got}"
    low, high = (bound.item() for bound in x_adv.aminmax())  # NaN if any pixel is
    if not (low >= 0 and high <= 1):
        return f"it must return images in [0, 1], not in [{low:.4g}, {high:.4g}]"
    eps, delta, l2 = float(options["eps"]), (x_adv - x).flatten(1), options.get("norm") == "l2"
    far = float((delta.norm(dim=1) if l2 else delta.abs().amax(1)).max())
    rounding = torch.finfo(x.dtype).eps * (x[0].numel() ** 0.5 if l2 else 1)  # of pixels of at most 1
    return f"it went {far:.4g} far, with eps = {eps:.4g}" if far > eps * (1 + 1e-4) + 2 * rounding else None
