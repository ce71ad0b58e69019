"""Whether an artifact that is bound to a device and a runtime fits another: ``built_for`` of a manifest against facts.

A fact must be equal to what is wanted, one of several behind commas, or no lower version than the one behind ">=".
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

LABELS = {
    "gpu": "GPU",
    "compute_capability": "compute capability",
    "tensorrt": "TensorRT",
    "tensorrt_rtx": "TensorRT for RTX",
}


def misfits(built_for: Mapping[str, str], facts: Mapping[str, str]) -> list[str]:
    """The keys of ``built_for`` that ``facts`` do not meet."""
    return [key for key, wanted in built_for.items() if not _meets(str(facts.get(key, "")), wanted)]


def phrase(facts: Mapping[str, str], keys: Collection[str]) -> str:
    """Some of the facts as a phrase."""
    return ", ".join(f"{LABELS.get(key, key)} {facts.get(key, '(unknown)')}" for key in keys)


def _meets(found: str, wanted: str) -> bool:
    if wanted.startswith(">="):
        return _numbers(found) >= _numbers(wanted)
    return found == wanted or found in wanted.split(", ")


def _numbers(version: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", version)]
