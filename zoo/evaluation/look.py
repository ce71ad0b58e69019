"""Look at a model before it is attacked: is it the plain function with gradients that attacks are made for?

No look is complete: a model can behave on the images that it is shown here, and differ elsewhere.
``docs/robustness.md`` says what each check finds, and what none can.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.attacks.adaptive import Expectation, Normalised, StraightThrough
from zoo.attacks.ball import Ball, steepest
from zoo.attacks.inputs import generator, kind_of, without_gradients
from zoo.attacks.losses import NoGradient, ascend, broken, cross_entropy
from zoo.evaluation.exact import exact
from zoo.evaluation.protocols import Protocol
from zoo.models.fold import same
from zoo.system.errors import UsageError
from zoo.system.notice import say_once

IMAGES = 64
FLAT = 0.7  # a standard deviation of logits over classes; released networks have less on up to 7 % of the images
FLAT_SHARE = 0.25  # of the images, on which flat logits make a net one whose cross-entropy is a weak loss
FEW = 0.25  # logits are coarse if fewer than this share of them are distinct
MASKED_SHARE = 0.1  # share of the images on which a gradient may vanish or lead nowhere
PROBE = 1 / 8  # of eps: the step along the gradient that must raise the loss
STEPS, DIRECTIONS, ALIKE = (0.5 / 255, 4 / 255), 4, 0.5  # how the gradient is compared with differences of the loss
ROUNDING = 16  # units in the last place of the logits, by which these may differ anyhow
RADIUS = {"linf": 1 / 255, "l2": 0.1}  # it is taken in a ball of this size at least, where eps is next to nothing


@dataclass
class Look:
    """What to attack in place of the model, and why its accuracy may be too high (:mod:`zoo.evaluation.flags`).

    Attributes:
        model: images [N, C, H, W] to logits [N, K], with the decisions of the model.
        x: the images that it was looked at with; ``z``: its logits of them then.
    """

    model: nn.Module
    x: Tensor
    z: Tensor
    flags: set[str] = field(default_factory=set)

    def again(self) -> None:
        """Flag the model if its answers have changed since."""
        if "random" not in self.flags and not same(_answers(self.model, self.x), self.z):
            self.flags.add("stateful")


def look(model: nn.Module, x: Tensor, y: Tensor, protocol: Protocol, *, alone: bool = False) -> Look:
    """Look at ``model`` with images x [N, C, H, W], N of up to 64, and labels y [N], as ``protocol`` will attack it.

    Args:
        model: in eval mode.
        alone: images will be attacked one by one, and their place in a batch does not matter.

    Raises:
        UsageError: the answer to an image depends on the others in its batch.
    """
    flags: set[str] = set()
    given = x.clone()
    with torch.no_grad(), exact():
        z = model(given)
    if not torch.equal(given, x):
        flags.add("writes")
    if not same(_answers(model, x), z):
        flags.add("random")
        model = Expectation(model).eval()
        z = _answers(model, x)
    elif not alone and len(x) > 1:
        moved = torch.cat([_answers(model, part) for part in x.flip(0).split(max(len(x) // 3, 1))]).flip(0)
        if not same(moved, z):
            raise UsageError(
                "the model's answer to an image depends on the others in its batch, so its accuracy under attack is "
                "not defined: attack one image at a time (batch_size=1, --batch-size 1)"
            )
    if odd := int((~torch.isfinite(z)).any(1).sum()):
        mask = "to mask a class, give it a large negative logit, not -inf"
        say_once(f"{odd} of {len(z)} answers of the model are not finite and count as wrong: {mask}")
    finite = z[torch.isfinite(z)]
    if finite.numel() > 4 * z.shape[1] and len(finite.unique()) < FEW * finite.numel():
        flags.add("coarse")
    if (z.std(1, correction=0) < FLAT).float().mean() > FLAT_SHARE:
        model = Normalised(model).eval()
        z = _answers(model, x)
    gradients = kind_of(protocol.attack).gradients
    if gradients and masked_share(model, x, y, protocol) > MASKED_SHARE:
        flags.add("masked")
        straight = StraightThrough(model).eval()
        if same(_answers(straight, x), z) and masked_share(straight, x, y, protocol) <= MASKED_SHARE:
            model = straight
    right = ~broken(z, y)
    if gradients and right.any() and wrong_gradient(model, x[right], y[right]).float().mean() > MASKED_SHARE:
        flags.add("masked")
    return Look(model, x, z, flags)


def masked_share(model: nn.Module, x: Tensor, y: Tensor, protocol: Protocol) -> float:
    """The share of the images, still right, on which the gradient vanishes, or a small step along it does not pay.

    The step is eps / 8, once from the image and once from a random point of the ball; it must raise the loss at one of
    them. Returns 0 if no image is right, and 1 if there is no gradient at all.
    """
    with without_gradients(model), torch.no_grad():
        right = ~broken(_answers(model, x), y)
        x, y = x[right], y[right]
        if not len(x):
            return 0.0
        eps = max(protocol.eps, RADIUS[protocol.norm])
        ball = Ball(x, eps, protocol.norm)
        pays = torch.zeros(len(x), dtype=torch.bool, device=x.device)
        for start in (x, ball.random(generator(protocol.seed, "look", x.device))):
            try:
                _, before, gradient = ascend(lambda x: model(x.clone()), start, cross_entropy, y)
            except NoGradient:
                return 1.0
            stepped = ball.project(start + PROBE * eps * steepest(gradient, protocol.norm))
            pays |= cross_entropy(model(stepped.clone()), y) > before
    return 1 - pays.float().mean().item()


def wrong_gradient(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Where the gradient of the loss is zero or not its derivative, bool [N], at images x [N, C, H, W], labels y [N].

    A step along a wrong gradient may still raise the loss, but by less than is possible. Therefore the loss is also
    measured on both sides in random directions. The differences must have a cosine of at least 0.5 with those that the
    gradient predicts, at a small distance or at a larger one: bfloat16 rounds away small differences, and over larger
    distances some nets are far from linear.
    """
    with without_gradients(model), torch.no_grad(), exact():
        true, zero = torch.zeros_like(y, dtype=torch.bool), torch.zeros_like(y, dtype=torch.bool)
        source = generator(0, "wrong gradient", x.device)
        for step in STEPS:
            left = (~true).nonzero().squeeze(1)  # not shown to be right by a smaller step
            if not len(left):
                break
            here, label = x[left], y[left]
            z, _, gradient = ascend(lambda x: model(x.clone()), here, cross_entropy, label)
            zero[left] = gradient.flatten(1).abs().amax(1) == 0
            found, predicted = [], []
            for _ in range(DIRECTIONS):
                r = (step * (torch.randint(0, 2, x.shape, generator=source, device=x.device) * 2 - 1))[left]
                ahead, behind = (here + r).clamp(0, 1), (here - r).clamp(0, 1)
                found.append(cross_entropy(model(ahead.clone()), label) - cross_entropy(model(behind.clone()), label))
                predicted.append((gradient * (ahead - behind)).sum((1, 2, 3)))
            a, b = torch.stack(found), torch.stack(predicted)
            rounding = ROUNDING * torch.finfo(z.dtype).eps * z.abs().amax(1)
            true[left] = (F.cosine_similarity(a, b, dim=0, eps=0) >= ALIKE) | ((a - b).abs().amax(0) <= rounding)
    return ~true | zero


def _answers(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad(), exact():
        return model(x.clone())
