"""The images that int8 ranges are chosen by: from the training split, by index, none of them in the test split."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from zoo.datasets.base import Dataset, Split, check_fits, to_float
from zoo.evaluation.evaluate import prepare
from zoo.evaluation.perturb import perturb
from zoo.evaluation.protocols import PROTOCOLS
from zoo.evaluation.threat import LINF_8, ThreatModel
from zoo.export.bundle.manifest import Calibration
from zoo.models import Classifier
from zoo.system.arguments import typed
from zoo.system.errors import UsageError

Method = Literal["minmax", "entropy", "percentile"]
METHODS: tuple[Method, ...] = get_args(Method)
USUAL: Method = "percentile"  # of all of them the least robustness was lost with it, see docs/int8.md


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How calibration images are chosen.

    Attributes:
        n: how many.
        method: how a range follows from activations: all of them, the least Kullback-Leibler divergence between their
            histogram and the quantised one, or all but one in 100,000 at either end; None: as the engine usually does.
        adversarial: the share of the images that is attacked with PGD-20 first, so that the activations that attacks
            cause are in range.
    """

    n: int = 512
    method: Method | None = None
    adversarial: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        typed(**{"n": (self.n, Integral), "seed": (self.seed, Integral), "adversarial": (self.adversarial, Real)})
        if self.seed < 0:
            raise UsageError(f"a seed is 0 or more, not {self.seed}")
        if self.n < 1:
            raise UsageError(f"calibration takes 1 image or more, not {self.n}")
        if self.method is not None and self.method not in METHODS:
            raise UsageError(f"a calibration method is one of {', '.join(METHODS)}, not '{self.method}'")
        if not 0 <= self.adversarial <= 1:
            raise UsageError(f"the adversarial share of the calibration images is 0 to 1, not {self.adversarial:g}")


def calibration_images(
    model: Classifier, dataset: Dataset, sampling: Sampling, threat: ThreatModel = LINF_8
) -> tuple[Tensor, Calibration]:
    """Images [N, C, H, W] in [0, 1] and their record. Images that are also in the test split are left out.

    Raises:
        UsageError: more images than the training split has, or the data set is not one for the model.
    """
    check_fits(dataset, model.spec)
    train, tested = dataset.split("train"), _hashes(dataset.split("test"))
    order = np.random.default_rng(sampling.seed).permutation(len(train))
    fresh = (i for i in order if _hash(train.pixels(np.array([i]))) not in tested)
    indices = np.sort(np.fromiter((i for i, _ in zip(fresh, range(sampling.n), strict=False)), np.int64))
    if len(indices) < sampling.n:
        raise UsageError(f"{sampling.n} calibration images were asked for, and there are {len(indices)}")
    images = train.pixels(indices)
    x = to_float(images)
    attacked = round(sampling.adversarial * len(x))
    if attacked:
        y = torch.from_numpy(train.labels[indices[:attacked]].astype(np.int64))
        pgd = PROTOCOLS["pgd20"].under(threat).model_copy(update={"seed": sampling.seed})
        x[:attacked] = perturb(pgd, prepare(model), x[:attacked], y, early_stop=False)
    return x, Calibration(
        dataset=dataset.name,
        split=train.name,
        n=len(indices),
        indices_sha256=hashlib.sha256(indices.astype("<i8").tobytes()).hexdigest(),
        images_sha256=hashlib.sha256(np.ascontiguousarray(images).data).hexdigest(),
        method=sampling.method or USUAL,
        adversarial=attacked / len(x),
    )


def _hash(image: np.ndarray) -> bytes:
    return hashlib.sha256(np.ascontiguousarray(image).data).digest()


def _hashes(split: Split) -> set[bytes]:
    return {_hash(image) for image in split.images}
