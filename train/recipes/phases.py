"""From a recipe's TOML file to its phases: presets, overrides and the changes of each phase."""

from __future__ import annotations

import copy
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from zoo.system.errors import UsageError, nearest
from zoo.system.files import read_utf8
from zoo.train.methods.method import Section
from zoo.train.methods.rnascl import SEARCHED, RnasCL
from zoo.train.recipes.published import recipe_file
from zoo.train.recipes.schema import ONLY, SEARCH, Recipe, parse_recipe
from zoo.train.spaces import space_called
from zoo.train.spaces.rnascl import search_space
from zoo.weights.load import find


def load_recipe(source: str | Path, *, overrides: Iterable[str] = (), preset: str | None = None) -> Recipe:
    """The only phase of the recipe ``source``.

    Args and errors are those of :func:`load_phases`; UsageError also for a recipe with several phases.
    """
    phases = load_phases(source, overrides=overrides, preset=preset)
    if list(phases) != [ONLY]:
        raise UsageError(f"'{source}' has the phases {', '.join(phases)}: train it with zoo train, or choose one")
    return phases[ONLY]


def load_phases(source: str | Path, *, overrides: Iterable[str] = (), preset: str | None = None) -> dict[str, Recipe]:
    """The phases of the recipe in the file ``source``, or of the published recipe of that name, in order.

    A ``[phase.NAME]`` table changes keys of the rest of the file for that phase, as dotted keys. Without such tables
    there is one phase, called "train". An empty table, as in ``attack = {}``, removes a section. With a ``[search]``,
    the phases after the phase "search" get the architecture and the tutors that it finds; until then they have the
    largest architecture.

    Args:
        overrides: strings such as ``"train.epochs=2"`` for all phases, or ``"phase.trades.train.epochs=2"`` for one;
            values are TOML, bare words are strings.
        preset: apply the recipe's ``[preset.NAME]`` table before the overrides; its keys are like theirs.

    Raises:
        UsageError: there is no such file, it is not TOML, or the schema refuses a key or value.
    """
    path = recipe_file(source)
    try:
        data = tomllib.loads(read_utf8(path).decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"'{path}' is not TOML: {error}") from None
    presets, tables = (_tables(data.pop(key, {}), key, path) for key in ("preset", "phase"))
    if preset is not None and preset not in presets:
        raise UsageError(
            f"'{path.name}' has no preset '{preset}'{nearest(preset, presets)} (it has: {', '.join(presets) or 'none'})"
        )
    chosen: dict[str, Any] = presets[preset] if preset is not None else {}
    changes: dict[str, Any] = {}
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals:
            raise UsageError(f"--set needs KEY=VALUE, such as train.epochs=2, not '{override}'")
        changes[key.strip()] = _toml_value(text.strip())
    tables = tables or {ONLY: {}}
    for key in (*chosen, *changes):
        if key.startswith("phase.") and (key.count(".") < 2 or key.split(".")[1] not in tables):
            raise UsageError(f"'{key}' names no key of a phase of '{path.name}' (it has: {', '.join(tables)})")
    phases = {}
    for phase, table in tables.items():
        changed = copy.deepcopy(data)
        layers = [{**table}, _changes_of(phase, chosen), _changes_of(phase, changes)]
        _forget_sizes(changed, layers)
        for key, value in (one for layer in layers for one in layer.items()):
            if value == {} and _is_section(key):
                changed.pop(key, None)
                continue
            if isinstance(value, dict) and _is_section(key):  # it would replace the whole section
                raise UsageError(f'{path.name}: a phase or preset changes single keys, in quotes: "{key}.KEY" = VALUE')
            _set(changed, key, {"name": value} if key in ("method", "teacher") else value)
        if "search" in changed and SEARCH not in tables:
            raise UsageError(f"{path.name}: [search] is for a phase called 'search': add a table [phase.search]")
        phases[phase] = recipe = parse_recipe(_with_arch(_searchless(changed, phase)), path.name)
        if recipe.supernet and recipe.supernet.sort and len(phases) == 1 and not recipe.start:
            raise UsageError(f"{path.name}: supernet.sort is for weights that are trained: set start, or leave it out")
        if recipe.supernet and recipe.teacher and recipe.teacher.name not in ("largest", *list(phases)[:-1]):
            find(recipe.teacher.name, folders=True, pretrained=False)  # refuse now, not after the phases before
        if isinstance(recipe.method, RnasCL) and recipe.method.tutors == SEARCHED and SEARCH not in phases:
            raise UsageError(
                f"{path.name}: method.tutors = 'searched' needs a phase 'search' before '{phase}': "
                f"choose depth or random, or name the tutors"
            )
    return phases


