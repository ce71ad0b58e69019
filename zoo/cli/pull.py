"""``zoo pull``: have the weights of models on this machine."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from zoo.cli.options import AsJson, Offline, Quiet, model_names
from zoo.cli.output import Output, table

if TYPE_CHECKING:
    from zoo.hub.pull import Pulled


def command(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME|GLOB|hf-hub:ORG/REPO[@REVISION]", help="Which models.", autocompletion=model_names
        ),
    ],
    to: Annotated[
        Path | None, typer.Option("--to", metavar="DIR", help="Copy the files here too, for `zoo cache import`.")
    ] = None,
    offline: Offline = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Have the weights of models here: from the package, else the cache, else the Hub. Every file's hash is checked.

    Names of the registry come from the revision that it pins; of hf-hub:ORG/REPO the newest commit is taken. Private
    repositories need a token: `hf auth login`, or HF_TOKEN.

    \b
    Examples:
      zoo pull rnascl-s7-wrt34
      zoo pull 'proard-*' --to /media/usb/models
      zoo pull hf-hub:org/student@main
    """
    from zoo.hub.carry import check_target, write
    from zoo.hub.pull import pull, wanted
    from zoo.system.hub import HubFiles

    out = Output(as_json=as_json, quiet=quiet)
    if to is not None:
        check_target(to)
    hub = HubFiles(offline=offline, progress=not quiet)
    files = list({file.path: file for address in wanted(name) for file in pull(address, hub)}.values())
    written = [] if to is None else write(files, to)
    if to is not None and not written:
        out.say(
            f"nothing was written to '{to}': these weights are in the package or beside the registry, not at the Hub"
        )
    data = {"files": [_json(file) for file in files], "to": None if to is None else str(to)}
    out.result({**data, "written": [str(path) for path in written]}, lambda: _table(files))


def _json(file: Pulled) -> dict[str, Any]:
    return {**asdict(file), "path": str(file.path)}


def _table(files: list[Pulled]) -> str:
    from zoo.system.units import format_size

    said = {"package": "here", "cache": "in the cache", "hub": "downloaded"}
    rows = [[file.name, file.path.name, format_size(file.size), said[file.source], file.sha256[:16]] for file in files]
    return table(["model", "file", "size", "source", "sha256"], rows, right=(2,))
