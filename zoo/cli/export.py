"""``zoo export``: a model as an engine in a bundle, attacked again before it is signed off."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Annotated, Any

import typer

from zoo.cli.options import AsJson, Data, EngineOptions, Offline, Quiet, engine_names, model_names
from zoo.cli.output import Output


def command(
    name: Annotated[
        str,
        typer.Argument(metavar="NAME", help="A model's name, or a pattern as 'rnascl-*'.", autocompletion=model_names),
    ],
    format: Annotated[
        str,
        typer.Option(
            "--format",
            "-f",
            metavar="ENGINES",
            help="onnx, openvino, ...; several with commas.",
            autocompletion=engine_names,
        ),
    ] = "onnx",
    precision: Annotated[
        str, typer.Option(metavar="PRECISIONS", help="fp32, fp16 or int8; several with commas.")
    ] = "fp32",
    batch: Annotated[str, typer.Option(metavar="SIZES", help="Batch sizes that parity is checked at.")] = "1,8,64",
    verify: Annotated[
        str | None, typer.Option(metavar="LEVEL", help="none, parity, clean or robust; else as far as the data allow.")
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Where the bundle goes.")] = Path("bundles"),
    data: Data = None,
    calibration: Annotated[
        int | None, typer.Option(metavar="N", help="Training images that int8 ranges are chosen by; 512.")
    ] = None,
    calibrator: Annotated[
        str | None, typer.Option(metavar="METHOD", help="Of int8 ranges: percentile, minmax or entropy.")
    ] = None,
    adversarial: Annotated[
        float | None, typer.Option(metavar="SHARE", help="Of the calibration images, attacked first; 0.")
    ] = None,
    uint8: Annotated[
        bool, typer.Option("--uint8", help="Add model-uint8.onnx, which takes uint8 images [N, H, W, 3].")
    ] = False,
    triton: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Add the engine to this Triton model repository too.")
    ] = None,
    engine_options: EngineOptions = None,
    margin: Annotated[
        float, typer.Option(metavar="POINTS", help="Accuracy that the engine may lose at most, in points.")
    ] = 1.0,
    tolerance: Annotated[
        float | None, typer.Option(metavar="LOGIT", help="Largest difference of a logit; else as the precision allows.")
    ] = None,
    n: Annotated[int, typer.Option("-n", "--n", metavar="N", help="Test images that are attacked.")] = 1000,
    seed: Annotated[int, typer.Option(help="Of the attacks, and of the choice of calibration images.")] = 0,
    square: Annotated[
        int | None, typer.Option(metavar="QUERIES", help="Of Square, an image; else 1000, and 0 (none) for fp32.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a bundle that is there.")] = False,
    keep_failed: Annotated[bool, typer.Option("--keep-failed", help="Keep what failed, as BUNDLE.failed.")] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    offline: Offline = False,
) -> None:
    """Export a model to an engine, attack the engine again, and write a bundle if it holds.

    The engine must agree with the float model (exit code 8 if not), and be
    shown to be as accurate (8) and as robust (9), within --margin. Without
    the model's data set only agreement is checked, and the bundle says so.
    Of several exports each is tried, and the exit code is the highest.

    \b
    Examples:
      zoo export trades-s7 -o bundles
      zoo export trades-s7 --verify robust --data cifar10 -n 2500 --margin 0.5
      zoo export trades-s7 -f openvino --precision int8 --adversarial 0.5
      zoo export trades-s7 --uint8 --triton models
      zoo export trades-s7 -f tensorrt -O hardware=ampere_plus
      zoo export "trades-*" -f onnx,openvino --precision fp32,int8
      zoo export local-dir:runs/mine/model --verify parity --json
    """
    from zoo.cli.ladder import outcome
    from zoo.cli.pick import batch_sizes
    from zoo.export.engines import backend

    output = Output(as_json=as_json, quiet=quiet)
    engines = _parts(format)
    if len(engines) == 1:  # of several each is tried
        backend(engines[0]).require(build=True)
    from zoo.export import export_model
    from zoo.export.engines.options import parse_pairs
    from zoo.export.onnx.calibration import Sampling
    from zoo.export.triton import check_served, write_triton

    chosen = {"n": calibration, "method": calibrator, "adversarial": adversarial}
    chosen = {key: value for key, value in chosen.items() if value is not None}
    options: dict[str, Any] = {
        "batches": batch_sizes(batch),
        "out": out,
        "verify": verify,
        "data": data,
        "offline": offline,
        "keep_failed": keep_failed,
        "force": force,
        "margin": margin / 100,
        "tolerance": tolerance,
        "n": n,
        "seed": seed,
        "queries": square,
        "uint8": uint8,
        "engine_options": parse_pairs(engine_options or ()),
        "command": shlex.join(["zoo", *sys.argv[1:]]),
        "notify": output.say,
    }

    def export(name: str, engine: str, precision: str) -> Path:
        if triton:
            check_served(backend(engine))
        sampling = Sampling(**chosen, seed=seed) if precision == "int8" or chosen else None
        with output.progress() as advance:
            bundle = export_model(
                name, format=engine, precision=precision, calibration=sampling, progress=advance, **options
            )
        if triton:
            write_triton(bundle, triton, notify=output.say)
        return bundle

    jobs = list(product(_names(name), engines, _parts(precision)))
    if len(jobs) == 1:
        output.result(*outcome(export(*jobs[0])))
        return
    code = _export_all(jobs, export, output)
    if code:
        raise typer.Exit(code)


def _parts(text: str) -> list[str]:
    return list(dict.fromkeys(part.strip() for part in text.split(",")))


def _names(pattern: str) -> list[str]:
    """The models that a pattern of the shell's kind stands for; any other name as it is."""
    from zoo.registry.pick import list_models
    from zoo.system.errors import UnknownModel
    from zoo.weights.address import has_scheme

    if has_scheme(pattern) or not set(pattern) & set("*?["):
        return [pattern]
    names = list_models(pattern)
    if not names:
        raise UnknownModel(f"no model's name matches '{pattern}': 'zoo list' shows them all")
    return names


