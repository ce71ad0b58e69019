"""``zoo export``: a model as an engine in a bundle, attacked again before it is signed off."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from zoo.cli import options as given
from zoo.cli.output import Output
from zoo.system.errors import UsageError, ZooError
from zoo.system.units import parse_share

if TYPE_CHECKING:
    from zoo.export.bundle.folder import Bundle
    from zoo.export.exporter import Job
    from zoo.export.ladder.examples import Examples
    from zoo.export.options import ExportOptions


def command(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME", help="A model's name, or a pattern as 'rnascl-*'.", autocompletion=given.model_names
        ),
    ],
    format: Annotated[
        str,
        typer.Option(
            "--format",
            "-f",
            metavar="ENGINES",
            help="onnx, openvino, ...; several with commas.",
            autocompletion=given.engine_names,
        ),
    ] = "onnx",
    precision: given.Precisions = "fp32",
    batch: given.Batches = "1,8,64",
    verify: given.Level = None,
    out: given.Out = Path("bundles"),
    data: given.Data = None,
    calibration: Annotated[
        int | None, typer.Option(metavar="N", help="Training images that int8 ranges are chosen by; 512.")
    ] = None,
    calibrator: Annotated[
        str | None, typer.Option(metavar="METHOD", help="Of int8 ranges: percentile, minmax or entropy.")
    ] = None,
    adversarial: Annotated[
        float | None, typer.Option(metavar="SHARE", help="Of the calibration images, attacked first; 0.")
    ] = None,
    keep_robust: Annotated[
        float | None,
        typer.Option(
            metavar="POINTS",
            help="Accuracy under attack that int8 may lose on held-out training images; layers stay in float for it.",
        ),
    ] = None,
    portable_int8: Annotated[
        bool, typer.Option("--portable-int8", help="int8 weights in 7 bits: the same answers without VNNI.")
    ] = False,
    uint8: Annotated[
        bool, typer.Option("--uint8", help="Add model-uint8.onnx, which takes uint8 images [N, H, W, 3].")
    ] = False,
    triton: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Add the engine to this Triton model repository too.")
    ] = None,
    engine_options: given.EngineOptions = None,
    margin: given.Margin = None,
    min_robust: given.MinRobust = None,
    tolerance: given.Tolerance = None,
    n: given.Attacked = 1000,
    seed: given.Seed = 0,
    square: given.Square = None,
    sign: given.Sign = None,
    corruptions: given.Corruptions = None,
    force: given.Force = False,
    keep_failed: given.KeepFailed = False,
    as_json: given.AsJson = False,
    quiet: given.Quiet = False,
    offline: given.Offline = False,
) -> None:
    """Export a model to an engine, attack the engine again, and write a bundle if it holds.

    The engine must agree with the float model (exit code 8 if not), and be
    shown to be as accurate (8) and as robust (9), within --margin; and under
    attack to be right more often than by guessing, or than --min-robust (9).
    Without the model's data set only agreement is checked, and the bundle
    says so.
    Several exports are all checked before the first is built; then each that
    can be is tried, and the exit code is the highest.

    \b
    Examples:
      zoo export trades-s7 -o bundles
      zoo export trades-s7 --verify attacked --data cifar10 -n 2500 --margin 0.5
      zoo export rnascl-s7-wrt34 -f openvino --precision int8
      zoo export trades-s7 --precision int8 --corruptions all
      zoo export nfgsm-w15 --precision int8 --keep-robust 0.5
      zoo export trades-s7 --uint8 --triton models
      zoo export trades-s7 -f trt -O compute_capability=8.6,8.9
      zoo export trades-s7 -f tensorrt -O hardware=ampere_plus
      zoo export "trades-*" -f onnx,openvino --precision fp32,fp16
      zoo export local-dir:runs/mine/model --verify parity --json
      zoo export trades-s7 --sign key.pem
    """
    from zoo.cli.ladder import outcome
    from zoo.evaluation.corruptions import kinds_called
    from zoo.export.engines import backend, choice
    from zoo.export.engines.options import parse_pairs
    from zoo.export.triton import check_served, free_place, write_triton
    from zoo.registry.pick import matching

    output = Output(as_json=as_json, quiet=quiet)
    engines = {backend(one).name: one for one in given.parts(format, "--format")}  # before torch is imported
    for one in given.parts(format, "--format"):
        if which := choice(one):
            output.say(which)
    kinds = list(product(engines.values(), given.parts(precision, "--precision")))
    shared: dict[str, Any] = {
        "batches": given.batch_sizes(batch),
        "uint8": uint8,
        "engine_options": parse_pairs(engine_options or ()),
        "verify": verify,
        "margin": given.share_of(margin),
        "min_robust": None if min_robust is None else parse_share(min_robust),
        **{"tolerance": tolerance, "n": n, "seed": seed, "queries": square},
        "corruptions": None if corruptions is None else kinds_called(corruptions),
        **{"out": out, "data": data, "offline": offline, "force": force, "keep_failed": keep_failed},
        "sign": given.key_of(sign),
    }
    names = matching(name)
    alone = len(names) * len(kinds) == 1
    if triton:
        for engine in engines:
            check_served(backend(engine))
        if len(kinds) > 1:
            raise UsageError("--triton takes one engine of a model, in one precision: export the others without it")
    if alone:
        next(map(backend, engines)).require(build=True)
    for one in names:
        given.check_model(one, offline=offline, say=output.say)
    from zoo.export.bundle.source import public
    from zoo.export.exporter import job_of
    from zoo.export.onnx.calibration import Sampling
    from zoo.export.options import ExportOptions

    chosen: dict[str, Any] = {"n": calibration, "method": calibrator, "adversarial": adversarial}
    chosen = {key: value for key, value in chosen.items() if value is not None}
    sampling = Sampling(**chosen, seed=seed)
    share = None if keep_robust is None else keep_robust / 100
    quantised: dict[str, Any] = {"keep_robust": share, "portable_int8": portable_int8}
    needless = "int8" not in [precision for _, precision in kinds]  # then what is for int8 is refused
    options = {
        (engine, precision): ExportOptions(
            format=engine,
            precision=precision,
            calibration=sampling if precision == "int8" or (chosen and needless) else None,
            **(quantised if precision == "int8" or needless else {}),
            command=public("zoo", *sys.argv[1:]),
            **shared,
        )
        for engine, precision in kinds
    }

    def checked(name: str, options: ExportOptions) -> Job | ZooError:
        try:
            job = job_of(name, options, notify=output.say)
            if triton:
                free_place(triton, job.known.title)
            return job
        except ZooError as error:
            if alone:
                raise
            return error

    def run(job: Job, examples: Examples | None = None) -> Bundle:
        with output.progress() as advance:
            bundle = job.run(advance, examples)
        if triton:
            write_triton(bundle, triton, notify=output.say)
        return bundle

    jobs = {(one, *kind): checked(one, options[kind]) for one, kind in product(names, kinds)}
    if alone:
        (only,) = jobs.values()
        output.result(*outcome(run(only)))
        return
    code = _export_all(jobs, run, output)
    if code:
        raise typer.Exit(code)


def _export_all(
    jobs: Mapping[tuple[str, str, str], Job | ZooError], run: Callable[[Job, Examples], Bundle], output: Output
) -> int:
    """Try every job that was not refused, whatever becomes of the others; returns the highest exit code."""
    from zoo.cli.ladder import how_to_verify
    from zoo.cli.output import table
    from zoo.cli.tables import wrapped
    from zoo.export.ladder.examples import Examples
    from zoo.export.ladder.report import accuracy_on_the_engine

    facts, rows, codes, unrun = [], [], [], []
    examples: dict[str, Examples] = {}  # of one model at a time
    for (name, engine, precision), job in jobs.items():
        output.say(f"{name}, {engine}, {precision} ...")
        fact: dict[str, Any] = {"name": name, "format": engine, "precision": precision}
        try:
            if isinstance(job, ZooError):
                raise job
            if name not in examples:
                examples = {name: Examples()}
            bundle = run(job, examples[name])
        except Exception as error:  # an internal one too must not stop the others
            codes.append(error.exit_code if isinstance(error, ZooError) else 1)
            message = str(error) if isinstance(error, ZooError) else f"internal: {type(error).__name__}: {error}"
            output.say(f"zoo: error: {message}")
            facts.append(fact | {"error": {"type": type(error).__name__, "message": message, "exit_code": codes[-1]}})
            rows.append([name, engine, precision, f"exit code {codes[-1]}", ""])
        else:
            output.say(bundle.manifest.robustness)
            verified, found = bundle.manifest.verified, accuracy_on_the_engine(bundle.manifest)
            facts.append(fact | {"bundle": str(bundle.folder), "verified": verified, "accuracy": found})
            unrun += [bundle.folder] if "not_run" in bundle.report.engine else []
            rows.append([name, engine, precision, verified, "-" if found is None else f"{100 * found:.1f}"])
    columns = ["model", "engine", "precision", "verified", "right, %"]
    legend = "right: images that the engine classifies correctly under every attack that was climbed to."
    text = "\n".join([table(columns, rows, right=(4,)), "", *wrapped(legend), *how_to_verify(unrun)])
    output.result({"exports": facts}, text)
    return max(codes, default=0)
