"""``zoo sweep``: accuracy over ε."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any

import typer

from zoo.cli.options import (
    AsJson,
    BatchSize,
    Data,
    ModelName,
    Offline,
    OwnDataset,
    Quiet,
    attack_names,
    parts,
    to_measure,
)
from zoo.cli.output import Output, table
from zoo.evaluation.threat import Norm, ThreatModel
from zoo.system.errors import UsageError


def levels(text: str) -> tuple[float, ...]:
    """``0,2/255,0.1`` as numbers."""
    try:
        return tuple(float(Fraction(part.strip())) for part in text.split(","))
    except (ValueError, ZeroDivisionError, OverflowError):
        raise UsageError(f"--eps takes numbers on the scale of pixels, as 0,2/255,0.1, not '{text}'") from None


def command(
    name: ModelName,
    eps: Annotated[
        str | None,
        typer.Option(
            metavar="LIST",
            help="As 0,8/255,0.1 (default: 0 to 24/255 and 0.1 in linf, 0 to 2 in l2).",
            show_default=False,
        ),
    ] = None,
    norm: Annotated[
        Norm | None,
        typer.Option(help="Of the perturbations; else of the model's threat model.", show_default=False),
    ] = None,
    attack: Annotated[
        str, typer.Option(metavar="LIST", help="Protocols whose eps is varied.", autocompletion=attack_names)
    ] = "fgsm,pgd20",
    n: Annotated[int, typer.Option("-n", min=1, help="The first N test images.")] = 1000,
    batch_size: BatchSize = 250,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FILE", help="Write the JSON here too.", show_default=False)
    ] = None,
    dataset: OwnDataset = None,
    data: Data = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    offline: Offline = False,
) -> None:
    """Sweep eps: accuracy under attacks of growing size, with n and 95 % Wilson interval.

    PGD's step grows with eps: it is eps/4, as 2/255 at 8/255, and eps/8 in l2. Every eps is attacked anew, so a curve
    may rise. NAME may be a registry name, local-dir:PATH (what zoo train leaves), hf-hub:ORG/REPO, or a
    model of your own: package.module:function, which returns an nn.Module, FILE.onnx or FILE.pt2.

    \b
    Examples:
      zoo sweep trades-s7
      zoo sweep trades-s7 --eps 0,4/255,8/255,0.1 --attack pgd20 -n 200 --json
      zoo sweep trades-s7 --norm l2 --eps 0,0.25,0.5
      zoo sweep trades-s7 --out trades-s7.json
    """
    import time
    from dataclasses import asdict
    from datetime import UTC, datetime

    output = Output(as_json=as_json, quiet=quiet)
    subject = to_measure(name, dataset, offline=offline, say=output.say)

    from zoo.evaluation.flags import explained
    from zoo.evaluation.sweep import GRIDS, attacks_called, check_grid, sweep
    from zoo.system.files import kind_of, pretty, write_atomic
    from zoo.system.hub import HubFiles
    from zoo.system.toolchain import toolchain
    from zoo.weights.load import Found, find
    from zoo.weights.own import own_sha256, watched

    if out is not None and (kind_of(out) or not out.parent.is_dir()):  # before the work, not after
        raise UsageError(f"--out takes a file in a folder that is there, not '{out}'")
    attacks = parts(attack, "--attack")
    attacks_called(attacks)
    chosen = norm or subject.task.threat.norm
    grid = GRIDS[chosen] if eps is None else levels(eps)
    check_grid(grid, chosen)
    if isinstance(subject, Found):
        subject = find(name, HubFiles(offline=offline))
    images = subject.images(data, offline=offline)
    model, split = subject.load(), images.split("test")

    start = time.perf_counter()
    with watched(subject), output.progress() as advance:
        flags: set[str] = set()
        options: dict[str, Any] = {"n": n, "batch_size": batch_size, "progress": advance, "flags": flags}
        curves = sweep(model, split, attacks=attacks, norm=chosen, eps=grid, **options)
    for line in explained(flags):
        output.say(f"flagged {line}")
    record = {
        "name": str(subject.address),
        "weights_sha256": subject.sha256 or own_sha256(model),
        "dataset": images.name,
        "norm": chosen,
        "split": split.name,
        "dataset_sha256": split.fingerprint,
        "toolchain": toolchain(),
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "wall_s": round(time.perf_counter() - start, 1),
        "flags": sorted(flags),
        "curves": {key: [asdict(point) for point in points] for key, points in curves.items()},
    }
    if out is not None:
        write_atomic(out, pretty(record) + "\n")
    output.result(record, lambda: _table(curves, chosen))


def _table(curves: dict[str, Any], norm: Norm) -> str:
    """A row for every eps, a column for every attack."""
    from zoo.cli.tables import points, wrapped

    rows = [
        [ThreatModel(norm=norm, eps=here[0].eps).size, *(points(point.accuracy) for point in here)]
        for here in zip(*curves.values(), strict=True)
    ]
    count = next(iter(curves.values()))[0].accuracy.n
    legend = f"Accuracy in %, ± half of the 95 % Wilson interval; the first {count:,} test images."
    return "\n".join([table(["eps", *curves], rows), "", *wrapped(legend)])