def _tables(found: Any, key: str, path: Path) -> dict[str, dict[str, Any]]:
    """``found`` if it is made of tables ``[key.NAME]``; the name of a phase is that of a folder too."""
    if not isinstance(found, dict) or not all(isinstance(table, dict) for table in found.values()):
        raise UsageError(f"{path.name}: '{key}' must be made of tables: [{key}.NAME]")
    for name in found:
        if key == "phase" and not re.fullmatch(r"[\w-]+", name):
            raise UsageError(f"{path.name}: '{name}' is no name for a phase: use letters, digits, - and _")
    return found


def _is_section(key: str) -> bool:
    field = Recipe.model_fields.get(key)
    kinds = () if field is None else (field.annotation, *getattr(field.annotation, "__args__", ()))
    return any(isinstance(kind, type) and issubclass(kind, Section) for kind in kinds)


def _changes_of(phase: str, changes: Mapping[str, Any]) -> dict[str, Any]:
    """The changes for ``phase``: first those for all phases, then those under "phase.NAME."."""
    prefix = f"phase.{phase}."
    everywhere = {key: value for key, value in changes.items() if not key.startswith("phase.")}
    return everywhere | {key.removeprefix(prefix): value for key, value in changes.items() if key.startswith(prefix)}


def _forget_sizes(data: dict[str, Any], layers: Sequence[dict[str, Any]]) -> None:
    """Where a layer changes the norm of the attack, remove eps and step from ``data`` and from the layers before it:
    they are on the scale of the other norm."""
    attack = data.get("attack")
    stated = attack if isinstance(attack, dict) else {}
    norm = stated.get("norm", "linf")
    for place, layer in enumerate(layers):
        if layer.get("attack.norm", norm) == norm:
            continue
        norm = layer["attack.norm"]
        for key in ("eps", "step"):
            stated.pop(key, None)
            for before in layers[:place]:
                before.pop(f"attack.{key}", None)


def _searchless(data: dict[str, Any], phase: str) -> dict[str, Any]:
    """``data`` with the largest architecture of its space, and without [search] unless ``phase`` is the search."""
    search = data.get("search")
    if isinstance(search, dict) and "space" in search:
        if "arch" in data:
            raise UsageError("a [search] finds the architecture: remove [arch] or [search]")
        data["arch"] = search_space(str(search["space"])).largest.to_dict()
    supernet = data.get("supernet")
    if isinstance(supernet, dict) and "space" in supernet:
        if "arch" in data:
            raise UsageError("the space of [supernet] has the architectures: remove [arch] or [supernet]")
        space = space_called(str(supernet["space"]))
        data["arch"] = space.spec(space.largest[0]).to_dict()
    if phase != SEARCH:
        data.pop("search", None)
    return data


def _with_arch(data: dict[str, Any]) -> dict[str, Any]:
    """``data`` with the architecture of its start model, unless it has an [arch]."""
    if "start" in data and "arch" not in data:
        data["arch"] = find(str(data["start"]), folders=True, pretrained=False).spec.to_dict()
    return data


def _toml_value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _set(data: dict[str, Any], dotted: str, value: Any) -> None:
    *sections, key = dotted.split(".")
    for section in sections:
        data = data.setdefault(section, {})
        if not isinstance(data, dict):
            raise UsageError(f"'{dotted}' is not a key of the recipe: '{section}' is a value, not a section")
    data[key] = value
