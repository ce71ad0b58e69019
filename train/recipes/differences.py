"""What differs between two trainings, setting by setting: a control should differ from its student in one thing.

Nothing here imports torch, except to read a recipe.
"""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from zoo.specs import parse_spec
from zoo.system.errors import UsageError, ZooError
from zoo.system.files import read_utf8
from zoo.train.recipes.published import RENAMED, published_recipes

LABELS = ("name", "description", "family", "paper", "reported")  # keys of a recipe that train nothing
UNATTACKED = ("natural", "kd", "rrm", "rdt")  # methods that train on clean images, as RNAS-CL does without TRADES
KINDS = {"method": "name", "own": "name", "arch": "arch"}  # sections whose keys depend on the value of one of them


@dataclass(frozen=True)
class Training:
    """The settings of a model's training as nested JSON, None if they are not known; ``note`` says where they are from,
    or why they are not known."""

    settings: dict[str, Any] | None
    note: str = ""


@dataclass(frozen=True)
class Differences:
    """``settings`` that differ: both values by dotted key, None where one has no such section; and ``unstated``, the
    keys that only one of the two states, as releases differ in their settings."""

    settings: dict[str, tuple[Any, Any]]
    unstated: tuple[str, ...] = ()


def training_of(train: Mapping[str, Any] | None, spec: Mapping[str, Any]) -> Training:
    """The training that the record ``train`` of a registry entry or a config.json describes, of a model ``spec``.

    The epochs are those that were run, which a time budget makes fewer, and names of models have the hash of their
    weights. Of several phases only the last one's settings are known; ``phases before`` has the others' names and
    epochs.
    """
    if not train or "recipe" not in train:
        return Training(None, "nothing is stored about its training")
    settings, note = train.get("settings"), ""
    if settings is None:
        settings, note = _published(train["recipe"], train.get("recipe_sha256"))
    if settings is None:
        return Training(None, note)
    try:
        settings = {key: value for key, value in settings.items() if key not in LABELS}
        *before, last = train.get("phases") or [train]
        ran = settings["train"] | {"epochs": last["epochs"] * settings["method"].get("m", 1)}  # a recipe counts replays
        if "precision" in train:
            ran["precision"] = train["precision"] or ran["precision"]
        if ran.get("precision") == "auto":  # which one that was is not stored
            del ran["precision"]
        named = {role: _model(train.get(role)) for role in ("start", "teacher")}
        settings |= {
            "arch": parse_spec(dict(spec)).to_dict(),
            "train": ran,
            "start": named["start"] or settings.get("start"),
            "teacher": settings.get("teacher") and settings["teacher"] | (named["teacher"] or {}),
            "phases before": [f"{phase['name']} ({phase['epochs']:g} epochs)" for phase in before],
        }
        _blank_unused_attack(settings)
    except (UsageError, LookupError, TypeError, AttributeError) as error:
        reason = str(error) if isinstance(error, UsageError) else "it is damaged"
        return Training(None, f"the record of its training cannot be read: {reason}")
    if before:
        note = "; ".join(filter(None, (note, "of its phases, only the last one's settings are known")))
    return Training(settings, note)


def planned(recipe: str, preset: str | None = None) -> Training:
    """The training that a recipe describes; of several phases the last one's, as in :func:`training_of`.

    Raises:
        UsageError: as :func:`zoo.train.recipes.phases.load_phases`.
    """
    from zoo.train.recipes.phases import load_phases

    *before, (_, last) = load_phases(recipe, preset=preset).items()
    settings = {key: value for key, value in last.model_dump(mode="json").items() if key not in LABELS}
    if settings["train"]["precision"] == "auto":  # it shows where it is trained
        del settings["train"]["precision"]
    settings |= {
        "start": settings["start"] and {"name": settings["start"]},
        "phases before": [f"{phase} ({one.train.epochs} epochs)" for phase, one in before],
    }
    _blank_unused_attack(settings)
    return Training(settings, "of its phases, only the last one's settings are compared" if before else "")


def _blank_unused_attack(settings: dict[str, Any]) -> None:
    """Set the attack's settings to None, except its threat model, where the method makes no attack: they are defaults
    that nothing uses."""
    methods, attack = [settings["method"]], settings.get("attack", {})
    if own := (settings.get("supernet") or {}).get("own"):
        methods.append(own)
    if all(one["name"] in UNATTACKED or one.get("hard") == "natural" for one in methods):
        settings["attack"] = attack | dict.fromkeys({"step", "steps", "objective"} & attack.keys())


def _model(record: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The name of a model and the hash of its weights."""
    return {"name": record["name"], "weights": record["weights_sha256"][:12]} if record else None


def differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> Differences:
    """What differs between the settings of two trainings."""
    found = dict(_different(a, b))
    unstated = {key for key, pair in found.items() if any(value is ... for value in pair)}
    return Differences({key: pair for key, pair in found.items() if key not in unstated}, tuple(sorted(unstated)))


def _different(a: Mapping[str, Any], b: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, tuple[Any, Any]]]:
    """Keys and both values; a value is ``...`` where the key is missing."""
    for key in dict.fromkeys([*a, *b]):
        x, y = a.get(key, ...), b.get(key, ...)
        where = f"{path}{key}"
        if not (isinstance(x, dict) and isinstance(y, dict)):
            if x != y:
                yield where, (x, y)
            continue
        kind = KINDS.get(key)
        if kind and x.get(kind) != y.get(kind):  # keys of one of them say what it is; those of both are compared
            shared = (x.keys() & y.keys()) - {kind}
            one, other = ({k: v for k, v in each.items() if k not in shared} for each in (x, y))
            yield where, (one, other)
            x, y = ({k: v for k, v in each.items() if k in shared} for each in (x, y))
        yield from _different(x, y, f"{where}.")


def _published(name: str, sha256: str | None) -> tuple[dict[str, Any] | None, str]:
    """The settings of the published recipe that leaves models called ``name``, and a note; None if there is none."""
    from zoo.train.recipes.phases import load_phases

    name = RENAMED.get(name, name)
    for path in published_recipes().values():
        data = tomllib.loads(read_utf8(path).decode())
        if name in (data["name"], *(phase.get("name") for phase in data.get("phase", {}).values())):
            try:
                settings = [one for one in load_phases(path).values() if one.name == name][-1].model_dump(mode="json")
            except ZooError as error:
                return None, f"its published recipe '{path.stem}' cannot be read: {error}"
            same = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest() == sha256
            return settings, "" if same else f"its settings are those of the recipe '{path.stem}' as published today"
    return None, f"its settings are not stored, and no recipe '{name}' is published"
