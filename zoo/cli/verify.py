"""``zoo verify``: check a bundle, and attack its engine again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from zoo.cli import options as given
from zoo.cli.output import Output
from zoo.system.units import parse_share


def command(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="A folder that zoo export wrote.")],
    level: given.Level = None,
    data: given.Data = None,
    margin: given.Margin = None,
    min_robust: given.MinRobust = None,
    tolerance: given.Tolerance = None,
    n: given.Attacked = 1000,
    seed: given.Seed = 0,
    square: given.Square = None,
    corruptions: given.Corruptions = None,
    device: Annotated[
        str | None,
        typer.Option(
            metavar="TARGET", help="Run the engine there: ssh://user@host:port, or ssh://host/path/to/python."
        ),
    ] = None,
    engine_options: given.EngineOptions = None,
    write: Annotated[bool, typer.Option("--write", help="Replace the bundle's reports by what is found now.")] = False,
    sign: given.Sign = None,
    trust: Annotated[
        list[Path] | None,
        typer.Option(
            "--trust", metavar="KEY", help="The bundle must be signed by this public key (PEM) or another one."
        ),
    ] = None,
    as_json: given.AsJson = False,
    quiet: given.Quiet = False,
    offline: given.Offline = False,
) -> None:
    """Check a bundle's files and what it says of itself, and attack the exported engine again.

    Exit code 5: a file was altered, or the signature is not by a key that is
    trusted (--trust). 8: the engine disagrees with the float
    model, or is less accurate. 9: it is not shown to be as robust, or to
    withstand attacks at all (--min-robust).

    \b
    Examples:
      zoo verify bundles/trades-s7--onnxruntime-fp32
      zoo verify bundles/trades-s7--onnxruntime-fp32 --verify parity --json
      zoo verify bundles/trades-s7--onnxruntime-fp32 --square 1000 --write
      zoo verify bundles/trades-s7--onnxruntime-fp32 --verify clean --corruptions fog,frost -n 10000
      zoo verify bundles/trades-s7--onnxruntime-fp16 --device ssh://pi@kitchen
      zoo verify bundles/trades-s7--onnxruntime-fp32 --trust key.pub
      zoo verify bundles/trades-s7--onnxruntime-fp32 --write --sign key.pem
    """
    from zoo.evaluation.corruptions import kinds_called
    from zoo.export.bundle.folder import MANIFEST, read_bundle
    from zoo.export.bundle.manifest import level_called, read_manifest

    level_called(level)
    allowed = given.share_of(margin)
    least = None if min_robust is None else parse_share(min_robust)
    key = given.key_of(sign)
    kinds = None if corruptions is None else kinds_called(corruptions)
    read_bundle(bundle, trust=trust or None)  # before torch is imported

    from zoo.cli.ladder import headline, rungs_table
    from zoo.export import sign_off, verify_bundle
    from zoo.export.engines.options import parse_pairs
    from zoo.export.ladder.report import robustness, unverified

    output = Output(as_json=as_json, quiet=quiet)
    with output.progress() as advance:
        report = verify_bundle(
            bundle,
            level=level,
            data=data,
            offline=offline,
            margin=allowed,
            min_robust=least,
            tolerance=tolerance,
            n=n,
            seed=seed,
            queries=square,
            corruptions=kinds,
            device=device,
            engine_options=parse_pairs(engine_options or ()),
            write=write,
            sign=key,
            trust=trust or None,
            progress=advance,
            notify=output.say,
        )
    if report.failed is not None:
        output.say(rungs_table(report.rungs))
    sign_off(report)
    manifest = read_manifest(bundle / MANIFEST)
    found = robustness(report, manifest.dataset, manifest.spec.classes)
    if level is None and report.reached != "attacked":
        output.say(unverified(manifest.dataset))
    output.result(
        {
            "bundle": str(bundle),
            "robustness": found,
            **report.model_dump(mode="json", exclude_none=True),
        },
        lambda: (
            f"{rungs_table(report.rungs)}\n\n{headline(found)}\n\n"
            f"Every file of {bundle} is as it was {'signed' if trust else 'written'}, and every rung holds."
        ),
    )
