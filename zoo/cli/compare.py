"""``zoo compare``: two models or exported engines, on the same images."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from zoo.cli.options import AsJson, Quiet, check_model, model_names
from zoo.cli.output import Output, table

if TYPE_CHECKING:
    from zoo.export.compare import Comparison, Subject

ONE = typer.Argument(
    metavar="A", help="A model's name, a bundle's folder, or local-dir:PATH.", autocompletion=model_names
)
OTHER = typer.Argument(metavar="B", help="The same.", autocompletion=model_names)


def command(
    a: Annotated[str, ONE],
    b: Annotated[str, OTHER],
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Compare two models or exported engines: accuracy on the same images, cost, latency.

    Accuracies are compared in pairs, image by image, where both were measured
    on the same images under the same attack; the others are named with the
    reason. Nothing is measured anew.

    \b
    Examples:
      zoo compare trades-s7 rnascl-s7-wrt34-2
      zoo compare bundles/s7--onnxruntime-fp32 bundles/s7--onnxruntime-int8
      zoo compare trades-s7 bundles/s7--onnxruntime-int8 --json
    """
    from zoo.export.bundle.folder import as_bundle

    for one in (a, b):
        if as_bundle(one) is None:
            check_model(one, offline=True)

    from zoo.export.compare import compare

    found = compare(a, b)
    facts = {
        "a": found.a.facts(),
        "b": found.b.facts(),
        "protocols": found.protocols,
        "left_out": found.left_out,
    }
    Output(as_json=as_json, quiet=quiet).result(facts, lambda: _text(found))


def _text(found: Comparison) -> str:
    from zoo.cli.tables import wrapped

    lines = [f"A  {found.a.name} ({found.a.kind})", f"B  {found.b.name} ({found.b.kind})", "", _costs(found.a, found.b)]
    if found.protocols:
        lines += ["", _accuracies(found)]
        legend = (
            "Accuracy in %. A - B in points, with its paired 95 % interval (Tango's score interval); p: McNemar's "
            "exact test."
        )
        lines += ["", *wrapped(legend)]
        for letter, one in (("A", found.a), ("B", found.b)):
            if one.flags:
                lines += wrapped(f"{letter} is flagged, its accuracy may be too high: {', '.join(one.flags)}.")
    else:
        lines += ["", "No accuracy can be compared."]
    if found.left_out:
        lines.append("")
        for reason in dict.fromkeys(found.left_out.values()):
            names = ", ".join(name for name, why in found.left_out.items() if why == reason)
            lines += wrapped(f"Not compared: {names} ({reason}).", indent="  ")
    return "\n".join(lines)


def _costs(a: Subject, b: Subject) -> str:
    from zoo.system.units import format_count, format_ms, format_size

    rows = [
        ["MACs", format_count(a.macs), format_count(b.macs)],
        ["parameters", format_count(a.params), format_count(b.params)],
        ["size", format_size(a.size), format_size(b.size)],
    ]
    known = {(device, batch) for one in (a, b) for device, times in one.latency.items() for batch in times}
    for device, batch in sorted(known):
        row = [f"p50 ms, batch {batch}, {device}"]
        for one in (a, b):
            timed = one.latency.get(device, {}).get(batch)
            row.append(f"{format_ms(timed[0])} ({timed[1]})" if timed else "-")
        rows.append(row)
    return table(["", "A", "B"], rows)


def _accuracies(found: Comparison) -> str:
    rows = []
    for name, one in found.protocols.items():
        low, high = (100 * end for end in one["ci95"])
        p = one["mcnemar_p"]
        rows.append(
            [
                name,
                *(f"{100 * one[who]['accuracy']:.2f}" for who in ("a", "b")),
                f"{100 * one['difference']:+.2f}",
                f"{low:+.2f} to {high:+.2f}",
                f"{p:.2g}" if p > 1e-99 else "<1e-99",
                f"{one['n']:,}",
            ]
        )
    return table(["protocol", "A", "B", "A - B", "95 % interval", "p", "n"], rows)
