"""``zoo convert``: make a model folder from a checkpoint of another code base."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from zoo.cli.options import AsJson, Quiet
from zoo.cli.output import Output
from zoo.system.errors import UsageError, nearest

NORMALISE = ("none", "dataset")


def command(
    checkpoint: Annotated[
        Path, typer.Argument(metavar="CHECKPOINT", help="A safetensors file, or a pickle of a state dict.")
    ],
    arch: Annotated[str, typer.Option(metavar="FAMILY", help="resnet, wideresnet or vgg.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Where the model folder goes.")],
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="A key of the architecture; may be repeated."),
    ] = None,
    normalise: Annotated[
        str | None,
        typer.Option(
            metavar="HOW",
            help="none: the net takes images in [0, 1]; dataset: by the data set's mean and std; or set both.",
        ),
    ] = None,
    dataset: Annotated[str, typer.Option(help="Its data set: sets classes and image size.")] = "cifar10",
    threat: Annotated[str, typer.Option(metavar="MODEL", help="It was trained for, as 'l2 0.5'.")] = "linf 8/255",
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Make a model folder from a checkpoint of torchvision's ResNets, or of RobustBench's or TRADES' nets.

    The folder is for teacher.name in a recipe, and for other verbs as
    local-dir:DIR. Pickles are read by torch.load(weights_only=True), which runs
    no code. Names and shapes must fit the architecture. Few checkpoints say how
    images are normalised: zoo eval shows whether --normalise is right.

    \b
    Examples:
      zoo convert trades.pt --arch wideresnet --set depth=34 --set widen=10 --normalise none -o wrn34-10
      zoo convert r18.pth --arch resnet --set depth=18 --dataset cifar100 --normalise dataset -o r18
      zoo convert tv.pth --arch resnet --set stem=7x7 --set classes=1000 --dataset imagefolder --normalise dataset -o tv
    """
    from zoo.datasets import dataset_called
    from zoo.evaluation.threat import ThreatModel
    from zoo.specs import cost, parse_spec
    from zoo.system.units import format_count
    from zoo.weights.convert import check_layout, convert
    from zoo.weights.folder import ModelConfig, ModelFolder
    from zoo.weights.tensors import save_weights

    output, folder = Output(as_json=as_json, quiet=quiet), ModelFolder(out)
    images, given = dataset_called(dataset), dict(map(_setting, settings or ()))
    if "arch" in given:
        raise UsageError("--set takes keys of the architecture that --arch names: leave --set arch out")
    check_layout(arch)
    spec = parse_spec(images.contract() | _normalisation(normalise, given) | {"arch": arch} | given)
    config = ModelConfig(
        spec=spec.to_dict(),
        dataset=images.name,
        threat=ThreatModel.parse(threat),
        classes=images.classes if len(images.classes) == spec.classes else None,
    )
    folder.check_free()

    tensors = convert(checkpoint, spec)
    out.mkdir(parents=True, exist_ok=True)
    save_weights(tensors, folder.weights)
    folder.write(config)
    macs, params = cost(spec)
    output.result(
        {"model": str(out), "spec": spec.to_dict(), "macs": macs, "params": params},
        f"{out}: {arch} with {format_count(macs)} MACs and {format_count(params)} parameters; "
        f"measure it with `zoo eval local-dir:{out}`",
    )


def _setting(text: str) -> tuple[str, Any]:
    """``depth=34`` as ("depth", 34). Values are JSON; other words are strings."""
    key, equals, value = text.partition("=")
    if not equals:
        raise UsageError(f"--set needs KEY=VALUE, such as depth=34, not '{text}'")
    try:
        return key.strip(), json.loads(value)
    except ValueError:
        return key.strip(), value.strip()


def _normalisation(how: str | None, given: dict[str, Any]) -> dict[str, Any]:
    """The mean and std that differ from those of the data set."""
    own = {"mean", "std"} & given.keys()
    if how is not None and own:
        raise UsageError(f"--normalise {how} and --set {min(own)} contradict each other: leave one of them out")
    if how == "none":
        return {"mean": [0, 0, 0], "std": [1, 1, 1]}
    if how == "dataset" or len(own) == 2:
        return {}
    if how is None:
        raise UsageError("say how the net normalises images: --normalise none or dataset, or --set mean and std")
    raise UsageError(f"--normalise is none or dataset, not '{how}'{nearest(how, NORMALISE)}")
