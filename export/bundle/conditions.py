"""What an engine's answers depend on besides its file: the processor's arithmetic and the settings of the runtime."""

from __future__ import annotations

from itertools import chain
from typing import Any

from zoo.export.bundle.manifest import Manifest, Report
from zoo.system.fingerprint import UNKNOWN
from zoo.system.toolchain import MACHINE

SETTINGS = ("device", "threads", "callers", "providers", "graph_optimization", "config", "provider_options", "tf32")


def conditions(report: Report) -> dict[str, Any]:
    """Under which the engine was checked: of the device that it ran on, if that was another machine; none if it never
    ran."""
    if not report.ran:
        return {}
    there = {**report.engine, **report.engine.get("remote", report.toolchain)}
    return {name: there[name] for name in (*MACHINE, *SETTINGS) if name in there}


def in_words(facts: dict[str, Any]) -> str:
    """Conditions for people: "int8=x86-64 with VNNI, threads=2"; nothing where there are none."""
    pairs = chain(*(value.items() if isinstance(value, dict) else [(name, value)] for name, value in facts.items()))
    return ", ".join(f"{name}={' '.join(value) if isinstance(value, list) else value}" for name, value in pairs)


def other_arithmetic(manifest: Manifest, report: Report) -> str | None:
    """A sentence if int8 is computed otherwise in ``report`` than where the bundle was checked before; else None."""
    before, now = _int8(manifest.conditions), _int8(conditions(report))
    portable = manifest.int8 is not None and manifest.int8.portable
    if manifest.artifact.precision != "int8" or portable or before in (None, now):
        return None
    says = "may be" if UNKNOWN in (before, now) else "is"
    return (
        f"int8 {says} computed otherwise now ({now}) than where this bundle was checked before ({before}): the same "
        "image may get other logits, and what counts is what was found now"
    )


def _int8(facts: dict[str, Any]) -> str | None:
    """How products of int8 are added up; None if it is not recorded."""
    return facts.get("int8", UNKNOWN) if facts.get("device") == "cpu" else facts.get("device")
