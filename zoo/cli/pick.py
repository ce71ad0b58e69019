"""``zoo pick``: the most robust model within a budget, and, if asked, its export."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from zoo.cli import options as given
from zoo.cli.output import Output

if TYPE_CHECKING:
    from zoo.registry.entry import Entry

OF_EXPORTS = ("precision", "batch", "verify", "out", "data", "force", "keep_failed", "sign")


def command(
    ctx: typer.Context,
    flops: given.Macs = None,
    params: Annotated[str | None, typer.Option(metavar="COUNT", help="At most so many parameters.")] = None,
    size: Annotated[str | None, typer.Option(metavar="BYTES", help="At most such a weights file, as 1.9MB.")] = None,
    latency_ms: Annotated[float | None, typer.Option(metavar="MS", help="At most this median latency.")] = None,
    device: Annotated[
        str | None, typer.Option(metavar="DEVICE", help="Where --latency-ms was measured; 'this': on this machine.")
    ] = None,
    min_clean: given.MinClean = None,
    min_robust: given.MinUnderAttack = None,
    by: given.By = "pgd20",
    n: Annotated[int, typer.Option("-n", min=1, metavar="K", help="The best K.")] = 1,
    family: given.Family = None,
    pareto: Annotated[bool, typer.Option("--pareto", help="All that no other beats in MACs and accuracy.")] = False,
    flagged: Annotated[bool, typer.Option("--flagged", help="Also models whose accuracy may be too high.")] = False,
    export: Annotated[
        str | None, typer.Option(metavar="ENGINE", help="Export it too: onnx, ...", autocompletion=given.engine_names)
    ] = None,
    precision: given.Precisions = "fp32",
    batch: given.Batches = "1,8,64",
    verify: given.Level = None,
    out: given.Out = Path("bundles"),
    data: given.Data = None,
    force: given.Force = False,
    keep_failed: given.KeepFailed = False,
    sign: given.Sign = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be done.")] = False,
    as_json: given.AsJson = False,
    quiet: given.Quiet = False,
    offline: given.Offline = False,
) -> None:
    """Pick the most accurate model under attack within a budget, and export it.

    FLOPs are MACs (multiply-accumulates) of one image. Ties go to fewer MACs.
    When nothing matches, the nearest miss is named (exit code 3).
    --latency-ms applies to the engine and precision of --export; without it,
    to the fastest engine, and the command that exports to that one is printed.

    \b
    Examples:
      zoo pick --flops 15M
      zoo pick --flops 15M --min-clean 70% --by autoattack -n 3
      zoo pick --params 0.5M --pareto --json
      zoo pick --latency-ms 2 --device this
      zoo pick --flops 15M --export onnx --out bundles
      zoo pick --flops 15M --export openvino --precision fp16
      zoo pick --latency-ms 0.25 --export onnx
      zoo pick --flops 15M --export onnx --sign key.pem

    \b
    An export that loses too much under attack is refused: in int8 on ONNX Runtime
    nfgsm-w15-long may lose 1.80 points, where 1.00 is allowed.
    """
    from zoo.cli.ladder import outcome
    from zoo.cli.tables import entries_table
    from zoo.registry.constraints import Limits, timed_devices
    from zoo.registry.file import load_registry
    from zoo.registry.pick import choose
    from zoo.registry.pick import pareto as pareto_front
    from zoo.system.errors import UsageError

    out_ = Output(as_json=as_json, quiet=quiet)
    several = "--pareto" if pareto else f"-n {n}" if n > 1 else ""
    if export and several:
        raise UsageError(f"{several} asks for several models and --export takes one: leave one of them out")
    if pareto and n > 1:
        raise UsageError("--pareto lists the whole front: leave -n out")
    if not export and (useless := given.options_in(ctx, OF_EXPORTS)):
        raise UsageError(f"{useless[0]} is for what --export makes: add --export, or leave {useless[0]} out")
    batches, engine = given.batch_sizes(batch), None
    if export:
        from zoo.export.engines import backend, choice

        kind = backend(export)
        if which := choice(export):
            out_.say(which)
        kind.require(build=True)
        key = given.key_of(sign)
        engine = f"{kind.name}-{precision}" if latency_ms is not None and precision in kind.precisions else None
    registry = load_registry()
    limits: Limits = {
        "flops": flops,
        "params": params,
        "size": size,
        "min_clean": min_clean,
        "min_robust": min_robust,
        "latency_ms": latency_ms,
        "device": device,
        "engine": engine,
    }
    found = choose(registry, limits, by=by, family=family, flagged=flagged)
    for note in found.notes():
        out_.say(note)
    picked = pareto_front(found.ranked, by=by) if pareto else found.ranked[:n]
    report: dict[str, Any] = {
        "picked": [{"name": entry.name, **entry.to_dict()} for entry in picked],
        "by": by,
        "left_out": found.left_out,
        "flagged": found.flagged,
    }
    text = entries_table(registry, picked, by=by)
    if latency_ms is not None:
        report["latency"] = timings = _timings(picked, timed_devices(registry, device), engine)
        text += f"\n\n{_latencies(timings)}"
        if not export:
            text += _commands(timings)
    if export:
        from zoo.export.bundle.source import public
        from zoo.export.exporter import job_of
        from zoo.export.options import ExportOptions

        order: dict[str, Any] = {"format": export, "precision": precision, "batches": batches, "verify": verify}
        order |= {"out": out, "data": data, "offline": offline, "keep_failed": keep_failed, "force": force}
        options = ExportOptions(**order, sign=key, command=public("zoo", *sys.argv[1:]))
        job = job_of(picked[0].name, options, notify=out_.say)
        report["export"] = {**order, "out": str(out), "data": str(data) if data else None, "dry_run": dry_run}
        if dry_run:
            text += f"\n\n{_plan(picked[0], order, job.level)}"
        else:
            out_.say(f"exporting {picked[0].name} ...")
            with out_.progress() as advance:
                report["bundle"], climbed = outcome(job.run(advance))
            text += f"\n\n{climbed}"
    out_.result(report, text)


def _timings(picked: list[Entry], devices: list[str], engine: str | None) -> list[dict[str, Any]]:
    """How fast each entry is, and with what: ``engine``, or the fastest. ``command`` exports exactly that."""
    from zoo.export.engines import names
    from zoo.registry.constraints import fastest

    found = []
    for entry in picked:
        if timing := fastest(entry, devices, engine=engine):
            ms, name, device = timing
            kind, _, precision = name.rpartition("-")
            command = f"zoo export {entry.name} -f {kind} --precision {precision}" if kind in names() else None
            facts = {"engine": kind, "precision": precision, "device": device, "command": command}
            found.append({"name": entry.name, "p50_ms": ms, **facts})
    return found


def _latencies(timings: list[dict[str, Any]]) -> str:
    from zoo.cli.output import table
    from zoo.system.units import format_ms

    rows = [
        [one["name"], format_ms(one["p50_ms"]), f"{one['engine']}-{one['precision']} on {one['device']}"]
        for one in timings
    ]
    return table(["model", "p50 ms", "of one image, with"], rows, right=[1])


def _commands(timings: list[dict[str, Any]]) -> str:
    """The accuracies above are the float model's: what an engine keeps of them only its export shows."""
    commands = [one["command"] for one in timings if one["command"]]
    if not commands:
        return ""
    return "\n\nThe accuracies are the float model's. To export to that engine, and attack it:\n  " + "\n  ".join(
        commands
    )


def _plan(entry: Entry, order: dict[str, Any], level: str) -> str:
    sizes = ", ".join(map(str, order["batches"]))
    return (
        f"Would export {entry.name} as {order['format']} in {order['precision']} for batches of {sizes}\n"
        f"to {order['out']}, and verify: {level}."
    )
