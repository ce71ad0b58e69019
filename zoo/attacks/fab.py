"""FAB-T, the targeted fast adaptive boundary attack: Croce and Hein 2020, "Minimally distorted adversarial examples
with a fast adaptive boundary attack", Algorithm 1, each time towards the boundary with one target class."""

from __future__ import annotations

import torch
from torch import Tensor

from zoo.attacks.ball import DIMS, Ball, norm_of
from zoo.attacks.batch import padded, survivors
from zoo.attacks.inputs import Kind, Model, Norm, attack, generator
from zoo.attacks.losses import broken, difference, runners_up, slope
from zoo.attacks.pulse import portion, pulse

ALPHA_MAX = 0.1  # the largest weight of the projection of the original image
ETA = 1.05  # overshoot past the hyperplane
BETA = 0.9  # the search continues at this fraction of the way from the image to a misclassified point
OPEN = 8  # so many steps ask about all points, and of so many later ones one does
DOUBT = 0.25  # more of the points outside eps than this were right: all steps ask about the image
FAR = 2.0  # eps: the search is given up for an image that it did not bring nearer than this,
STUCK = 0.9  # nor in the last eight steps to less than this part of the least distance before

NEWTON_STEPS = 50


@attack("fab-t", Kind(guided=False, climbs=False))
def fab_targeted(
    model: Model,
    x: Tensor,
    y: Tensor,
    *,
    eps: float,
    norm: Norm = "linf",
    steps: int = 100,
    targets: int = 9,
    restarts: int = 1,
    seed: int = 0,
) -> Tensor:
    """FAB towards each of the ``targets`` likeliest wrong classes, on the images not broken yet.

    >>> model, x = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 4)).eval(), torch.rand(2, 3, 4, 4)
    >>> y = model(x).argmax(1)
    >>> model(fab_targeted(model, x, y, eps=0.5, steps=5)).argmax(1) == y
    tensor([False, False])

    The attack searches for the nearest misclassified point; an image is broken if this point lies within eps. A point
    outside eps is taken to be misclassified, as nearly all are on usual networks. The first eight steps and one of
    eight later ones ask the model, and every step does for an image where more than a quarter of them were right.
    From step 16 on the search is given up for other images whose nearest point so far is beyond 2 eps and came less
    than a tenth nearer in the last eight steps: the boundary that it closes in on is too far to count.

    Args:
        model: images [N, C, H, W] in [0, 1] to logits [N, K].
        x: images [N, C, H, W]; y: labels [N].
        restarts: the first starts from the image, later ones from a random point within eps / 2.

    Returns:
        [N, C, H, W]: a misclassified point within eps if one was found, else the image itself.

    Raises:
        UsageError: an argument is not as above, or the model is in train mode.
    """
    result, todo = x.clone(), torch.arange(len(x), device=x.device)
    z = model(x)
    todo = todo[~broken(z, y)]
    classes = runners_up(z, y, targets).unbind(1)
    tries = restarts * len(classes)
    for restart in range(restarts):
        for k, target in enumerate(classes):
            if not len(todo):
                return result
            start = x
            if restart:
                start = Ball(x, eps / 2, norm).random(generator(seed, f"fab {restart} {k}", x.device))
            place = restart * len(classes) + k
            with portion(place / tries, (place + 1) / tries):
                x_adv, fell = _search(model, x[todo], y[todo], target[todo], start[todo], eps, norm, steps)
            result[todo] = x_adv
            todo = todo[~fell]
    return result


