"""Standard AutoAttack: four parameter-free attacks, each on the images that the others did not break. Croce and Hein
2020, "Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free attacks"."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from zoo.attacks.apgd import apgd, apgd_targeted
from zoo.attacks.fab import fab_targeted
from zoo.attacks.inputs import Kind, Model, Norm, attack
from zoo.attacks.losses import broken, check_dlr
from zoo.attacks.pulse import portion
from zoo.attacks.square import square


@attack("autoattack", Kind(queries=True, climbs=False))
def autoattack(
    model: Model,
    x: Tensor,
    y: Tensor,
    *,
    eps: float,
    norm: Norm = "linf",
    steps: int = 100,
    targets: int = 9,
    queries: int = 5000,
    seed: int = 0,
    counts: dict[str, float] | None = None,
) -> Tensor:
    """APGD on the cross-entropy, targeted APGD on the DLR loss, targeted FAB, Square, in this order.

    >>> model, x = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 4)).eval(), torch.rand(2, 3, 4, 4)
    >>> y = model(x).argmax(1)
    >>> model(autoattack(model, x, y, eps=0.5, steps=5, queries=50)).argmax(1) == y
    tensor([False, False])

    Args:
        model: images [N, C, H, W] in [0, 1] to logits [N, K], K >= 4.
        x: images [N, C, H, W]; y: labels [N].
        steps: of the three gradient attacks; targets: of APGD-T and FAB-T; queries: of Square.
        counts: adds to each part's name the number of images that it was the first to break. Many images broken by
            Square alone are a sign of masked gradients.

    Returns:
        Adversarial images [N, C, H, W]; if no part breaks an image, the last point of APGD.

    Raises:
        UsageError: an argument is not as above, or the model is in train mode; or there are fewer than 4
            classes.
    """
    common: dict[str, Any] = {"eps": eps, "norm": norm, "seed": seed}
    parts = {
        "apgd-ce": partial(apgd, steps=steps, loss="ce", **common),
        "apgd-t": partial(apgd_targeted, steps=steps, targets=targets, **common),
        "fab-t": partial(fab_targeted, steps=steps, targets=targets, **common),
        "square": partial(square, queries=queries, **common),
    }
    passes = {"apgd-ce": 3 * steps, "apgd-t": 3 * steps * targets, "fab-t": 3 * steps * targets, "square": queries}
    before, total = 0, sum(passes.values())
    z = model(x)
    check_dlr(z)
    result, todo = x.clone(), (~broken(z, y)).nonzero().squeeze(1)
    for name, part in parts.items():
        if counts is not None:
            counts.setdefault(name, 0)
        if not len(todo):
            continue
        with portion(before / total, (before + passes[name]) / total):
            x_adv = part(model, x[todo], y[todo])
        before += passes[name]
        fell = broken(model(x_adv), y[todo])
        changed = torch.ones_like(fell) if name == "apgd-ce" else fell
        result[todo[changed]] = x_adv[changed]
        if counts is not None:
            counts[name] += int(fell.sum())
        todo = todo[~fell]
    return result
