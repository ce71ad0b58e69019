"""The gates: is an engine shown to be no worse than its float twin?

Above parity the gate is paired non-inferiority: the upper 95 % bound of (twin - engine), from the images that only one
of the two gets right, must lie below the margin. Under attack the union over all rungs decides, for both alike; a rung
before the last ends the climb only where the engine is already shown to lose more than twice the margin. Each attack
judges many points of an image, and rounding gives each another chance to cross the boundary; a later attack may find in
the twin what an earlier one found in the engine alone. Walks towards targets did not: five students in int8 lost more
by them (docs/robustness.md). So twice the margin only puts off a refusal.

Being as good as the twin is not enough: both may have nothing. Under attack the engine must also keep an accuracy of
its own, by the lower end of its interval. Further rungs can only take from it, so each rung checks that.

An engine is flagged where an attack may have said too little. Coarse logits hide gradients and have plateaus, and the
gradients of a twin may mislead; Square needs no gradients and crosses plateaus, so such an engine is signed off if it
withstands Square too. No attack suits the other flags, and the engine is refused: one that is unsteady gives no attack
a direction, or answers from memory; one that is better than its twin by more than the margin computes something else,
as an engine does that recognises attacked images.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from zoo.evaluation.protocols import Protocol
from zoo.evaluation.statistics import Accuracy, Paired, images_needed, wilson
from zoo.export.bundle.manifest import Report, Rung
from zoo.system.arguments import typed
from zoo.system.errors import ParityGateFailed, RobustnessGateFailed

if TYPE_CHECKING:
    from zoo.export.ladder.rungs import Bits

COARSE, MASKED, UNSTEADY, BETTER = "coarse logits", "masked twin", "unsteady", "better than its twin"
FLAGS = {
    COARSE: "its logits take few values, so Square attacked it too",
    MASKED: "the gradients of its float model mislead, so Square attacked it too",
    UNSTEADY: "it answers the same images otherwise when it is asked again",
    BETTER: "it is right more often than the model that it computes, so it answers from something else",
}
REFUSED = (UNSTEADY, BETTER)
CORRUPTIONS = "corruptions"  # the name of the rung
LEEWAY = 2  # times the margin, for a rung before the last
FAULTS = {
    "refused": "what attacks find in it means nothing",
    "worse": "the engine is worse",
    "few": "these are too few images to show that the engine is as good",
}


def compared(
    name: str,
    bits: Bits,
    protocols: Sequence[Protocol],
    margin: float,
    *,
    floor: float | None = None,
    decides: bool = True,
    flags: Sequence[str] = (),
) -> dict[str, Any]:
    """The gate of a rung above parity: is the engine shown to be no worse than its twin, within the margin?

    Args:
        floor: the accuracy that the lower end of the engine's interval must reach besides; None for no floor.
        decides: False for a rung that another follows: it holds unless the engine is shown to be worse by ``LEEWAY``
            times the margin.
        flags: what was found of the engine on this rung, keys of ``FLAGS``.
    """
    pair = Paired.of(*bits)
    flags = [*flags, *([BETTER] if decides and Paired(pair.n, b=pair.c, c=pair.b).inferior(margin) else [])]
    measured = _comparison(pair, bits)
    enough = floor is None or measured["engine"]["ci95"][0] >= floor
    as_good = pair.non_inferior(margin) if decides else not pair.inferior(LEEWAY * margin)
    return {
        "name": name,
        "n": pair.n,
        "holds": as_good and enough and not set(flags) & set(REFUSED),
        "protocols": tuple(protocol.model_dump(exclude_none=True) for protocol in protocols),
        "threshold": {"margin": margin} | ({} if floor is None else {"min_robust": floor}),
        "measured": {**measured, "flags": flags},
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


def flags_of(rungs: Sequence[Rung]) -> list[str]:
    """What was flagged on these rungs, each once."""
    return list(dict.fromkeys(flag for rung in rungs for flag in rung.measured.get("flags", ())))


def verdict(rung: Rung) -> str:
    """What a rung found, in one sentence."""
    measured = rung.measured
    if rung.name == "integrity":
        return f"integrity: {rung.n} {'file is' if rung.n == 1 else 'files are'} intact"
    if rung.name in ("parity", "graph"):
        whose = "engine's logits"
        if rung.name == "graph":
            whose = "logits of the ONNX graph that the engine was built from (run by ONNX Runtime, not by the engine)"
        return (
            f"{rung.name}: on {rung.n} images the {whose} differ from the float model's by up to "
            f"{measured['relative_difference']:.2g} of their spread (allowed {rung.threshold['tolerance']:.2g}), "
            f"and {measured['agreement']:.1%} of the decisions agree{_widest(rung)}{_repeats(measured)}{_flagged(rung)}"
        )
    allowed, upper = rung.threshold["margin"], measured["upper95"]
    found = (
        f"{rung.name}: on {rung.n} images the float twin is right on {measured['twin']['accuracy']:.1%} and the "
        f"engine on {measured['engine']['accuracy']:.1%}; the upper 95 % bound of what is lost is "
        f"{100 * upper:.2f} points, {100 * allowed:.2f} are allowed{_optimistic(rung)}{_worst(rung)}{_flagged(rung)}"
    )
    if rung.holds:
        return found if upper < allowed else f"{found}: not shown to lose more than twice that, the rungs above decide"
    fault = _fault(rung)
    if fault == "low":
        low, high = measured["engine"]["ci95"]
        return (
            f"{rung.name}: under attack the engine is right on {measured['engine']['accuracy']:.1%} of {rung.n} images "
            f"(95 % interval {low:.1%} to {high:.1%}), its float twin on {measured['twin']['accuracy']:.1%}; "
            f"the engine is not shown to reach {rung.threshold['min_robust']:.1%}{_flagged(rung)}"
        )
    return f"{found}: {FAULTS[fault]}"


def remedy(rung: Rung, also: str = "") -> str:
    """What can be done about a rung that does not hold, as a clause; ``also`` helps where more is lost than may be."""
    fault, first = _fault(rung), f"{also}, " if also else ""
    if fault == "refused":
        return "no option signs it off, export the model again"
    if fault == "apart":
        return "a higher --tolerance climbs on, to what that costs in robustness"
    if fault == "low":
        return (
            "choose a robust model or a lower --min-robust (the default is chance), "
            "or leave robustness out with --verify clean"
        )
    if fault == "few" and rung.name != "clean":
        allowed, measured = rung.threshold["margin"], rung.measured
        discordant = measured["only_twin_right"] + measured["only_engine_right"]
        needed = images_needed(discordant / rung.n, allowed)
        if needed > rung.n:
            return f"if it is, about {needed} would do (--n); or {first}allow more (--margin), or try another precision"
    return f"{first}try another precision, or allow more (--margin)"


def _fault(rung: Rung) -> str:
    """Why a rung does not hold: a key of ``FAULTS``, "apart" (parity) or "low" (the floor)."""
    if set(flags_of([rung])) & set(REFUSED):
        return "refused"
    if rung.name in ("parity", "graph"):
        return "apart"
    if rung.measured["difference"] >= rung.threshold["margin"]:
        return "worse"
    return "low" if rung.measured["engine"]["ci95"][0] < rung.threshold.get("min_robust", 0.0) else "few"


def _flagged(rung: Rung) -> str:
    return "".join(f"; flagged as {flag}: {FLAGS[flag]}" for flag in flags_of([rung]))


def _optimistic(rung: Rung) -> str:
    """That only the gradients of the twin were at hand, where the engine computes something else."""
    if not rung.measured.get("optimistic"):
        return ""
    return "; no gradients of the engine itself were found, so this may be optimistic"


def _worst(rung: Rung) -> str:
    """The kind of corruption in which the engine is right least often, and that in which it loses most; nothing on
    other rungs."""
    if "worst" not in rung.measured:
        return ""
    kind, found = rung.measured["worst"], rung.measured["kinds"][rung.measured["worst"]]
    low, high = wilson(found["engine"], found["n"])
    return (
        f"; worst is {kind}, with {found['engine']} of {found['n']} images (95 % interval {low:.1%} to {high:.1%}), "
        f"the twin with {found['twin']}{_most_lost(rung)}"
    )


def _most_lost(rung: Rung) -> str:
    kind = rung.measured.get("most_lost", rung.measured["worst"])
    found = rung.measured["kinds"][kind]
    lost = found["twin"] - found["engine"]
    return f"; most is lost in {kind}, {lost} of {found['n']} images" if lost > 0 else ""


def _widest(rung: Rung) -> str:
    """The widest margin of the model among the other decisions; nothing where the tolerance explains them."""
    flipped = rung.measured.get("widest_margin_flipped", 0.0)
    return "" if flipped <= rung.threshold["tolerance"] else f" (the model decides one of the others by {flipped:.2g})"


def _repeats(measured: dict[str, Any]) -> str:
    """How deterministic the engine is."""
    scale = measured["logit_spread"] or 1.0
    batches, runs = (measured[f"difference_between_{what}"] / scale for what in ("batches", "runs"))
    if not batches and not runs:
        return "; the same at every batch size"
    return f"; between batch sizes its own differ by up to {batches:.1g}" + (
        f", and between two runs by {runs:.1g}" if runs else ""
    )


def sign_off(report: Report, *, also: str = "") -> None:
    """Do nothing if every rung that was climbed holds.

    Args:
        also: what the message offers first where more is lost than may be, as a clause.

    Raises:
        ParityGateFailed: parity, the graph's parity or clean does not.
        RobustnessGateFailed: a rung under attack does not.
    """
    typed(report=(report, Report), also=(also, str))
    if report.failed is not None:
        kind = ParityGateFailed if report.failed.name in ("graph", "parity", "clean") else RobustnessGateFailed
        raise kind(f"{verdict(report.failed)}: {remedy(report.failed, also)}")
