"""The table of rungs that ``zoo export`` and ``zoo verify`` print."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from zoo.cli.output import table
from zoo.cli.tables import wrapped

if TYPE_CHECKING:
    from pathlib import Path

    from zoo.export.bundle.folder import Bundle
    from zoo.export.bundle.manifest import Rung

LEGEND = (
    "right: images classified correctly (under every attack so far), %. lost: upper 95 % bound of twin - engine, "
    "points; for parity (and graph), the largest logit difference, by the logits' spread. Under attack the last rung "
    "decides; one before it fails where the engine is shown to lose more than twice what is allowed, or keeps too "
    "little."
)


def rungs_table(rungs: Sequence[Rung]) -> str:
    """What the engine and its float twin got right on each rung, and what may be lost."""
    columns = ["rung", "twin right", "engine right", "lost", "allowed", "n", ""]
    return "\n".join([table(columns, [_row(rung) for rung in rungs]), "", *wrapped(LEGEND)])


def headline(robustness: str) -> str:
    """What the attacks on an engine found, as a paragraph."""
    return "\n".join(wrapped(f"{robustness[0].upper()}{robustness[1:]}."))


def outcome(bundle: Bundle) -> tuple[dict[str, Any], str]:
    """What an export came to: the manifest for machines, the rungs that were climbed for people."""
    manifest, folder = bundle.manifest, bundle.folder
    facts = {"bundle": str(folder), **manifest.model_dump(mode="json", exclude_none=True)}
    text = f"{rungs_table(manifest.gates)}\n\n{headline(manifest.robustness)}\n\nExported to {folder}"
    return facts, "\n".join([text, *how_to_verify([folder] if "not_run" in bundle.report.engine else [])])


def how_to_verify(bundles: Sequence[Path]) -> list[str]:
    """The commands that verify these bundles, which have not run yet, on the device that they are for."""
    if not bundles:
        return []
    return [
        "",
        "Not run yet. To run it on its device, from here:",
        *(f"  zoo verify {one} --device ssh://USER@HOST" for one in bundles),
    ]


def _row(rung: Rung) -> list[str]:
    last = [f"{rung.n:,}", "holds" if rung.holds else "FAILS"]
    if rung.name == "integrity":
        return [rung.name, "", "", "", "", f"{rung.n} files" if rung.n > 1 else "1 file", last[1]]
    if rung.name in ("parity", "graph"):
        lost, allowed = rung.measured["relative_difference"], rung.threshold["tolerance"]
        return [rung.name, "", "", f"{lost:.1e}", f"{allowed:.1e}", *last]
    twin, engine = rung.measured["twin"]["accuracy"], rung.measured["engine"]["accuracy"]
    lost, allowed = rung.measured["upper95"], rung.threshold["margin"]
    return [rung.name, f"{100 * twin:.2f}", f"{100 * engine:.2f}", f"{100 * lost:.2f}", f"{100 * allowed:.2f}", *last]
