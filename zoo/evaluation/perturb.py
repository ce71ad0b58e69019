"""Run the attack of a protocol on a batch."""

from __future__ import annotations

import inspect
from typing import Any

from torch import Tensor

from zoo.attacks import ATTACKS, Model
from zoo.evaluation.protocols import Protocol
from zoo.system.errors import UsageError, nearest

OPTIONS = ("step", "steps", "loss", "queries")  # None in a protocol means the attack's default


def perturb(
    protocol: Protocol,
    model: Model,
    x: Tensor,
    y: Tensor,
    *,
    counts: dict[str, float] | None = None,
    early_stop: bool = True,
    only: Tensor | None = None,
) -> Tensor:
    """Run the attack of ``protocol`` on a batch.

    Args:
        model: images [N, C, H, W] in [0, 1] to logits [N, K].
        x: images [N, C, H, W]; y: labels [N].
        counts: a composed attack adds to each part's name the number of images that it broke.
        early_stop: PGD (targeted too), MI-FGSM and APGD stop at the first misclassified point of an image, which is
            enough to evaluate this model. Turn it off for examples to replay on another model: a point just past the
            decision boundary of this model rarely transfers.
        only: the images that Square, APGD or targeted PGD is wanted on, bool [N]; other attacks attack them all.

    Returns:
        x_adv [N, C, H, W]; ``x`` itself for the attack "none".

    Raises:
        UsageError: the attack is unknown, the protocol sets an option that it does not take, or the inputs are
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
    extras = {"early_stop": early_stop, "counts": counts, "only": only}
    options |= {name: value for name, value in extras.items() if name in takes}
    return attack(model, x, y, eps=protocol.eps, norm=protocol.norm, seed=protocol.seed, **options)
