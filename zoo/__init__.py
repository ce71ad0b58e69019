"""Robust Zoo: small adversarially robust image classifiers, picked by a compute budget.

``load`` a model, ``pick`` one within a budget, ``list_models``, ``info``; ``build`` and ``cost`` work on specs.
Each name is imported on first use, so ``import zoo`` is fast.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from zoo.version import __version__ as __version__

if TYPE_CHECKING:
    from zoo.models import build
    from zoo.registry.file import info
    from zoo.registry.pick import list_models, pareto, pick
    from zoo.specs import cost, parse_spec
    from zoo.system.errors import (
        DataNotFound,
        ExportFailed,
        IntegrityError,
        MissingDependency,
        NothingMatches,
        ParityGateFailed,
        RobustnessGateFailed,
        TrainingDiverged,
        UnknownModel,
        Unreachable,
        UsageError,
        WrongDevice,
        ZooError,
    )
    from zoo.weights.load import load

__all__ = [
    "DataNotFound",
    "ExportFailed",
    "IntegrityError",
    "MissingDependency",
    "NothingMatches",
    "ParityGateFailed",
    "RobustnessGateFailed",
    "TrainingDiverged",
    "UnknownModel",
    "Unreachable",
    "UsageError",
    "WrongDevice",
    "ZooError",
    "__version__",
    "build",
    "cost",
    "info",
    "list_models",
    "load",
    "pareto",
    "parse_spec",
    "pick",
]

_MODULES = {
    "build": "zoo.models",
    "cost": "zoo.specs",
    "info": "zoo.registry.file",
    "list_models": "zoo.registry.pick",
    "load": "zoo.weights.load",
    "pareto": "zoo.registry.pick",
    "parse_spec": "zoo.specs",
    "pick": "zoo.registry.pick",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'zoo' has no attribute '{name}'")
    value = getattr(importlib.import_module(_MODULES.get(name, "zoo.system.errors")), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
