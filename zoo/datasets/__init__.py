"""The data sets for training and evaluation.

To add one, write a file here with a ``DATASET`` and add its name to ``DATASETS``, with hyphens for underscores.
Recipes, models and registries can then name it. Importing this table imports neither torch nor numpy.

A data set is searched in this order: the folder that is passed (as ``--data``, for the data set of the model or
recipe), the folder in its environment variable (``ZOO_DATA`` for CIFAR-10), the folder with its name in ``ZOO_DATA``,
the cache, the Hub at a pinned revision. If a folder is given, no other place is searched.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from zoo.system.errors import UsageError, nearest

if TYPE_CHECKING:
    from zoo.datasets.base import Dataset
    from zoo.specs import Spec

DATASETS: dict[str, Dataset] = {
    name: import_module(f"zoo.datasets.{name.replace('-', '_')}").DATASET
    for name in (
        "cifar10",
        "cifar100",
        "imagefolder",
        "restricted-imagenet",
    )
}


def dataset_called(name: str) -> Dataset:
    """The data set called ``name``, not loaded yet.

    Raises:
        UsageError: the name is unknown; the message suggests the nearest.
    """
    if name not in DATASETS:
        raise UsageError(f"no data set is called '{name}'{nearest(name, DATASETS)} (known: {', '.join(DATASETS)})")
    return DATASETS[name]


def dataset_for(spec: Spec, name: str | None) -> Dataset:
    """The data set called ``name``; if ``name`` is None, the first with the image size and the classes of ``spec``.

    Raises:
        UsageError: the name is unknown, or no data set fits ``spec``.
    """
    if name is not None:
        return dataset_called(name)
    for dataset in DATASETS.values():
        if dataset.image_size == spec.image_size and len(dataset.classes) in (0, spec.classes):
            return dataset
    raise UsageError(
        f"no known data set has {spec.classes} classes and images of {spec.image_size} pixels: "
        'set "dataset" in the config.json of the model'
    )
