"""The search spaces of dynamic nets (ProARD), by name; those of RNAS-CL are in ``rnascl.py``."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

from zoo.system.errors import UsageError, nearest
from zoo.train.spaces.dynamic import Space
from zoo.train.spaces.published import mbv3, resnet
from zoo.train.spaces.tiny import tiny

SPACES: dict[str, Callable[[], Space]] = {"tiny": tiny, "resnet": resnet, "mbv3": mbv3}


@cache
def space_called(name: str) -> Space:
    """The space of that name.

    Raises:
        UsageError: there is none; the message names the nearest.
    """
    if name not in SPACES:
        raise UsageError(f"no space is called '{name}'{nearest(name, SPACES)} (known: {', '.join(SPACES)})")
    return SPACES[name]()
