"""The guarantees of every attack: inputs are checked, the model is unchanged, the result is a new tensor.

``@attack(name)`` turns a function that crafts adversarial images into a public attack. In the crafting function the
model is in eval mode and frozen, no gradient is recorded unless requested, logits have the right shape and the
images' type, and the batch is not empty.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Concatenate, Literal, ParamSpec

import torch
from torch import Tensor, nn

from zoo.attacks.guide import Guided
from zoo.system.errors import UsageError

Model = Callable[[Tensor], Tensor]  # float images [N, C, H, W] in [0, 1] to logits [N, K]
Norm = Literal["linf", "l2"]
P = ParamSpec("P")

# What options may be; an option that a new attack brings has its line here.
COUNTS = ("steps", "restarts", "targets", "queries")
RANGES: dict[str, tuple[str, Callable[[float], bool]]] = {
    "decay": ("of at least 0", lambda value: value >= 0),
    "overshoot": ("of at least 0", lambda value: value >= 0),
    "p_init": ("above 0 and at most 1", lambda value: 0 < value <= 1),
}


@dataclass(frozen=True)
class Kind:
    """What an evaluation must know of an attack.

    Attributes:
        gradients: it follows the model's gradients, which must then be looked at.
        queries: it asks the model for answers to points that no gradient led to; one that does not is followed by
            Square where gradients are in doubt.
        guided: its directions may come from a copy of the model (:mod:`zoo.attacks.guide`).
        climbs: it climbs a loss in many steps: where it finds far less than another attack, it was misled.
    """

    gradients: bool = True
    queries: bool = False
    guided: bool = True
    climbs: bool = True


ATTACKS: dict[str, Callable[..., Tensor]] = {}  # by name; the options of an attack are in its signature
KINDS: dict[str, Kind] = {}  # by name, of the same attacks
USUAL = Kind()
NO_ATTACK = Kind(gradients=False, guided=False, climbs=False)


def attack(
    name: str, kind: Kind = USUAL
) -> Callable[
    [Callable[Concatenate[Model, Tensor, Tensor, P], Tensor]], Callable[Concatenate[Model, Tensor, Tensor, P], Tensor]
]:
    """Register ``craft(model, x, y, *, eps, ...)`` as the attack that protocols call ``name``.

    The attack returns adversarial images of the shape, type and device of ``x``, contiguous and detached, within
    ``eps`` of ``x`` and in [0, 1]. It does not change the model's mode, its parameters' flags or the global
    random state.

    Args:
        kind: by default that of an iterative attack along gradients.

    Raises:
        UsageError: an option, the images, the labels, the logits or the model's mode is invalid.
        RuntimeError: ``craft`` broke the promise above.
    """

    def decorate(
        craft: Callable[Concatenate[Model, Tensor, Tensor, P], Tensor],
    ) -> Callable[Concatenate[Model, Tensor, Tensor, P], Tensor]:
        signature = inspect.signature(craft)
        if "eps" not in signature.parameters:
            raise TypeError(f"the attack '{name}' must take eps")

        @functools.wraps(craft)
        def checked(model: Model, x: Tensor, y: Tensor, *args: P.args, **options: P.kwargs) -> Tensor:
            bound = signature.bind(model, x, y, *args, **options)
            bound.apply_defaults()
            chosen = bound.arguments
            _check_options(chosen)
            _check_images(x)
            y = _checked_labels(y, x)
            _check_eval(model)
            x = x.detach()
            _check_reach(chosen, x)
            if not len(x) or not chosen["eps"]:
                return x.clone(memory_format=torch.contiguous_format)
            guarded = model if isinstance(model, Guarded) else Guarded(model, classes=int(y.max()) + 1)  # in AutoAttack
            with torch.inference_mode(False), without_gradients(model), torch.no_grad():
                x, y = (tensor.clone() if tensor.is_inference() else tensor for tensor in (x, y))
                x_adv = craft(guarded, x.clone(), y, *args, **options)  # it may write into its images
                if fault := _fault(x_adv, x, chosen):
                    raise RuntimeError(f"the attack '{name}' is wrong: {fault}")
            return x_adv.contiguous()

        other = ATTACKS.get(name, craft)
        if (other.__module__, other.__qualname__) != (craft.__module__, craft.__qualname__):  # not defined again
            raise TypeError(f"two attacks are called '{name}'")
        ATTACKS[name], KINDS[name] = checked, kind
        return checked

    return decorate


def kind_of(name: str) -> Kind:
    """What is known of the attack that protocols call ``name``; without attack, :data:`NO_ATTACK`."""
    return KINDS.get(name, NO_ATTACK)


class Guarded:
    """``model`` with its logits checked to be [N, >= ``classes``] and cast to the type of the images.

    It is handed copies, so that it cannot move the point that an attack has reached.

    Attributes:
        rough: the same of the model's guide (:mod:`zoo.attacks.guide`); itself without one.
        slack, convicts: the guide's.
    """

    def __init__(self, model: Model, *, classes: int) -> None:
        self.model, self.classes = model, classes
        self.rough: Model = Guarded(model.rough, classes=classes) if isinstance(model, Guided) else self
        self.slack, self.convicts = (model.slack, model.convicts) if isinstance(model, Guided) else (0.0, False)

    def __call__(self, x: Tensor) -> Tensor:
        z = self.model(x.clone())
        if z.ndim != 2 or len(z) != len(x) or z.shape[1] < 2:
            raise UsageError(
                f"the model must map {len(x)} images to logits of shape [{len(x)}, classes], not {list(z.shape)}"
            )
        if z.shape[1] < self.classes:
            raise UsageError(f"a label is {self.classes - 1}, but the model has only {z.shape[1]} classes")
        return z.to(x.dtype)


def generator(seed: int, stream: str, device: torch.device) -> torch.Generator:
    """A separate random stream for each seed and name, so that seeds 0 and 1 never share noise."""
    digest = hashlib.blake2b(f"{stream} {seed}".encode(), digest_size=7).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest, "big"))


@contextmanager
def without_gradients(model: Model) -> Iterator[None]:
    """Freeze the parameters: their gradients are not needed and take a third of every backward pass."""
    parameters = list(model.parameters()) if isinstance(model, nn.Module) else []
    trainable = [one for one in parameters if one.requires_grad and not one.is_inference()]
    for parameter in trainable:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)


def _fault(x_adv: Any, x: Tensor, options: Mapping[str, Any]) -> str | None:
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


def _check_eval(model: Model) -> None:
    if isinstance(model, nn.Module):
        for name, module in model.named_modules():
            if module.training:
                part = f" (its part '{name}')" if name else ""
                raise UsageError(f"the model{part} is in train mode: call model.eval() before attacking it")


def _check_options(options: dict[str, Any]) -> None:
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


def _check_reach(options: Mapping[str, Any], x: Tensor) -> None:
    """Raise UsageError for a ball in l2 that is larger than the box of images x [N, C, H, W]."""
    eps, most = options["eps"], x[:1].numel() ** 0.5  # how far two images can be apart
    if len(x) and options.get("norm") == "l2" and eps > most:
        raise UsageError(f"eps must be at most {most:.4g} in l2 for images of this size, not {eps!r}")


def _check_images(x: Tensor) -> None:
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


def _checked_labels(y: Tensor, x: Tensor) -> Tensor:
    if not isinstance(y, Tensor) or y.is_floating_point() or y.is_complex() or y.dtype == torch.bool:
        got = y.dtype if isinstance(y, Tensor) else type(y).__name__
        raise UsageError(f"labels must be a tensor of integers, not {got}")
    if y.shape != x.shape[:1]:
        raise UsageError(f"{len(x)} images need labels of shape [{len(x)}], not {list(y.shape)}")
    if len(y) and int(y.min()) < 0:
        raise UsageError(f"labels must be at least 0, but one is {int(y.min())}")
    return y.to(x.device, torch.int64)
