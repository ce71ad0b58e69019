"""Attack a batch as a protocol says."""

from __future__ import annotations

import inspect
from typing import Any

from torch import Tensor

from zoo.attacks import ATTACKS, Model
from zoo.evaluation.protocols import Protocol
from zoo.system.errors import UsageError, nearest

OPTIONS = ("step", "steps", "loss", "queries")  # that a protocol may leave to the attack


def perturb(
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
        UsageError: there is no such attack, or the protocol sets an option that it does not have, or the inputs are
            malformed.
    """
    if protocol.attack == "none":
        return x
    if protocol.attack not in ATTACKS:
        raise UsageError(
            f"protocol '{protocol.name}' has an unknown attack '{protocol.attack}'"
            f"{nearest(protocol.attack, ATTACKS)} (known: {', '.join(ATTACKS)})"
        )
    attack = ATTACKS[protocol.attack]
    takes = inspect.signature(attack).parameters
    options: dict[str, Any] = {name: value for name in OPTIONS if (value := getattr(protocol, name)) is not None}
    if protocol.restarts > 1:
        options["restarts"] = protocol.restarts
    if unknown := options.keys() - takes.keys():
        raise UsageError(
            f"protocol '{protocol.name}' sets {', '.join(sorted(unknown))}, "
            f"which the attack '{protocol.attack}' does not take"
        )
    own = {"early_stop": early_stop, "counts": counts}
    options |= {name: value for name, value in own.items() if name in takes}
    return attack(model, x, y, eps=protocol.eps, norm=protocol.norm, seed=protocol.seed, **options)
