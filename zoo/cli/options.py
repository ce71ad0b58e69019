"""Options that verbs share: one spelling, one help text."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from zoo.system.errors import ZooError


def model_names(incomplete: str) -> list[str]:
    """Names and aliases of the registry that start so, for the shell to complete."""
    from zoo.registry.file import load_registry

    try:
        return [name for name in load_registry().named if name.startswith(incomplete)]
    except ZooError:  # there is no place for a message while a shell completes
        return []


def protocol_names(incomplete: str) -> list[str]:
    """Names of the registry's protocols that start so, for the shell to complete."""
    from zoo.registry.file import load_registry

    try:
        return [name for name in load_registry().protocols if name.startswith(incomplete)]
    except ZooError:
        return []


def engine_names(incomplete: str) -> list[str]:
    """Names of engines and their aliases that start so, for the shell to complete; after a comma, of the last one."""
    from zoo.export.engines import names

    before, comma, last = incomplete.rpartition(",")
    return [f"{before}{comma}{name}" for name in names() if name.startswith(last)]


AsJson = Annotated[bool, typer.Option("--json", help="Only JSON on stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No messages, no progress.")]
Offline = Annotated[bool, typer.Option("--offline", help="Never use the network.")]
EngineOptions = Annotated[
    list[str] | None,
    typer.Option("--engine-option", "-O", metavar="KEY=VALUE", help="Of this engine alone, as provider=cuda."),
]
Data = Annotated[
    Path | None,
    typer.Option(
        "--data",
        metavar="DIR",
        help="Where the model's data set is (else ZOO_DATA for CIFAR-10, ZOO_DATA_CIFAR100, ZOO_IMAGENET; the cache; "
        "the Hub).",
    ),
]
ModelName = Annotated[str, typer.Argument(metavar="NAME", help="A model's name.", autocompletion=model_names)]
By = Annotated[
    str, typer.Option("--by", metavar="PROTOCOL", help="Rank by this protocol.", autocompletion=protocol_names)
]
