"""The losses that attacks maximise, per image: logits z [N, K] and labels y [N] to losses [N].

None of them saturates: a network whose last layer is multiplied by 100 makes the same decisions, and an attack must
find as much there.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from zoo.attacks.batch import padded
from zoo.attacks.guide import Guided
from zoo.attacks.inputs import Guarded, Model
from zoo.system.errors import UsageError


class NoGradient(UsageError):
    """The model's logits do not depend on its input by operations that PyTorch differentiates."""


Loss = Callable[..., Tensor]  # (logits [N, K], labels [N], ...) -> [N]

DLR_CLASSES = 4


def margin(z: Tensor, y: Tensor) -> Tensor:
    """The margin of the correct class, z_y - max over k != y of z_k: [N]; NaN where a logit is infinite or NaN."""
    right = y[:, None]
    m = z.gather(1, right).squeeze(1) - z.scatter(1, right, -torch.inf).amax(1)
    return torch.where(z.isfinite().all(1), m, torch.nan)


def broken(z: Tensor, y: Tensor) -> Tensor:
    """Whether each image is misclassified, bool [N]; ties, and logits that are not finite, count as misclassified."""
    return ~(margin(z, y) > 0)


def cross_entropy(z: Tensor, y: Tensor) -> Tensor:
    """The log-odds of a wrong class, l = log(sum over k != y of exp(z_k)) - z_y, which orders points as the CE does.

    CE = log(1 + exp(l)) rises strictly with l, so that both have the same steepest direction and the same best point.
    But the gradient of the CE vanishes in float32 where the correct class leads by more than 17, and a network with
    large logits then looks robust; l never saturates, and tends to the margin loss as logits grow.
    """
    right = y[:, None]
    return z.scatter(1, right, -torch.inf).logsumexp(1) - z.gather(1, right).squeeze(1)


def cw(z: Tensor, y: Tensor) -> Tensor:
    """max over k != y of z_k - z_y: the margin loss of Carlini and Wagner 2017 (f_6, untargeted, unclipped)."""
    return -margin(z, y)


def dlr(z: Tensor, y: Tensor) -> Tensor:
    """Difference of logits ratio, Croce and Hein 2020 (APGD), eq. 6: invariant to shifts and scales of the logits.

    -(z_y - max over k != y of z_k) / (z_pi1 - z_pi3), with z_pi1 >= z_pi2 >= ... the sorted logits.
    """
    check_dlr(z)
    pi = z.topk(3, dim=1).values  # [N, 3]
    return -margin(z, y) / (pi[:, 0] - pi[:, 2] + 1e-12)


def dlr_targeted(z: Tensor, y: Tensor, t: Tensor) -> Tensor:
    """-(z_y - z_t) / (z_pi1 - (z_pi3 + z_pi4) / 2), Croce and Hein 2020 (APGD), eq. 7; t [N] the target classes."""
    check_dlr(z)
    pi = z.topk(4, dim=1).values  # [N, 4]
    return difference(z, y, t) / (pi[:, 0] - (pi[:, 2] + pi[:, 3]) / 2 + 1e-12)


def difference(z: Tensor, y: Tensor, t: Tensor) -> Tensor:
    """z_t - z_y, [N]."""
    return (z.gather(1, t[:, None]) - z.gather(1, y[:, None])).squeeze(1)


LOSSES: dict[str, Loss] = {"ce": cross_entropy, "cw": cw, "dlr": dlr}


def loss_called(name: str) -> Loss:
    """The untargeted loss called ``name``.

    Raises:
        UsageError: the name is unknown.
    """
    if name not in LOSSES:
        raise UsageError(f"the loss must be one of {', '.join(LOSSES)}, not {name!r}")
    return LOSSES[name]


def ascend(model: Model, x: Tensor, loss: Loss, *labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A forward and a backward pass: logits [N, K], losses [N], their gradient in x [N, C, H, W] with NaN set to 0.

    The guide of the model computes them, if it has one; logits that leave the decision open are then the model's.

    Args:
        labels: y [N], and what else the loss takes.

    Raises:
        NoGradient: as with an exported engine.
    """
    z, losses, gradient = _differentiated(rough(model), x, loss, *labels)
    return _decided(model, x, z, labels[0]), losses, gradient


def slope(model: Model, x: Tensor, loss: Loss, *labels: Tensor) -> tuple[Tensor, Tensor]:
    """Losses [N] and their gradient [N, C, H, W] of ``model`` itself, whether it has a guide or not."""
    return _differentiated(model, x, loss, *labels)[1:]


def _differentiated(model: Model, x: Tensor, loss: Loss, *labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    x = x.detach().requires_grad_()
    with torch.enable_grad():
        try:
            z = model(x)
        except RuntimeError as error:
            if "Inference tensors" not in str(error):
                raise
            raise UsageError("the model was made in torch.inference_mode(): make it outside, for gradients") from None
        losses = loss(z, *labels)
        total = losses.sum()  # with grad_outputs in its place, PyTorch imports SymPy first: a second
    if not losses.requires_grad:
        raise NoGradient("the model's logits have no gradient in its input: attack it with Square (protocol 'square')")
    (gradient,) = torch.autograd.grad(total, x)
    # Use the images' strides: those of a channels_last model's gradient would slow down every later sum.
    return z.detach(), losses.detach(), torch.empty_like(x).copy_(gradient).nan_to_num_(0, 0, 0)


def estimate(model: Model, x: Tensor, y: Tensor) -> Tensor:
    """Logits [N, K] from the guide of the model, if it has one; those that leave the decision open are the model's."""
    return _decided(model, x, rough(model)(x), y)


def rough(model: Model) -> Model:
    """The guide of a model (:mod:`zoo.attacks.guide`), or the model itself if it has none."""
    return model.rough if isinstance(model, Guarded | Guided) else model


def _decided(model: Model, x: Tensor, z: Tensor, y: Tensor) -> Tensor:
    """Logits ``z`` [N, K] of a guide, with those of the model in place of what leaves the decision open."""
    if not isinstance(model, Guarded | Guided) or model.rough is model:
        return z
    unclear = (~(margin(z, y) > model.slack)).nonzero().squeeze(1)  # NaN too
    if len(unclear):
        filled = padded(unclear)
        with torch.no_grad():
            z[filled] = model(x[filled])
    return z


def runners_up(z: Tensor, y: Tensor, n: int) -> Tensor:
    """The n likeliest wrong classes, by descending logit: [N, min(n, K - 1)]."""
    wrong = z.scatter(1, y[:, None], -torch.inf)
    return wrong.topk(min(n, z.shape[1] - 1), dim=1).indices


def check_dlr(z: Tensor) -> None:
    if z.shape[1] < DLR_CLASSES:
        raise UsageError(f"the DLR loss needs at least {DLR_CLASSES} classes, but the model has {z.shape[1]}")
