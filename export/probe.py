"""The probe of a bundle: a few images and what the float model answers, to check any other runtime with."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from zoo.datasets.base import Split, to_float
from zoo.evaluation.perturb import perturb
from zoo.evaluation.protocols import PROTOCOLS
from zoo.evaluation.threat import ThreatModel
from zoo.export.engines.twin import Twin
from zoo.export.ladder.climb import random_images
from zoo.export.ladder.rungs import spread
from zoo.models import Classifier
from zoo.system.errors import IntegrityError, UsageError

FOLDER, CLEAN, ADVERSARIAL = "probe", "clean", "adversarial"
IMAGES = 8
SAME = 1e-3  # of the logits' spread: what rounding may change from machine to machine


def write_probe(bundle: Path, model: Classifier, split: Split | None, threat: ThreatModel) -> None:
    """Write a few images, their PGD-20 neighbours, and the float model's logits of both, into the folder ``bundle``.

    Random images where there is no data; what the model says of them then stands in for their labels.
    """
    x = to_float((split or random_images(model.spec, IMAGES, seed=0)).images[:IMAGES])
    twin = Twin.of(model)
    y = torch.from_numpy(split.labels[:IMAGES].astype(np.int64)) if split else twin(x).argmax(1)
    x_adv = perturb(PROTOCOLS["pgd20"].under(threat), twin.model, x, y, early_stop=False)
    (bundle / FOLDER).mkdir()
    for kind, images in ((CLEAN, x), (ADVERSARIAL, x_adv)):
        arrays: dict[str, Any] = {"images": images.numpy(), "logits": twin(images).numpy(), "labels": y.numpy()}
        np.savez(bundle / FOLDER / f"{kind}.npz", **arrays)


def check_probe(bundle: Path, model: Classifier) -> None:
    """Check that the probe in ``bundle`` holds the answers of the float model; a missing probe claims nothing.

    Raises:
        IntegrityError: it does not, or it is damaged.
    """
    twin = Twin.of(model)
    for kind in (CLEAN, ADVERSARIAL):
        path = bundle / FOLDER / f"{kind}.npz"
        if not path.exists():
            continue
        try:
            with np.load(path) as probe:
                answers, logits = twin(probe["images"]), torch.from_numpy(probe["logits"])
        except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile, UsageError) as error:
            raise IntegrityError(f"'{path}' is not a probe of images and logits ({error}): do not use it") from None
        if logits.shape != answers.shape or not (logits - answers).abs().max() <= SAME * spread(answers):
            raise IntegrityError(
                f"'{path}' does not hold what the float model answers: it was changed after the export, do not use it"
            )
