"""``zoo compare``: two models or exported engines, on the same images."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from zoo.cli.options import AsJson, Quiet, check_model, model_names
from zoo.cli.output import Output, table
from zoo.system.errors import UsageError
from zoo.system.hub import without_network

if TYPE_CHECKING:
    from zoo.export.compare import Comparison, Subject
    from zoo.train.recipes.differences import Training

ONE = typer.Argument(
    metavar="A", help="A model's name, a bundle's folder, local-dir:PATH, or a recipe.", autocompletion=model_names
)
OTHER = typer.Argument(metavar="B", help="The same.", autocompletion=model_names)


def command(
    a: Annotated[str, ONE],
    b: Annotated[str, OTHER],
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Compare two models or exported engines: accuracy on the same images, cost, latency, training.

    Accuracies are compared in pairs, image by image, where both were measured
    on the same images under the same attack; the others are named with the
    reason. Nothing is measured anew. Of two models, the settings that differ
    between their trainings are listed. A recipe (NAME, NAME:PRESET or a TOML
    file) is compared by its settings alone, before anything is trained.

    \b
    Examples:
      zoo compare trades-s7 rnascl-s7-wrt34-2-trades
      zoo compare local-dir:runs/student/model local-dir:runs/control/model
      zoo compare ard-s7:gpu pgd-at-s7:gpu
      zoo compare bundles/s7--onnxruntime-fp32 bundles/s7--onnxruntime-int8
      zoo compare trades-s7 bundles/s7--onnxruntime-int8 --json
    """
    from zoo.export.bundle.folder import as_bundle

    recipes = [one for one in (a, b) if _recipe(one)]
    bundles = [one for one in (a, b) if one not in recipes and as_bundle(one)]
    for one in (a, b):
        if one not in recipes and one not in bundles:
            check_model(one, offline=True)
    output = Output(as_json=as_json, quiet=quiet)
    with without_network():
        trained = None if bundles else _trained(a, b)
    if recipes:
        if bundles:
            raise UsageError(
                f"'{recipes[0]}' is a recipe, which is compared with a recipe or a model, not with a bundle"
            )
        sides = [{"name": one, "kind": "recipe" if one in recipes else "model"} for one in (a, b)]
        lines = [f"{who}  {one['name']} ({one['kind']})" for who, one in zip("AB", sides, strict=True)]
        facts = {"a": sides[0], "b": sides[1], "protocols": {}, "left_out": {}, "training": trained}
        output.result(facts, lambda: "\n".join([*lines, *_settings(trained, planned=True)]))
        return

    from zoo.export.compare import compare

    found = compare(a, b)
    facts = {
        "a": found.a.facts(),
        "b": found.b.facts(),
        "protocols": found.protocols,
        "left_out": found.left_out,
        "training": trained,
    }
    output.result(facts, lambda: "\n".join([_text(found), *_settings(trained)]))


def _recipe(name: str) -> tuple[str, str | None] | None:
    """The recipe that ``name`` means, and its preset if it has one; None for a model or a bundle. A name that a recipe
    and a model share is the model's."""
    from zoo.registry.file import entry_called
    from zoo.train.recipes.published import published_recipes
    from zoo.weights.address import has_scheme

    source, _, preset = name.rpartition(":")
    if has_scheme(name):
        return None
    if name.endswith(".toml") or (name in published_recipes() and not entry_called(name)):
        return name, None
    return (source, preset) if source.endswith(".toml") or source in published_recipes() else None


def _trained(a: str, b: str) -> dict[str, Any]:
    """What differs between the trainings of two models or recipes, JSON-ready; None for "differ" if the settings of one
    of them are not known, and "notes" say why."""
    from zoo.train.recipes.differences import differences

    trainings = [_training(name) for name in (a, b)]
    notes = {who: one.note for who, one in zip("ab", trainings, strict=True) if one.note}
    one, other = (training.settings for training in trainings)
    if one is None or other is None:
        return {"differ": None, "unstated": [], "notes": notes}
    found = differences(one, other)
    differ = {key: dict(zip("ab", pair, strict=True)) for key, pair in found.settings.items()}
    return {"differ": differ, "unstated": list(found.unstated), "notes": notes}


def _training(name: str) -> Training:
    """The training that a model had, or that a recipe describes."""
    from dataclasses import asdict

    from zoo.registry.entry import Entry
    from zoo.system.hub import HubFiles
    from zoo.train.recipes.differences import planned, training_of
    from zoo.weights.load import find

    if recipe := _recipe(name):
        return planned(*recipe)
    facts = find(name, HubFiles(offline=True, progress=False), pretrained=False).facts
    return training_of(asdict(facts.train) if isinstance(facts, Entry) else facts.train, facts.spec)


