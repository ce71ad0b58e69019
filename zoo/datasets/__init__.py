"""The data sets that models are trained and judged on.

To add one, write a file here with a ``DATASET`` and put its name in ``DATASETS``: recipes, models and registries may
name it then. Importing this table imports neither torch nor numpy.

Where a data set is: the folder that is passed (``--data`` means the data set of the model or recipe), else the one that
its own variable names (``ZOO_DATA`` for CIFAR-10), else the folder of its name in ``ZOO_DATA``, else the cache, else
the Hub at a pinned revision. A folder that is named is the only place where it is looked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from zoo.system.errors import UsageError, nearest

if TYPE_CHECKING:
    from zoo.datasets.base import Dataset
    from zoo.specs import Spec

DATASETS: dict[str, Dataset] = {
    name: import_module(f"zoo.datasets.{name}").DATASET
    for name in (
        "cifar10",
        "cifar100",
        "imagefolder",
    )
}


def dataset_called(name: str) -> Dataset:
    """The data set called ``name``, not loaded yet.

    Raises:
        UsageError: there is none; the nearest is named.
    """
    if name not in DATASETS:
        raise UsageError(f"no data set is called '{name}'{nearest(name, DATASETS)} (known: {', '.join(DATASETS)})")
    return DATASETS[name]


def dataset_for(spec: Spec, name: str | None) -> Dataset:
    """The data set called ``name``; for a model that names none, one with the images and classes that it takes.

    Raises:
        UsageError: there is none.
    """
    if name is not None:
        return dataset_called(name)
    for dataset in DATASETS.values():
        if dataset.image_size == spec.image_size and len(dataset.classes) in (0, spec.classes):
            return dataset
    raise UsageError(
        f"no data set here has {spec.classes} classes and images of {spec.image_size} pixels: "
        'name the one that the model is for in its config.json, as "dataset"'
    )
