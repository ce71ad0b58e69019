"""The guarantees of every attack: inputs and result are checked, the model is unchanged, the result is a new tensor.

``@attack(name)`` turns a function that crafts adversarial images into a public attack. In the crafting function the
model is in eval mode and frozen, no gradient is recorded unless requested, logits have the right shape and the
images' type, and the batch is not empty.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Concatenate, Literal, ParamSpec

import torch
from torch import Tensor, nn

from zoo.attacks.arguments import check_ball, check_eval, check_images, check_options, checked_labels, fault_of
from zoo.attacks.guide import Guided
from zoo.system.errors import UsageError

Model = Callable[[Tensor], Tensor]  # float images [N, C, H, W] in [0, 1] to logits [N, K]
Norm = Literal["linf", "l2"]
P = ParamSpec("P")


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
        TypeError: ``craft`` takes no eps, or another attack has its name.
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
            check_options(chosen)
            check_images(x)
            y = checked_labels(y, x)
            check_eval(model)
            x = x.detach()
            check_ball(chosen, x)
            if not len(x) or not chosen["eps"]:
                return x.clone(memory_format=torch.contiguous_format)
            guarded = model if isinstance(model, Guarded) else Guarded(model, classes=int(y.max()) + 1)  # in AutoAttack
            with torch.inference_mode(False), without_gradients(model), torch.no_grad():
                x, y = (tensor.clone() if tensor.is_inference() else tensor for tensor in (x, y))
                x_adv = craft(guarded, x.clone(), y, *args, **options)  # it may write into its images
                if fault := fault_of(x_adv, x, chosen):
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
        slack: the guide's.
    """

    def __init__(self, model: Model, *, classes: int) -> None:
        self.model, self.classes = model, classes
        self.rough: Model = Guarded(model.rough, classes=classes) if isinstance(model, Guided) else self
        self.slack = model.slack if isinstance(model, Guided) else 0.0

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
