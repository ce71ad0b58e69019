"""Options that verbs share: one spelling, one help text."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from zoo.system.errors import UsageError, ZooError

if TYPE_CHECKING:
    from zoo.export.bundle.keys import SigningKey
    from zoo.weights.load import Found
    from zoo.weights.own import Own


def _of_registry(table: str) -> Callable[[str], list[str]]:
    """What completes names of the registry's ``table``, for the shell."""

    def complete(incomplete: str) -> list[str]:
        from zoo.registry.file import load_registry

        try:
            return [name for name in getattr(load_registry(), table) if name.startswith(incomplete)]
        except ZooError:  # there is no place for a message while a shell completes
            return []

    return complete


model_names, protocol_names = _of_registry("named"), _of_registry("protocols")


def _words(known: Callable[[], Iterable[str]]) -> Callable[[str], list[str]]:
    """What completes the words that ``known`` returns, for the shell; after a comma, the last of a list."""

    def complete(incomplete: str) -> list[str]:
        before, comma, last = incomplete.rpartition(",")
        return [f"{before}{comma}{word}" for word in known() if word.startswith(last)]

    return complete


def _engines() -> Iterable[str]:
    from zoo.export.engines import names

    return names()


def _recipes() -> Iterable[str]:
    from zoo.train.recipes.published import published_recipes

    return published_recipes()


def _datasets() -> Iterable[str]:
    from zoo.datasets import DATASETS

    return DATASETS


def _protocols() -> Iterable[str]:
    from zoo.evaluation.protocols import PROTOCOLS

    return PROTOCOLS


def _corruptions() -> Iterable[str]:
    from zoo.evaluation.corruptions import KINDS

    return ("all", "none", *KINDS)


engine_names, recipe_names, attack_names = map(_words, (_engines, _recipes, _protocols))


def check_model(
    name: str, *, folders: bool = False, offline: bool = False, say: Callable[[str], None] = lambda sentence: None
) -> Found:
    """What :func:`zoo.weights.load.find` finds, without weights, or raises if it is not there; torch is not imported.

    ``say`` takes one sentence if the name has a budget that is no limit.
    """
    from zoo.registry.file import no_limit
    from zoo.system.hub import HubFiles
    from zoo.weights.load import find

    found = find(name, HubFiles(offline=offline, progress=False), pretrained=False, folders=folders)
    if sentence := no_limit(name):
        say(sentence)
    return found


def to_measure(
    name: str, dataset: str | None, *, offline: bool = False, say: Callable[[str], None] = lambda sentence: None
) -> Found | Own:
    """What :func:`check_model` finds, or a model of the user's own, which classifies ``dataset``. Torch is imported
    only for a file.

    Raises:
        UsageError: a data set was given for a model that has its own.
    """
    from zoo.weights.address import FILE, OWN, OWN_KIND, Address
    from zoo.weights.own import own_model

    if (address := Address.parse(name)).scheme == OWN:
        return own_model(address, dataset)
    if address.scheme == FILE:
        from zoo.export.files import own_file

        return own_file(address, dataset)
    if dataset is not None:
        raise UsageError(f"--dataset is for {OWN_KIND}: '{name}' is measured on its own data set")
    return check_model(name, offline=offline, say=say)


def parts(text: str, option: str) -> list[str]:
    """The parts of a list with commas, each once.

    Raises:
        UsageError: one is empty.
    """
    found = list(dict.fromkeys(part.strip() for part in text.split(",")))
    if "" in found:
        raise UsageError(f"{option} takes a list with commas and no empty part in it, not '{text}'")
    return found


def batch_sizes(text: str) -> tuple[int, ...]:
    """``"1,8,64"`` as ``(1, 8, 64)``.

    Raises:
        UsageError: one of them is not a positive integer.
    """
    sizes = [part.strip() for part in text.split(",")]
    if not all(size.isascii() and size.isdigit() and int(size) > 0 for size in sizes):
        raise UsageError(f"--batch takes positive integers, as 1,8,64, not '{text}'")
    return tuple(int(size) for size in sizes)


def options_in(ctx: typer.Context, names: Iterable[str]) -> list[str]:
    """Those of the parameters ``names`` that were given on the command line, as they are spelled there at length."""
    spelled = {one.name: max(one.opts, key=len) for one in ctx.command.params}
    sources = {name: ctx.get_parameter_source(name) for name in names}
    return [spelled[name] for name, source in sources.items() if source and source.name != "DEFAULT"]


AsJson = Annotated[bool, typer.Option("--json", help="Only JSON on stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No messages, no progress.")]
Offline = Annotated[bool, typer.Option("--offline", help="Never use the network.")]