def _settings(trained: dict[str, Any] | None, *, planned: bool = False) -> list[str]:
    """The lines on what differs between two trainings, none if that was not asked; ``planned``: one is a recipe's."""
    from zoo.cli.tables import wrapped

    if trained is None:
        return []
    differ, lines = trained["differ"], [""]
    if differ is None:
        lines.append("The settings of their trainings cannot be compared.")
    else:
        count = f"{len(differ) or 'No'} {'setting differs' if len(differ) == 1 else 'settings differ'}"
        lines += wrapped(f"Training: {count}{': ' if differ else ''}{', '.join(differ)}.", indent="  ")
    for key, pair in (differ or {}).items():
        lines += wrapped(f"  {key}: A {_shown(pair['a'])}; B {_shown(pair['b'])}", indent="    ")
    if trained["unstated"]:
        keys = ", ".join(trained["unstated"])
        why = "" if planned else ", as releases differ in their settings"
        lines += wrapped(f"Stated for one of them only{why}: {keys}.", indent="  ")
    for who, note in trained["notes"].items():
        lines += wrapped(f"{who.upper()}: {note}.", indent="  ")
    return lines


def _shown(value: Any) -> str:
    """A setting, or a section of them, in words."""
    if isinstance(value, dict):
        return " ".join(f"{key}={_shown(one)}" for key, one in value.items() if one is not None)
    if isinstance(value, list) and all(isinstance(one, str) for one in value):
        return ", ".join(value) or "none"
    if value is None:
        return "none"
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return value if isinstance(value, str) else json.dumps(value)


def _text(found: Comparison) -> str:
    from zoo.cli.tables import wrapped
    from zoo.weights.address import LOCAL

    lines = [f"A  {found.a.name} ({found.a.kind})", f"B  {found.b.name} ({found.b.kind})", "", _costs(found.a, found.b)]
    if found.protocols:
        lines += ["", _accuracies(found)]
        legend = (
            "Accuracy in %. A - B in points, with its paired 95 % interval (Tango's score interval); p: McNemar's "
            "exact test."
        )
        lines += ["", *wrapped(legend)]
        for letter, one in (("A", found.a), ("B", found.b)):
            if one.flags:
                lines += wrapped(f"{letter} is flagged, its accuracy may be too high: {', '.join(one.flags)}.")
    else:
        lines += ["", "No accuracy can be compared."]
    sides = {"A": found.a, "B": found.b}
    if bare := {letter: one.name for letter, one in sides.items() if one.name.startswith(LOCAL) and not one.measured}:
        how = f"zoo eval {next(iter(bare.values()))} -p released --write"
        lines += wrapped(
            f"{' and '.join(bare)} {'have' if len(bare) > 1 else 'has'} no stored measurements. With "
            f"ZOO_REGISTRY=mine.json in the environment, `{how}` adds them to a registry of your own, with the model "
            "and its weights, and zoo compare knows it there by its name."
        )
    for letter, one in sides.items():
        if not one.ran:
            lines += wrapped(
                f"{letter} was never run, so nothing is known of its accuracy: zoo verify its bundle on its device."
            )
    if found.left_out:
        lines.append("")
        for reason in dict.fromkeys(found.left_out.values()):
            names = ", ".join(name for name, why in found.left_out.items() if why == reason)
            lines += wrapped(f"Not compared: {names} ({reason}).", indent="  ")
    return "\n".join(lines)


def _costs(a: Subject, b: Subject) -> str:
    from zoo.system.units import format_count, format_ms, format_size

    rows = [
        ["MACs", format_count(a.macs), format_count(b.macs)],
        ["parameters", format_count(a.params), format_count(b.params)],
        ["size", format_size(a.size), format_size(b.size)],
    ]
    known = {(device, batch) for one in (a, b) for device, times in one.latency.items() for batch in times}
    for device, batch in sorted(known):
        row = [f"p50 ms, batch {batch}, {device}"]
        for one in (a, b):
            timed = one.latency.get(device, {}).get(batch)
            row.append(f"{format_ms(timed[0])} ({timed[1]})" if timed else "-")
        rows.append(row)
    return table(["", "A", "B"], rows)


def _accuracies(found: Comparison) -> str:
    rows = []
    for name, one in found.protocols.items():
        low, high = (100 * end for end in one["ci95"])
        p = one.get("mcnemar_p")  # none under corruptions
        rows.append(
            [
                name,
                *(f"{100 * one[who]['accuracy']:.2f}" for who in ("a", "b")),
                f"{100 * one['difference']:+.2f}",
                f"{low:+.2f} to {high:+.2f}",
                "" if p is None else f"{p:.2g}" if p > 1e-99 else "<1e-99",
                f"{one['n']:,}",
            ]
        )
    return table(["protocol", "A", "B", "A - B", "95 % interval", "p", "n"], rows)
