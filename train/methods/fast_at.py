"""Fast AT, adversarial training with one step from a random start: Wong et al. 2020, arXiv:2001.03994."""

from __future__ import annotations

from typing import Literal

from zoo.train.methods.method import Attack
from zoo.train.methods.pgd_at import PgdAT


class FastAT(PgdAT):
    """CE(x', y) with x' by one step from a random start in the ball, clipped to it: Algorithm 3. The paper's step is
    1.25 eps, 10/255. Long runs overfit catastrophically; ``n-fgsm`` does not."""

    name: Literal["fast-at"] = "fast-at"

    def check(self, attack: Attack) -> None:
        if attack.steps != 1:
            raise ValueError("fast-at takes one attack step: leave attack.steps at 1, or choose pgd-at")
        if attack.objective != "ce":
            raise ValueError("fast-at maximises the cross-entropy: leave attack.objective at 'ce'")
