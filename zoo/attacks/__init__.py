"""White-box and black-box attacks within eps of an image, in l-infinity and l2: ``attack(model, x, y, *, eps, ...)``.

All take images [N, C, H, W] in [0, 1] and labels [N], and return adversarial images of the same shape, type and device.
The model maps images to logits, in eval mode. ``square`` accepts any function; the other attacks need its gradients.

To add one, write a file with a function under ``@attack(name)`` and import it here; one that does not follow gradients
step by step states its ``Kind``. Protocols can then name it, and set its ``step``, ``steps``, ``restarts``, ``loss``
and ``queries``; one in :data:`zoo.evaluation.protocols.PROTOCOLS` makes it known to ``zoo eval``. Its loop says how far
it has come (:mod:`zoo.attacks.pulse`).
"""

from zoo.attacks.apgd import apgd, apgd_targeted
from zoo.attacks.autoattack import autoattack
from zoo.attacks.deepfool import deepfool
from zoo.attacks.fab import fab_targeted
from zoo.attacks.inputs import ATTACKS, Model
from zoo.attacks.losses import broken, margin
from zoo.attacks.pgd import fgsm, mifgsm, pgd, pgd_targeted, uniform
from zoo.attacks.square import square

__all__ = [
    "ATTACKS",
    "Model",
    "apgd",
    "apgd_targeted",
    "autoattack",
    "broken",
    "deepfool",
    "fab_targeted",
    "fgsm",
    "margin",
    "mifgsm",
    "pgd",
    "pgd_targeted",
    "square",
    "uniform",
]