def _search(
    model: Model, x_orig: Tensor, y: Tensor, t: Tensor, x: Tensor, eps: float, norm: Norm, steps: int
) -> tuple[Tensor, Tensor]:
    """Algorithm 1 from x [N, C, H, W] towards class t [N]: the points, and whether each is within eps, bool [N]."""
    result, fell = x_orig.clone(), torch.zeros_like(y, dtype=torch.bool)
    index = torch.arange(len(x), device=x.device)
    out, right = torch.zeros(2, len(x), device=x.device)  # points outside eps that were asked about; of them right
    given_up = torch.zeros_like(fell)
    best, before = torch.full((2, len(x)), torch.inf, device=x.device)  # the least distance; OPEN steps ago
    for k in range(steps):
        pulse(k / steps)
        # The boundary with t, linearised at x: {p: f + <w, p - x> = 0}
        f, w = slope(model, x, difference, y, t)
        offset = f[:, None, None, None]  # [n, 1, 1, 1]
        to_plane = project(x, w, offset, norm)
        offset_orig = offset + _dot(w, x_orig - x)
        to_plane_orig = project(x_orig, w, offset_orig, norm)
        near, far = norm_of(to_plane, norm), norm_of(to_plane_orig, norm)
        alpha = (near / (near + far).clamp_min(1e-12)).clamp_(max=ALPHA_MAX)  # [n, 1, 1, 1]
        x = torch.lerp(x + ETA * to_plane, x_orig + ETA * to_plane_orig, alpha).clamp_(0, 1)

        distance = norm_of(x - x_orig, norm).flatten()
        within, best = distance <= eps, torch.minimum(best, distance)
        asked = within | (right > DOUBT * out) | (k < OPEN or k % OPEN == 0)
        wrong = torch.ones_like(within)
        if asked.any():
            filled = padded(asked.nonzero().squeeze(1))
            wrong[filled] = broken(model(x[filled]), y[filled])
        out, right = out + (asked & ~within), right + ~(wrong | within)
        done = wrong & within & ~given_up[index]
        result[index[done]], fell[index[done]] = x[done], True
        if k and k % OPEN == 0:
            stuck = (best > FAR * eps) & (best > STUCK * before) & (right <= DOUBT * out)
            given_up[index[stuck]], before = True, best
        keep = survivors((fell | given_up)[index])
        if keep is not None:
            if not len(keep):
                break
            x, x_orig, y, t, index, wrong = (a[keep] for a in (x, x_orig, y, t, index, wrong))
            out, right, best, before = (a[keep] for a in (out, right, best, before))
        x = torch.where(wrong[:, None, None, None], torch.lerp(x_orig, x, BETA), x)
    return result, fell


def project(point: Tensor, w: Tensor, offset: Tensor, norm: Norm) -> Tensor:
    """The shortest d [N, C, H, W] with <w, d> = -offset and point + d in [0, 1]; if the box has no such point,
    d leads to the corner that is nearest to the hyperplane.

    Each pixel moves at its own speed s_i (1 for l-infinity, |w_i| for l2) towards the hyperplane until it meets the
    box after r_i, so one equation in the time l remains: sum of |w_i| min(l s_i, r_i) = |offset|. Its left side is
    concave and piecewise linear: Newton's method from l = 0 never overshoots and is exact after finitely many steps.

    Shapes: point and w [N, C, H, W], offset [N, 1, 1, 1].
    """
    towards = w.sign() * -offset.sign()  # the direction in which <w, .> approaches -offset
    a = w.abs()
    room = 0.5 + towards * (0.5 - point)  # r: 1 - point upwards, point downwards
    speed = a if norm == "l2" else torch.ones_like(offset)
    gain, total = a * speed, a * room  # per unit of time while moving; in total when at the box
    full_speed = gain.sum(DIMS, keepdim=True)
    time = torch.zeros_like(offset)
    for _ in range(NEWTON_STEPS):
        at_box = (time * speed >= room).to(w.dtype)
        slope, missing = full_speed - _dot(gain, at_box), offset.abs() - _dot(total, at_box)
        later = torch.where(slope > 0, missing / slope, time).clamp_(max=1e30)  # inf * 0 would be NaN
        if not bool((later > time * (1 + 1e-6)).any()):
            break
        time = torch.maximum(time, later)
    return towards * torch.minimum(time * speed, room)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """<a, b> of each image, [N, 1, 1, 1]."""
    return torch.linalg.vecdot(a.flatten(1), b.flatten(1))[:, None, None, None]
