"""Flags: why a measured accuracy may be too high. Nothing here imports torch, but for :func:`disagree`.

A flag stays with the result: ``zoo list`` marks the entry, and ``zoo pick`` passes it over.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import permutations
from typing import TYPE_CHECKING

from zoo.evaluation.statistics import Paired

if TYPE_CHECKING:
    import numpy as np

    from zoo.evaluation.protocols import Protocol

FLAGS = {
    "random": "identical calls get different answers; attacked in expectation over draws",
    "stateful": "the answers to the same images changed during the evaluation",
    "writes": "the model writes into its input; attacks hand it copies",
    "masked": "its gradient vanishes, is wrong or does not lead uphill; attacks are followed by Square",
    "coarse": "its logits take few values, on which gradients say little; attacks are followed by Square",
    "unreliable": "gradient attacks find much less than another attack finds on the same images",
}

APART = 0.10  # a plain net may lose 4 to 7 points more to AutoAttack than to PGD-20
APART_FROM_ONE_STEP = 0.02  # one step should not find what twenty miss
SQUARE_GAIN = 0.002  # share of the images that Square may break after the white-box attacks of AutoAttack


def explained(flags: Iterable[str]) -> list[str]:
    """A line for each flag: its name and what it means."""
    return [f"{flag}: {FLAGS.get(flag, 'see its entry')}" for flag in sorted(flags)]


def disagree(measured: Iterable[tuple[Protocol, np.ndarray]]) -> bool:
    """Whether an attack that climbs leaves far more images right than another with the same threat model.

    Args:
        measured: protocols with their bits, bool [n]: is each of the leading n images of the split right.

    Returns:
        True if it is shown, with 95 % confidence on the images that both have, that an attack that climbs
        (:class:`zoo.attacks.inputs.Kind`) leaves over 10 points more than another, or over 2 points more than FGSM.
    """
    from zoo.attacks.inputs import kind_of

    attacked = [(one, bits) for one, bits in measured if one.attacked]
    for (strong, left), (other, fewer) in permutations(attacked, 2):
        same = (strong.dataset, strong.split, strong.threat) == (other.dataset, other.split, other.threat)
        if same and kind_of(strong.attack).climbs:
            n = min(len(left), len(fewer))
            apart = APART_FROM_ONE_STEP if other.attack == "fgsm" else APART
            if Paired.of(left[:n], fewer[:n]).inferior(apart):
                return True
    return False
