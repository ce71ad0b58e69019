"""Options of one engine: ``{"hardware": "ampere_plus"}``, or KEY=VALUE on the command line.

An engine's module names them in a dataclass ``Options``, which its ``build`` takes, and in ``LOADING`` those that its
``load`` takes too. ``TRUSTED`` are never taken from a manifest: they must be asked for again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import TypeAdapter, ValidationError

from zoo.export.engines import Backend
from zoo.system.errors import UsageError, nearest

TRUSTED = ("host_code",)


def parse_pairs(pairs: Iterable[str]) -> dict[str, str]:
    """``["a=1", "b=x"]`` as ``{"a": "1", "b": "x"}``.

    Raises:
        UsageError: one is not KEY=VALUE.
    """
    given = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key.strip():
            raise UsageError(f"an engine's option is KEY=VALUE, such as provider=cuda, not '{pair}'")
        given[key.strip()] = value.strip()
    return given


def options_of(engine: Backend, given: Mapping[str, Any]) -> Any:
    """``given`` as the engine's ``Options``; None where nothing is given.

    Raises:
        UsageError: the engine has no such option, or the option no such value.
    """
    if not given:
        return None
    kind = getattr(engine.load_module(), "Options", None)
    known = list(kind.__dataclass_fields__) if kind else []
    for key in given:
        if key not in known:
            has = f"it has: {', '.join(known)}" if known else "it has none"
            raise UsageError(f"{engine.name} has no option '{key}'{nearest(key, known)} ({has})")
    try:
        return TypeAdapter(kind).validate_python(dict(given))
    except ValidationError as error:
        first = error.errors()[0]
        raise UsageError(f"{engine.name}: option '{first['loc'][0]}': {first['msg']}, not '{first['input']}'") from None


def loading(engine: Backend, options: Mapping[str, Any]) -> dict[str, Any]:
    """Those of ``options`` that the engine's ``load`` takes."""
    return {key: options[key] for key in getattr(engine.load_module(), "LOADING", ()) if key in options}


def reloading(engine: Backend, recorded: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """The options for ``load``, of an engine that a manifest has ``recorded`` some of, and what is ``given`` now.

    Raises:
        UsageError: an option is given that matters only when an engine is built, or as in :func:`options_of`.
    """
    chosen = options_of(engine, given)
    fresh = loading(engine, {key: getattr(chosen, key) for key in given})
    for key in given:
        if key not in fresh:
            raise UsageError(f"'{key}' is set when a {engine.name} engine is built: export it again")
    return {key: one for key, one in loading(engine, recorded).items() if key not in TRUSTED} | fresh
