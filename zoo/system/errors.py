"""The package's errors. Each message is one sentence for the user; each class has an exit code for the CLI."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import ValidationError


class ZooError(Exception):
    """Base class of the errors that Robust Zoo raises."""

    exit_code = 1


class UsageError(ZooError):
    """The request is invalid: a flag, a budget, a recipe, an input batch."""

    exit_code = 2


class UnknownModel(ZooError):
    """No registry entry has this name."""

    exit_code = 3


class NothingMatches(ZooError):
    """No registry entry, or no sub-net, satisfies the constraints."""

    exit_code = 3


class Unreachable(ZooError):
    """A file is neither local nor cached, and the network cannot be used."""

    exit_code = 4


class DataNotFound(Unreachable):
    """The data set is neither in the given folder, nor in the cache, nor available from the Hub."""


class IntegrityError(ZooError):
    """A file is damaged, altered, or not what it claims to be."""

    exit_code = 5


class MissingDependency(ZooError):
    """A backend or an optional package is not installed."""

    exit_code = 6


class ExportFailed(ZooError):
    """A model could not be converted or an engine could not be built or written."""

    exit_code = 7


class ParityGateFailed(ZooError):
    """The engine's logits or its clean accuracy differ too much from the float twin's."""

    exit_code = 8


class RobustnessGateFailed(ZooError):
    """The engine was not shown to be as robust as its float twin, within the margin."""

    exit_code = 9


class WrongDevice(ZooError):
    """An engine was built for another device or runtime version."""

    exit_code = 10


class TrainingDiverged(ZooError):
    """The model lost its robustness (or its loss became NaN) more often than rollbacks can repair."""

    exit_code = 11


def nearest(word: str, known: Iterable[str], n: int = 3, *, merit: Callable[[str], float] = lambda name: 0.0) -> str:
    """A clause with the names closest to ``word``: ``"; did you mean 'a' or 'b'?"``, or ``""`` if none is close.

    ``merit`` of a name is added to its similarity, a share, to prefer some among names that are about as close.
    """
    close = difflib.get_close_matches(word, names := list(known), n=len(names) or 1, cutoff=0.5)
    close = sorted(close, key=lambda name: -difflib.SequenceMatcher(None, name, word).ratio() - merit(name))[:n]
    return "; did you mean " + " or ".join(f"'{name}'" for name in close) + "?" if close else ""


def first_line(error: BaseException) -> str:
    """The first line of an error's message that is not blank, or the name of its class."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def first_fault(error: ValidationError) -> str:
    """The first fault that pydantic found: ``" at 'models.small.macs': Input should be ..."``."""
    first = error.errors()[0]
    where = ".".join(map(str, first["loc"]))
    fault = f"{first['input']!r} is malformed" if first["type"] == "string_pattern_mismatch" else first["msg"]
    return (f" at '{where}'" if where else "") + f": {fault}"
