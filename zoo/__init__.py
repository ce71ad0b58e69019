"""Robust Zoo: small adversarially robust image classifiers, picked by a compute budget.

``load`` a model, ``pick`` one within a budget, ``list_models``, ``info``; ``build`` and ``cost`` work on specs.
Names are imported when they are first used, so that ``import zoo`` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from zoo.version import __version__ as __version__

if TYPE_CHECKING:
    from zoo.errors import (
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
    from zoo.models import build
    from zoo.registry import info
    from zoo.selection import list_models, pareto, pick
    from zoo.spec import cost, parse_spec
    from zoo.weights import load

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

_HOMES = {
    "build": "zoo.models",
    "cost": "zoo.spec",
    "info": "zoo.registry",
    "list_models": "zoo.selection",
    "load": "zoo.weights",
    "pareto": "zoo.selection",
    "parse_spec": "zoo.spec",
    "pick": "zoo.selection",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'zoo' has no attribute '{name}'")
    value = getattr(importlib.import_module(_HOMES.get(name, "zoo.errors")), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
