"""Entries of the registry in words: accuracies, protocols, architectures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from zoo.evaluation.statistics import Accuracy
from zoo.evaluation.threat import ThreatModel

WITHOUT_ATTACKER = {
    "none": "no attack",
    "uniform": "uniform noise",
    "corruptions": "15 kinds of corruption at 5 severities, the mean",
    "cifar10-c": "CIFAR-10-C, the mean of 15 kinds at 5 severities",
}


def points(accuracy: Accuracy) -> str:
    """``65.6 ±0.9``: accuracy and half the width of its interval, in points."""
    low, high = accuracy.ci95
    return f"{100 * accuracy.value:.1f} ±{50 * (high - low):.1f}"


def described(protocol: Mapping[str, Any], measured: Iterable[Accuracy | None] = ()) -> str:
    """A protocol in a few words: ``pgd, linf 8/255, 20 steps of 2/255, loss ce, n = 10,000 test images``.

    Args:
        measured: accuracies under it; n is theirs, since a data set may have fewer images than the protocol asks for.
    """
    counts = sorted({one.n for one in measured if one} or {protocol["n"]})
    n = " to ".join(f"{count:,}" for count in dict.fromkeys((counts[0], counts[-1])))
    return f"{attack_of(protocol)}, n = {n} {protocol['split']} images"


def attack_of(protocol: Mapping[str, Any]) -> str:
    """What a protocol does to the images: ``pgd, linf 8/255, 20 steps of 2/255, loss ce``."""
    attack, step = protocol["attack"], protocol.get("step")
    words = [WITHOUT_ATTACKER.get(attack, attack)]
    if threat := threat_of(protocol):
        words.append(threat)
    if protocol.get("steps"):
        size = ThreatModel(norm=protocol["norm"], eps=step).size if step else ""
        of = f" of {size if '/' in size else f'{step:g}'}" if step else ""
        words.append(f"{protocol['steps']} steps{of}")
    if protocol.get("restarts", 1) > 1:
        words.append(f"{protocol['restarts']} restarts")
    if protocol.get("loss"):
        words.append(f"loss {protocol['loss']}")
    if protocol.get("queries"):
        words.append(f"Square with {protocol['queries']:,} queries")
    return ", ".join(words)


def threat_of(protocol: Mapping[str, Any]) -> str:
    """The threat model of a protocol, such as ``linf 8/255``; empty where nothing is perturbed."""
    return str(ThreatModel(norm=protocol["norm"], eps=protocol["eps"])) if protocol["eps"] else ""


def in_words(spec: Mapping[str, Any]) -> str:
    """An architecture spec on a line: ``staged, widths 16-16 / 32-32, resolutions 32 / 16, ...``."""
    lists = {"widths": " / ".join("-".join(map(str, stage)) for stage in spec.get("widths", []))}
    lists["resolutions"] = " / ".join(map(str, spec.get("resolutions", [])))
    rest = {key: value for key, value in spec.items() if key not in (*lists, "arch", "mean", "std")}
    words = [f"{key} {value}" for key, value in (lists | rest).items() if value not in ("", None)]
    return ", ".join([str(spec["arch"]), *words])
