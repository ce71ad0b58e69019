"""``zoo bench``: how fast engines are on this machine, beside other ways to run the same model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from zoo.cli.options import AsJson, Batches, Offline, Quiet, batch_sizes, check_model, engine_names, model_names, parts
from zoo.cli.output import Output

if TYPE_CHECKING:
    from zoo.export.bench.times import Bench, Timed


def command(
    subjects: Annotated[
        list[str],
        typer.Argument(
            metavar="NAME|BUNDLE", help="Models, or folders that zoo export wrote.", autocompletion=model_names
        ),
    ],
    batch: Batches = "1,32",
    threads: Annotated[int, typer.Option(metavar="N", help="CPU threads of each, on as many processors.")] = 1,
    seconds: Annotated[float, typer.Option(metavar="S", help="For calls, of each engine and batch size.")] = 3.0,
    peers: Annotated[
        str | None,
        typer.Option(
            metavar="LIST",
            help="Of pytorch, torch.compile, aotinductor, or none; else all, on a device none.",
        ),
    ] = None,
    format: Annotated[
        str,
        typer.Option(
            *("--format", "-f"),
            metavar="ENGINE",
            help="For a NAME, which is exported in fp32 first.",
            autocompletion=engine_names,
        ),
    ] = "onnx",
    device: Annotated[
        str | None, typer.Option(metavar="TARGET", help="Run the engines there, as in zoo verify --device.")
    ] = None,
    write: Annotated[
        bool, typer.Option("--write", help="Store it in the bundle, and in the registry for released models.")
    ] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    offline: Offline = False,
) -> None:
    """Time engines on this machine, side by side with PyTorch running the same model.

    Timed is engine(images): images on the CPU in, logits on the CPU out, the
    input checks with it. Each engine has a process of its own; rounds of calls
    go from one to the next. Compiling the peers takes a minute or two.

    \b
    Examples:
      zoo bench trades-s7
      zoo bench trades-s7 --peers none --seconds 1 --write
      zoo bench bundles/trades-s7--onnxruntime-fp32 --batch 1,8,64 --threads 2
      zoo bench bundles/trades-s7--* --json
      zoo bench bundles/trades-s7--onnxruntime-fp16 --device ssh://pi@kitchen --write
    """
    from zoo.export.bundle.folder import as_bundle, check_unsigned
    from zoo.export.engines import choice
    from zoo.system.errors import UsageError
    from zoo.weights.address import has_scheme

    output = Output(as_json=as_json, quiet=quiet)
    if which := choice(format):
        output.say(which)
    bundles = [folder for subject in subjects if (folder := as_bundle(subject)) is not None]
    unkept = [subject for subject in subjects if has_scheme(subject)]
    if write and unkept:
        raise UsageError(f"--write stores in bundles and registry entries, and '{unkept[0]}' is neither: leave it out")
    for folder in bundles if write else ():
        check_unsigned(folder)
    for subject in subjects:
        if as_bundle(subject) is None:
            check_model(subject, offline=offline, say=output.say)

    from zoo.export.bench.bench import bench
    from zoo.export.bench.times import write_to_bundle, write_to_registry

    report = bench(
        subjects,
        batches=batch_sizes(batch),
        threads=threads,
        seconds=seconds,
        peers=_peers(peers, device),
        engine=format,
        device=device,
        offline=offline,
        notify=output.say,
    )
    if write:
        for folder in bundles:
            write_to_bundle(folder, report)
        names = write_to_registry(report)
        output.say(f"stored in {', '.join([*map(str, bundles), *(f'the registry entry {name}' for name in names)])}")
    for warning in report.warnings:
        output.say(f"warning: {warning}; these times are longer than they need be")
    output.result(report.model_dump(mode="json", exclude_none=True), lambda: _text(report))


def _peers(asked: str | None, device: str | None) -> Sequence[str]:
    from zoo.export.bench.contestant import PEERS

    if asked is None:
        return () if device else PEERS
    return () if asked == "none" else parts(asked, "--peers")


def _text(report: Bench) -> str:
    """For each model a table, and below what the numbers are."""
    from zoo.cli.output import table
    from zoo.cli.tables import wrapped

    columns = ["engine", "batch", "p50 ms", "p95 ms", "p99 ms", "images/s", "calls", "+MB"]
    models: dict[str, list[Timed]] = {}
    for one in report.engines:
        models.setdefault(one.tensors_sha256, []).append(one)
    parts = []
    for engines in models.values():
        parts += [engines[0].model, "", table(columns, [row for one in engines for row in _rows(one)])]
        missing = [f"{one.engine} was not timed: {one.why}" for one in engines if one.why]
        parts += ["", *(line for text in missing for line in wrapped(text, indent="  "))] if missing else []
        parts.append("")
    devices = ", ".join(dict.fromkeys(one.device for one in report.engines if one.device))
    threads = f"{report.threads} thread{'s' if report.threads > 1 else ''}"
    pinned = f" on processor {', '.join(map(str, report.cpus))}" if report.cpus else ", on no processor in particular"
    base = max((one.base_mb or 0 for one in report.engines), default=0)
    legend = (
        f"{devices}; {threads}{pinned}. Milliseconds of engine(images), input checks with it. +MB: memory that the "
        f"engine added to its process, which had {base:.0f} with Python, PyTorch and this package."
    )
    return "\n".join([*parts, *wrapped(legend)])


def _rows(engine: Timed) -> list[list[str]]:
    from zoo.system.units import format_ms

    return [
        [
            *(engine.engine, str(times.batch)),
            *(format_ms(ms) for ms in (times.p50_ms, times.p95_ms, times.p99_ms)),
            *(f"{times.images_per_s:,.0f}", f"{times.calls:,}"),
            "-" if (memory := engine.memory_mb(times)) is None else f"{memory:,.0f}",
        ]
        for times in engine.times
    ]
