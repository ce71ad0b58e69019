"""``zoo cache``: what is stored on this machine, whether it is whole, and how to remove it or bring it in."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from zoo.cli.options import AsJson, Quiet
from zoo.cli.output import Output, table
from zoo.system.errors import IntegrityError, UsageError, nearest

if TYPE_CHECKING:
    from zoo.hub.cache import Item

ACTIONS = ("ls", "verify", "rm", "import")


def command(
    action: Annotated[str, typer.Argument(metavar="ls|verify|rm|import", autocompletion=lambda: list(ACTIONS))],
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME|GLOB|DIR]...", help="Which; import takes a folder.")
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="With rm: all that ls shows.")] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """What the caches hold: weights and data from the Hub, decoded data sets, teachers' answers.

    ls lists them, verify compares them with their hashes (exit code 5 if one is damaged), rm removes them, and import
    takes in a folder that `zoo pull --to` wrote on another machine. The Hub's cache is shared with other programs: only
    what was downloaded by zoo is listed, and removed.

    \b
    Examples:
      zoo cache ls
      zoo cache verify
      zoo cache rm 'cifar10-*'
      zoo cache import /media/usb/models
    """
    given, out = names or [], Output(as_json=as_json, quiet=quiet)
    if action not in ACTIONS:
        raise UsageError(f"zoo cache does not know '{action}'{nearest(action, ACTIONS)} (known: {', '.join(ACTIONS)})")
    if everything and action != "rm":
        raise UsageError(f"--all is of zoo cache rm; {action} without names is about everything")
    if action == "import":
        return _import(given, out)
    if action == "rm":
        return _remove(given, everything, out)

    from zoo.hub.cache import chosen

    found = chosen(given, everything=not given)
    if action == "ls":
        total = sum(item.size for item in found)
        shown = {"items": [item.facts() for item in found], "size": total}
        return out.result(shown, lambda: _table(found, total))
    _verify(found, out)


def _table(found: list[Item], total: int) -> str:
    from zoo.system.units import format_size

    if not found:
        return "The caches are empty."
    rows = [[item.name, item.kind, format_size(item.size)] for item in found]
    places = dict.fromkeys(str(item.place) for item in found)
    shown = table(["name", "what", "size"], [*rows, ["all", "", format_size(total)]], right=(2,))
    return "\n".join([shown, "", *(f"in {place}" for place in places)])


def _verify(found: list[Item], out: Output) -> None:
    checked = [{**item.facts(), "damaged": [str(path) for path in item.damaged()]} for item in found]
    damaged = [path for item in checked for path in item["damaged"]]
    hashed = sum(item.hashed for item in found)
    text = f"{hashed} of {len(found)} items have stored hashes; all of their files are as they were stored."
    if damaged:
        text = "\n".join([*(f"damaged: {path}" for path in damaged), "Remove them with `zoo cache rm`."])
    out.result({"items": checked}, text)
    if damaged:
        raise typer.Exit(IntegrityError.exit_code)


def _remove(given: list[str], everything: bool, out: Output) -> None:
    from zoo.hub.cache import chosen
    from zoo.system.units import format_size

    if bool(given) == everything:
        raise UsageError("zoo cache rm takes names, or --all: `zoo cache ls` shows them")
    removed, kept, freed = [], [], 0
    for item in chosen(given, everything=everything):
        try:
            freed += item.remove()
            removed.append(item.facts())
        except (UsageError, OSError) as error:
            why = str(error) if isinstance(error, UsageError) else f"it cannot be removed ({error.strerror})"
            kept.append({**item.facts(), "why": why})
            out.say(f"'{item.name}' stays: {why}")
    data = {"removed": removed, "kept": kept, "freed": freed}
    out.result(data, f"{len(removed)} items removed, {format_size(freed)} freed.")


def _import(given: list[str], out: Output) -> None:
    from dataclasses import asdict

    from zoo.hub.carry import take_in

    if len(given) != 1:
        raise UsageError("zoo cache import takes one folder, which `zoo pull --to` wrote")
    files = take_in(Path(given[0]).expanduser())
    repos = ", ".join(dict.fromkeys(f"{file.repo_id} at {file.revision[:12]}" for file in files))
    out.result({"files": [asdict(file) for file in files]}, f"{len(files)} files are in the Hub's cache now: {repos}")
