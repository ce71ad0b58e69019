"""Checks of the arguments of public functions: a value of a wrong type is refused in one sentence."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from numbers import Integral, Real
from os import PathLike
from types import NoneType
from typing import Any, get_args

from zoo.system.errors import UsageError

NOUNS = {
    str: "a string",
    Integral: "a whole number",
    Real: "a number",
    PathLike: "a path",
    Callable: "a function",
    Mapping: "a mapping",
    Sequence: "a sequence",
    NoneType: "None",
}


def typed(**given: tuple[Any, Any]) -> None:
    """Check arguments, each given as its value and its type: ``typed(n=(n, Integral | None))``. No bool is a number.

    Raises:
        UsageError: a value has another type; the message names the argument.
    """
    for name, (value, kind) in given.items():
        if not isinstance(value, kind) or isinstance(value, bool):
            nouns = [NOUNS.get(one, f"a value of type {one.__name__}") for one in get_args(kind) or (kind,)]
            raise UsageError(f"{name} must be {' or '.join(nouns)}, not a value of type {type(value).__name__}")
