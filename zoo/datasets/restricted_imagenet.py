"""Restricted-ImageNet: nine super-classes of ImageNet (Tsipras et al. 2019, "Robustness May Be at Odds with Accuracy").

The folder is ImageNet's, with its 1,000 synset folders: sorted by name, they give ImageNet's class indices. Images of
other synsets are ignored. The super-classes have different numbers of images: more than half are dogs.
"""

from __future__ import annotations

from zoo.datasets.imagefolder import IMAGEFOLDER, ImageFolder

RANGES = {  # of ImageNet's class indices, first and last
    "dog": (151, 268),
    "cat": (281, 285),
    "frog": (30, 32),
    "turtle": (33, 37),
    "bird": (80, 100),
    "primate": (365, 382),
    "fish": (389, 397),
    "crab": (118, 121),
    "insect": (300, 319),
}

DATASET = RESTRICTED_IMAGENET = ImageFolder(
    name="restricted-imagenet",
    title="Restricted-ImageNet",
    classes=tuple(RANGES),
    image_size=IMAGEFOLDER.image_size,
    mean=IMAGEFOLDER.mean,
    std=IMAGEFOLDER.std,
    variable="ZOO_RESTRICTED_IMAGENET",
    ranges=RANGES,
    folders=1000,
)
