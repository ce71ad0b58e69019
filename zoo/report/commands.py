"""The commands that a page shows: what loads, exports, attacks and trains a model."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from shlex import join, quote, split

from zoo.registry.entry import Entry
from zoo.report.bundles import Shown
from zoo.report.choice import Measure, Task
from zoo.system.units import format_count
from zoo.train.recipes.published import published_recipes


def of_model(entry: Entry) -> Iterator[tuple[str, str]]:
    """What each command does, and the command."""
    yield "load it in Python", f'from zoo import load\n\nmodel = load("{entry.name}")'
    yield "export it, attacked again on ONNX Runtime", f"zoo export {entry.name} -f onnx"
    protocol = Task(entry.dataset, entry.threat).protocol("pgd20")
    yield "measure it yourself", f"zoo eval {entry.name} --protocol {protocol}"
    if entry.supernet:
        yield (
            "cut a student for any budget out of it",
            f"zoo search {entry.name} --flops {format_count(entry.macs / 2)}",
        )
    if entry.train.recipe in _recipes():
        yield "train it anew", f"zoo train {entry.train.recipe}"


_recipes = cache(published_recipes)


def of_bundle(shown: Shown) -> Iterator[tuple[str, str]]:
    """What each command does, and the command, in the folder above the bundle's."""
    folder = quote(shown.title)
    yield "check it and attack it again", f"zoo verify {folder}"
    if shown.signed:
        yield "and check who signed it", f"zoo verify {folder} --trust key.pub"
    yield "time it", f"zoo bench {folder}"
    if _is_export(shown.manifest.command):
        yield "as it was exported", shown.manifest.command


def _is_export(command: str) -> bool:
    """Whether a shell takes ``command``, which others may have written, for one ``zoo export`` and nothing else."""
    try:
        return command.startswith("zoo export ") and join(split(command)) == command
    except ValueError:
        return False


def of_pick(measure: Measure) -> str:
    """The command that picks by ``measure``, with ``{}`` for the budget."""
    by = "" if measure.protocol == "pgd20" else f" --by {measure.protocol}"
    return "zoo pick --flops {}" + by
