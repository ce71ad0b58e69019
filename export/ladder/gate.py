"""The gates: is an engine shown to be no worse than its float twin?

Above parity the gate is paired non-inferiority: the upper 95 % bound of (twin - engine), from the images that only one
of the two gets right, must lie below the margin. Under attack the union over all rungs decides, for both alike; a rung
before the last ends the climb only where the engine is already shown to lose more than the margin. The walk of the
surrogate rung judges 21 points an image, and rounding gives each another chance to cross the boundary; what it finds so
in an int8 engine, Square finds in the twin one rung later.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from zoo.evaluation.protocols import Protocol
from zoo.evaluation.statistics import Accuracy, Paired, images_needed
from zoo.export.bundle.manifest import Report, Rung
from zoo.export.ladder.rungs import Bits
from zoo.system.arguments import typed
from zoo.system.errors import ParityGateFailed, RobustnessGateFailed


def compared(
    name: str, bits: Bits, protocols: Sequence[Protocol], margin: float, *, decides: bool = True
) -> dict[str, Any]:
    """The gate of a rung above parity: is the engine shown to be no worse than its twin, within the margin?

    Args:
        decides: False for a rung that another follows: it holds unless the engine is shown to be worse.
    """
    pair = Paired.of(*bits)
    return {
        "name": name,
        "n": pair.n,
        "holds": pair.non_inferior(margin) if decides else not pair.inferior(margin),
        "protocols": tuple(protocol.model_dump(exclude_none=True) for protocol in protocols),
        "threshold": {"margin": margin},
        "measured": _comparison(pair, bits),
        "bits": {who: np.packbits(array).tobytes().hex() for who, array in zip(("twin", "engine"), bits, strict=True)},
    }


def _comparison(pair: Paired, bits: Bits) -> dict[str, Any]:
    def accuracy(right: np.ndarray) -> dict[str, Any]:
        found = Accuracy.of(right)
        return {"accuracy": found.value, "ci95": list(found.ci95)}

    return {
        "twin": accuracy(bits[0]),
        "engine": accuracy(bits[1]),
        "difference": pair.difference,
        "upper95": pair.upper(),
        "only_twin_right": pair.b,
        "only_engine_right": pair.c,
        "mcnemar_p": pair.mcnemar,
    }


def verdict(rung: Rung) -> str:
    """What a rung found, in one sentence."""
    measured = rung.measured
    if rung.name == "integrity":
        return f"integrity: {rung.n} {'file is' if rung.n == 1 else 'files are'} intact"
    if rung.name == "parity":
        return (
            f"parity: on {rung.n} images the engine's logits differ from the float model's by up to "
            f"{measured['max_logit_difference']:.2g} (allowed {rung.threshold['tolerance']:.2g}), "
            f"and {measured['agreement']:.1%} of the decisions agree{_repeats(measured)}"
            + ("" if rung.holds else " (a higher --tolerance climbs on, to what that costs in robustness)")
        )
    allowed, upper = rung.threshold["margin"], measured["upper95"]
    found = (
        f"{rung.name}: on {rung.n} images the float twin is right on {measured['twin']['accuracy']:.1%} and the "
        f"engine on {measured['engine']['accuracy']:.1%}; the upper 95 % bound of what is lost is "
        f"{100 * upper:.2f} points, {100 * allowed:.2f} are allowed"
    )
    if rung.holds:
        return found if upper < allowed else f"{found}: not shown to be worse, the rungs above decide"
    if measured["difference"] >= allowed:
        return f"{found}: the engine is worse"
    discordant = measured["only_twin_right"] + measured["only_engine_right"]
    needed = images_needed(discordant / rung.n, allowed)
    hint = f" (if it is, about {needed} would do: pass --n)" if needed > rung.n and rung.name != "clean" else ""
    return f"{found}: these are too few images to show that the engine is as good{hint}"


def _repeats(measured: dict[str, Any]) -> str:
    """How deterministic the engine is; nothing of reports that were written before this was measured."""
    if "difference_between_runs" not in measured:
        return ""
    batches, runs = measured["difference_between_batches"], measured["difference_between_runs"]
    if not batches and not runs:
        return "; the same at every batch size"
    return f"; between batch sizes its own differ by up to {batches:.1g}" + (
        f", and between two runs by {runs:.1g}" if runs else ""
    )


def sign_off(report: Report) -> None:
    """Do nothing if every rung that was climbed holds.

    Raises:
        ParityGateFailed: parity or clean does not.
        RobustnessGateFailed: a rung under attack does not.
    """
    typed(report=(report, Report))
    if report.failed is not None:
        kind = ParityGateFailed if report.failed.name in ("parity", "clean") else RobustnessGateFailed
        raise kind(verdict(report.failed))