def share_of(margin: float | None) -> float | None:
    """``--margin`` in points as a share; None where it is not given.

    Raises:
        UsageError: it is not above 0 and below 100.
    """
    if margin is not None and not 0 < margin < 100:
        raise UsageError(f"--margin is a number of points above 0 and below 100, not {margin:g}")
    return None if margin is None else margin / 100


def key_of(path: Path | None) -> SigningKey | None:
    """The private key of ``--sign``; on a terminal the passphrase of an encrypted one is asked for.

    Raises:
        UsageError, MissingDependency: see :func:`zoo.export.bundle.keys.signing_key`.
    """
    if path is None:
        return None
    from getpass import getpass

    from zoo.export.bundle.keys import signing_key

    return signing_key(path, ask=getpass if sys.stdin.isatty() and sys.stderr.isatty() else None)


RegistryFile = Annotated[
    Path | None,
    typer.Option("--registry", metavar="FILE", help="Your own registry; else ZOO_REGISTRY, or the released one."),
]
EngineOptions = Annotated[
    list[str] | None,
    typer.Option("--engine-option", "-O", metavar="KEY=VALUE", help="Of this engine alone, as threads=4."),
]
Data = Annotated[
    Path | None,
    typer.Option(
        "--data",
        metavar="DIR",
        help="The folder of the model's data set (else of its variable, which zoo doctor lists; the cache; the Hub).",
    ),
]
ModelName = Annotated[str, typer.Argument(metavar="NAME", help="A model's name.", autocompletion=model_names)]
OwnDataset = Annotated[
    str | None,
    typer.Option(
        "--dataset",
        metavar="NAME",
        help="What a model of your own classifies (default: cifar10).",
        autocompletion=_words(_datasets),
        show_default=False,
    ),
]
By = Annotated[
    str, typer.Option("--by", metavar="PROTOCOL", help="Rank by this protocol.", autocompletion=protocol_names)
]

# Limits.
Macs = Annotated[
    str | None, typer.Option("--flops", "--macs", metavar="COUNT", help="At most so many MACs an image, as 15M.")
]
MinClean = Annotated[str | None, typer.Option(metavar="SHARE", help="Clean accuracy, as 0.7 or 70%.")]
MinUnderAttack = Annotated[str | None, typer.Option(metavar="SHARE", help="Accuracy under the --by protocol.")]
Family = Annotated[str | None, typer.Option(metavar="GLOB", help="Only these families.")]
BatchSize = Annotated[int, typer.Option(min=1, help="At most so many images are attacked at once.")]

# Of exports and their sign-off.
Sign = Annotated[
    Path | None,
    typer.Option("--sign", metavar="KEY", help="Sign the bundle with this private key (EC P-256, PEM)."),
]
Precisions = Annotated[
    str,
    typer.Option(
        "--precision",
        metavar="PRECISION",
        help="fp32, fp16 or int8; zoo export takes a list.",
        autocompletion=_words(lambda: ("fp32", "fp16", "int8")),
    ),
]
Batches = Annotated[str, typer.Option("--batch", metavar="SIZES", help="Batch sizes that are used, with commas.")]
Level = Annotated[
    str | None,
    typer.Option(
        "--verify",
        metavar="LEVEL",
        help="none, parity, clean or attacked; else as far as the data allow.",
        autocompletion=_words(lambda: ("none", "parity", "clean", "attacked")),
    ),
]
Out = Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Where the bundle goes.")]
Force = Annotated[bool, typer.Option("--force", help="Replace a bundle that is there.")]
KeepFailed = Annotated[bool, typer.Option("--keep-failed", help="Keep what failed its gates, as BUNDLE.failed.")]
Margin = Annotated[
    float | None,
    typer.Option(
        metavar="POINTS", help="Accuracy that the engine may lose at most, in points; else 1, or as exported."
    ),
]
Tolerance = Annotated[
    float | None,
    typer.Option(
        metavar="SHARE",
        help="Largest difference of a logit, by the logits' spread; else as the precision allows, or as exported.",
    ),
]
MinRobust = Annotated[
    str | None,
    typer.Option(
        "--min-robust",
        metavar="SHARE",
        help="Accuracy that the engine must keep under attack, as 0.3 or 30%; else more than guessing, or as exported.",
    ),
]
Attacked = Annotated[int, typer.Option("-n", "--n", metavar="N", help="Test images that are attacked, or corrupted.")]
Corruptions = Annotated[
    str | None,
    typer.Option(
        metavar="KINDS",
        help="Compare under common corruptions: all, or kinds with commas, as fog,frost; else none, or as exported.",
        autocompletion=_words(_corruptions),
    ),
]
Seed = Annotated[int, typer.Option(min=0, help="Of the attacks, and of the choice of calibration images.")]
Square = Annotated[
    int | None, typer.Option(metavar="QUERIES", help="Of Square, an image; else 1000, and 0 (none) for fp32.")
]