def _export_all(jobs: list[tuple[str, str, str]], export: Callable[[str, str, str], Path], output: Output) -> int:
    """Try every job, whatever becomes of the others; returns the highest exit code."""
    from zoo.cli.output import table
    from zoo.export import read_bundle
    from zoo.export.ladder.report import accuracy_on_the_engine
    from zoo.system.errors import ZooError

    facts, rows, codes = [], [], []
    for name, engine, precision in jobs:
        output.say(f"{name}, {engine}, {precision} ...")
        fact: dict[str, Any] = {"name": name, "format": engine, "precision": precision}
        try:
            bundle = export(name, engine, precision)
        except Exception as error:  # an internal one too must not stop the others
            codes.append(error.exit_code if isinstance(error, ZooError) else 1)
            message = str(error) if isinstance(error, ZooError) else f"internal: {type(error).__name__}: {error}"
            output.say(f"zoo: error: {message}")
            facts.append(fact | {"error": {"type": type(error).__name__, "message": message, "exit_code": codes[-1]}})
            rows.append([name, engine, precision, f"exit code {codes[-1]}", ""])
        else:
            manifest = read_bundle(bundle)
            found = accuracy_on_the_engine(manifest)
            facts.append(fact | {"bundle": str(bundle), "verified": manifest.verified, "accuracy": found})
            robust = "-" if found is None else f"{100 * found:.1f}"
            rows.append([name, engine, precision, manifest.verified, robust])
    columns = ["model", "engine", "precision", "verified", "right, %"]
    legend = "right: images that the engine classifies correctly under every attack that was climbed to."
    output.result({"exports": facts}, lambda: f"{table(columns, rows, right=(4,))}\n\n{legend}")
    return max(codes, default=0)
