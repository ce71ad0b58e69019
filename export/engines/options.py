"""Options of one engine: ``{"hardware": "ampere_plus"}``, or KEY=VALUE on the command line.

An engine's module names them in a dataclass ``Options``, which its ``build`` takes, and in ``LOADING`` those that its
``load`` takes too; its ``check``, if there is one, refuses those that this machine cannot meet. An option that is a
mapping is given as a whole or an entry at a time: ``{"config.KEY": "1"}``. ``TRUSTED`` are never taken from a manifest:
they must be asked for again. If ``Options`` has a ``device``, it is in the bundle's name: None for the usual one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import TypeAdapter, ValidationError

from zoo.export.engines import Backend
from zoo.system.errors import UsageError, nearest

TRUSTED = ("host_code",)


def parse_pairs(pairs: Iterable[str]) -> dict[str, str]:
    """``["a=1", "b=x"]`` as ``{"a": "1", "b": "x"}``.

    Raises:
        UsageError: one is not KEY=VALUE, or a key is given twice.
    """
    given: dict[str, str] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key.strip():
            raise UsageError(f"an engine's option is KEY=VALUE, such as provider=cuda, not '{pair}'")
        if key.strip() in given:
            raise UsageError(f"option '{key.strip()}' is given twice: give it once")
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
    whole = _whole(given)
    for key in whole:
        if key not in known:
            has = f"it has: {', '.join(known)}" if known else "it has none"
            raise UsageError(f"{engine.name} has no option '{key}'{nearest(key, known)} ({has})")
    assert kind is not None  # without one no key is known
    try:
        return TypeAdapter(kind).validate_python(whole)
    except ValidationError as error:
        first = error.errors()[0]
        name, *_ = first["loc"]
        meant = nearest(str(first["input"]), re.findall("'(.+?)'", first["msg"]))
        raise UsageError(f"{engine.name}: option '{name}': {first['msg']}, not '{first['input']}'{meant}") from None


def check_here(engine: Backend, given: Mapping[str, Any]) -> None:
    """Refuse options that this machine cannot meet, before a model is loaded.

    Raises:
        MissingDependency, WrongDevice: what they ask for is not installed, or not here.
    """
    check = getattr(engine.load_module(), "check", None)
    if check and given:
        check(options_of(engine, given))


def _whole(given: Mapping[str, Any]) -> dict[str, Any]:
    """``{"config.a": "1", "config.b": "0"}`` as ``{"config": {"a": "1", "b": "0"}}``; what has no dot as it is."""
    whole: dict[str, Any] = {}
    for key, value in given.items():
        name, dot, entry = str(key).partition(".")
        if name in whole and not (dot and isinstance(whole[name], dict)):
            raise UsageError(f"option '{name}' is given twice, or as a whole and by its entries: give it once")
        whole[name] = {**whole.get(name, {}), entry: value} if dot else value
    return whole


def loading(engine: Backend, options: Mapping[str, Any]) -> dict[str, Any]:
    """Those of ``options`` that the engine's ``load`` takes."""
    return {key: options[key] for key in getattr(engine.load_module(), "LOADING", ()) if key in options}


def patient(engine: Backend, options: Mapping[str, Any]) -> dict[str, Any]:
    """``options`` for ``load``, and that the engine's threads sleep while there is nothing for them to do.

    ONNX Runtime's threads spin by default, which answers a single image sooner. Under attack an engine waits for the
    attack most of the time, and spinning threads take the processor from it. Several attacks ask it, and it answers
    two at once sooner than one after the other with twice the threads. The answers are the same.
    """
    return {**options, **getattr(engine.load_module(), "PATIENT", {})}


def reloading(engine: Backend, recorded: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """The options for ``load``, of an engine that a manifest has ``recorded`` some of, and what is ``given`` now.

    Raises:
        UsageError: an option is given that matters only when an engine is built, or as in :func:`options_of`.
    """
    fresh = _whole(given)
    kept = {key: one for key, one in loading(engine, recorded).items() if key not in TRUSTED}
    if "provider" in fresh:
        kept.pop("provider_options", None)  # of another
    for key, one in fresh.items():
        kept[key] = {**kept[key], **one} if isinstance(one, dict) and isinstance(kept.get(key), dict) else one
    chosen = options_of(engine, kept)
    for key in fresh:
        if not loading(engine, {key: None}):
            raise UsageError(f"'{key}' is set when a {engine.name} engine is built: export it again")
    return {key: getattr(chosen, key) for key in kept}
