"""``zoo export``: a model as an engine in a bundle, attacked again before it is signed off."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from zoo.cli.options import AsJson, Data, ModelName, Offline, Quiet
from zoo.cli.output import Output


def command(
    name: ModelName,
    format: Annotated[str, typer.Option("--format", "-f", metavar="ENGINE", help="onnx, ...")] = "onnx",
    precision: Annotated[str, typer.Option(metavar="PRECISION", help="fp32, ...")] = "fp32",
    batch: Annotated[str, typer.Option(metavar="SIZES", help="Batch sizes that parity is checked at.")] = "1,8,64",
    verify: Annotated[
        str | None, typer.Option(metavar="LEVEL", help="none, parity, clean or robust; else as far as the data allow.")
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Where the bundle goes.")] = Path("bundles"),
    data: Data = None,
    margin: Annotated[
        float, typer.Option(metavar="POINTS", help="Accuracy that the engine may lose at most, in points.")
    ] = 1.0,
    tolerance: Annotated[float, typer.Option(metavar="LOGIT", help="Largest difference of a logit for parity.")] = 1e-3,
    n: Annotated[int, typer.Option("-n", "--n", metavar="N", help="Test images that are attacked.")] = 1000,
    seed: Annotated[int, typer.Option(help="Of the attacks.")] = 0,
    square: Annotated[
        int, typer.Option(metavar="QUERIES", help="Also attack with Square, with so many queries an image.")
    ] = 0,
    force: Annotated[bool, typer.Option("--force", help="Replace a bundle that is there.")] = False,
    keep_failed: Annotated[bool, typer.Option("--keep-failed", help="Keep what failed, as BUNDLE.failed.")] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    offline: Offline = False,
) -> None:
    """Export a model to an engine, attack the engine again, and write a bundle if it holds.

    The engine must agree with the float model (exit code 8 if not), and be
    shown to be as accurate (8) and as robust (9), within --margin. Without
    CIFAR-10 only agreement is checked, and the bundle says so.

    \b
    Examples:
      zoo export trades-s7 -o bundles
      zoo export trades-s7 --verify robust --data cifar10 -n 2500 --margin 0.5
      zoo export local-dir:runs/mine/model --verify parity --json
    """
    from zoo.cli.ladder import outcome
    from zoo.cli.pick import batch_sizes
    from zoo.export import export_model

    output = Output(as_json=as_json, quiet=quiet)
    sizes = batch_sizes(batch)
    with output.progress() as advance:
        bundle = export_model(
            name,
            format=format,
            precision=precision,
            batches=sizes,
            out=out,
            verify=verify,
            data=data,
            offline=offline,
            keep_failed=keep_failed,
            force=force,
            margin=margin / 100,
            tolerance=tolerance,
            n=n,
            seed=seed,
            queries=square,
            command=shlex.join(["zoo", *sys.argv[1:]]),
            progress=advance,
            notify=output.say,
        )
    output.result(*outcome(bundle))
