"""DeepFool: Moosavi-Dezfooli, Fawzi and Frossard 2016, "DeepFool: a simple and accurate method to fool deep neural
networks", Algorithm 2, and its extension to l-infinity."""

from __future__ import annotations

import torch
from torch import Tensor

from zoo.attacks.ball import DIMS, Ball, steepest
from zoo.attacks.batch import survivors
from zoo.attacks.inputs import Kind, Model, Norm, attack
from zoo.attacks.losses import broken, difference, runners_up, slope
from zoo.attacks.pulse import pulse

EXTRA = 1e-4  # added to every step in the authors' code, so that rounding cannot end it on the boundary
FAR = 1e4  # longer than any step within [0, 1]; keeps what nearly flat logits ask for finite


@attack("deepfool", Kind(guided=False, climbs=False))
def deepfool(
    model: Model,
    x: Tensor,
    y: Tensor,
    *,
    eps: float,
    norm: Norm = "linf",
    steps: int = 50,
    targets: int = 9,
    overshoot: float = 0.02,
    seed: int = 0,
) -> Tensor:
    """The nearest decision boundary, linearised again after every step, until the image is misclassified.

    >>> model, x = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 4)).eval(), torch.rand(2, 3, 4, 4)
    >>> y = model(x).argmax(1)
    >>> model(deepfool(model, x, y, eps=0.5, steps=5)).argmax(1) == y
    tensor([False, False])

    The perturbation r is found without regard to eps. One that is larger than eps is projected to the ball: an image
    is broken if r is at most eps, or if the projected point is misclassified too. The seed is not used.

    Args:
        model: images [N, C, H, W] in [0, 1] to logits [N, K].
        x: images [N, C, H, W]; y: labels [N].
        targets: the likeliest wrong classes at x whose boundaries are looked at, 9 as in the authors' code.
        overshoot: eta; the image is moved by (1 + eta) r.

    Raises:
        UsageError: an argument is not as above, or the model is in train mode.
    """
    ball, result = Ball(x, eps, norm), x.clone()
    index = torch.arange(len(x), device=x.device)
    z = model(x)
    fell, classes = broken(z, y), runners_up(z, y, targets)  # [N], [N, T]
    x0, r = x, torch.zeros_like(x)
    for k in range(steps):
        pulse(k / steps)
        keep = survivors(fell)
        if keep is not None:
            result[index] = x
            x, x0, r, y, index, fell, classes = (a[keep] for a in (x, x0, r, y, index, fell, classes))
            if not len(index):
                break
        nearest = x.new_full((len(x), 1, 1, 1), FAR)
        step = torch.zeros_like(x)
        for t in classes.unbind(1):
            f, w = slope(model, x, difference, y, t)
            towards = steepest(w, norm)
            dual = (w * towards).sum(DIMS, keepdim=True)  # the dual norm of w
            scale = torch.where(dual.isinf(), w.abs().amax(DIMS, keepdim=True), 1)
            dual = torch.where(dual.isinf(), (w / scale * towards).sum(DIMS, keepdim=True), dual)
            distance = f.abs()[:, None, None, None] / scale / dual
            step = torch.where(distance < nearest, (distance + EXTRA) * towards, step)
            nearest = torch.fmin(distance, nearest)
        r = torch.where(fell[:, None, None, None], r, r + step)
        x = (x0 + (1 + overshoot) * r).clamp_(0, 1)
        fell = fell | broken(model(x), y)
    result[index] = x
    return ball.project(result)
