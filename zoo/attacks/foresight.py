"""Which candidates of a random search are worth a query, by the gradient of the model's guide.

Late in Square nine of ten candidates raise the margin, most of them clearly. The margins of a copy in bfloat16 do not
show which: they are off by more than a small square changes. The gradient of the copy does: to first order, a change d
lowers the margin by <g, d>.
"""

from __future__ import annotations

import torch
from torch import Tensor

from zoo.attacks.inputs import Model
from zoo.attacks.losses import ascend, cw, rough

DOUBT = 0.3  # of what the changed pixels could gain together: <g, d> may be so far below zero
OPEN = 32  # so many queries are open, and of so many later ones one is
MISSED = 0.25  # of the gains on open queries: so many may have been unforeseen


def is_open(query: int) -> bool:
    """Whether all candidates are queried, whatever is foreseen."""
    return query < OPEN or query % OPEN == 0


class Foresight:
    """Leaves out candidates that would clearly raise the margin. All others are judged by the model, and it alone
    decides what is accepted and what is broken.

    The first queries are open, and later one of 32: the candidates of all images are queried, and the gradient is taken
    anew. If more than a quarter of the gains that open queries made on an image would have been left out, the gradient
    misleads there, and every candidate of that image is queried.

    Args:
        model: images [N, C, H, W] to logits [N, K]; without a guide, all candidates are worth a query.
        n: the number of images.
    """

    def __init__(self, model: Model, n: int, device: torch.device) -> None:
        self.guide = None if rough(model) is model else rough(model)
        self.gradient: Tensor | None = None  # of -margin at the best points so far, [n, C, H, W]
        self.gained, self.missed = torch.zeros(2, n, device=device)  # how often open queries lowered the margin, [n]

    def select(self, keep: Tensor) -> None:
        self.gained, self.missed = self.gained[keep], self.missed[keep]
        self.gradient = None if self.gradient is None else self.gradient[keep]

    def worthwhile(self, candidate: Tensor, best: Tensor) -> Tensor | None:
        """Whether each candidate to follow the best point, both [n, C, H, W], is worth a query, bool [n]; None if all
        are."""
        if self.gradient is None:
            return None
        gains = (self.gradient * (candidate - best)).flatten(1)
        hopeful = gains.sum(1) >= -DOUBT * gains.abs().sum(1)
        return hopeful | (self.missed > MISSED * self.gained)

    def learn(self, gained: Tensor, worthwhile: Tensor | None, best: Tensor, y: Tensor) -> None:
        """After an open query that lowered the margins where ``gained``, bool [n]: was it foreseen? Where to next?"""
        if self.guide is None:
            return
        if worthwhile is not None:
            self.gained = self.gained + gained
            self.missed = self.missed + (gained & ~worthwhile)
        self.gradient = ascend(self.guide, best, cw, y)[2]
