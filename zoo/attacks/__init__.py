"""White-box and black-box attacks within eps of an image, in l-infinity and l2: ``attack(model, x, y, *, eps, ...)``.

All take images [N, C, H, W] in [0, 1] and labels [N], and return adversarial images of the same shape, type and device.
The model maps images to logits, in eval mode; ``square`` takes any function, the others need its gradients.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from zoo.attacks.apgd import apgd, apgd_targeted
from zoo.attacks.autoattack import autoattack
from zoo.attacks.fab import fab_targeted
from zoo.attacks.inputs import Model
from zoo.attacks.losses import broken, margin
from zoo.attacks.pgd import fgsm, gradient_attack, mifgsm, pgd, uniform
from zoo.attacks.square import square
from zoo.errors import UsageError
from zoo.protocols import Protocol

__all__ = [
    "Model",
    "apgd",
    "apgd_targeted",
    "autoattack",
    "broken",
    "fab_targeted",
    "fgsm",
    "gradient_attack",
    "margin",
    "mifgsm",
    "pgd",
    "run",
    "square",
    "uniform",
]

# Each attack of a protocol, and which of the protocol's own options it takes besides eps, norm and seed.
ATTACKS: dict[str, tuple[Callable[..., Tensor], frozenset[str]]] = {
    "uniform": (uniform, frozenset()),
    "fgsm": (fgsm, frozenset({"loss"})),
    "pgd": (pgd, frozenset({"step", "steps", "restarts", "loss"})),
    "mifgsm": (mifgsm, frozenset({"step", "steps", "loss"})),
    "apgd": (apgd, frozenset({"steps", "restarts", "loss"})),
    "apgd-t": (apgd_targeted, frozenset({"steps"})),
    "fab-t": (fab_targeted, frozenset({"steps", "restarts"})),
    "square": (square, frozenset({"queries"})),
    "autoattack": (autoattack, frozenset({"steps", "queries"})),
}


EARLY_STOPPERS = (pgd, mifgsm, apgd, apgd_targeted)


def run(
    protocol: Protocol,
    model: Model,
    x: Tensor,
    y: Tensor,
    *,
    counts: dict[str, float] | None = None,
    early_stop: bool = True,
) -> Tensor:
    """Attack a batch as ``protocol`` says.

    Args:
        model: images [N, C, H, W] in [0, 1] to logits [N, K].
        x: images [N, C, H, W]; y: labels [N].
        counts: for a composed attack, each part's name gets the number of images that it broke added.
        early_stop: let PGD, MI-FGSM and APGD leave an image where it is first misclassified, which suffices to judge
            this model. Turn it off for examples that are to be replayed on another one: those stand just past
            this model's boundary.

    Returns:
        x_adv [N, C, H, W]; ``x`` itself for the attack "none".

    Raises:
        UsageError: the protocol sets an option that its attack does not have, or the inputs are malformed.
    """
    if protocol.attack == "none":
        return x
    attack, takes = ATTACKS[protocol.attack]
    options: dict[str, Any] = {
        name: value for name in ("step", "steps", "loss", "queries") if (value := getattr(protocol, name)) is not None
    }
    if protocol.restarts > 1:
        options["restarts"] = protocol.restarts
    if unknown := options.keys() - takes:
        raise UsageError(
            f"protocol '{protocol.name}' sets {', '.join(sorted(unknown))}, "
            f"which the attack '{protocol.attack}' does not take"
        )
    if attack in EARLY_STOPPERS:
        options["early_stop"] = early_stop
    if attack is autoattack:
        options["counts"] = counts
    return attack(model, x, y, eps=protocol.eps, norm=protocol.norm, seed=protocol.seed, **options)
