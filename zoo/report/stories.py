"""What is stored of trainings besides the registry: learning curves, and the searches of the tutors.

``released/`` holds those of the released models, as ``python docs/figures.py`` and ``python docs/rnascl.py`` take them
over from finished runs.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from zoo.registry.entry import Entry
from zoo.registry.file import PACKAGED, load_registry
from zoo.specs import parse_spec

RELEASED = Path(__file__).with_name("released")
CURVES = RELEASED / "learning-curves.json"


def learning_curve(entry: Entry) -> list[Mapping[str, float]]:
    """Epoch by epoch: "epoch", "clean" and "pgd" (accuracy on held-out training images) and "seconds"; empty if it is
    not stored for these weights."""
    released = load_registry(PACKAGED).models.get(entry.name)
    same = released is not None and released.weights.sha256 == entry.weights.sha256
    return _curves().get(entry.name, []) if same else []


def search(entry: Entry) -> Mapping[str, Any] | None:
    """The search that found the architecture of an RNAS-CL student and its tutors; None if it is not stored."""
    if entry.family != "rnascl":
        return None
    spec = parse_spec(entry.spec)
    return next((found for found in _searches() if parse_spec(found["spec"]) == spec), None)


def tutors(found: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Of each convolution of the student: its ``layer``, its ``tutor`` in the teacher, with what probability ``p`` the
    search held it at its end, and the ``probabilities`` of all."""
    layers = found["teacher_layers"]
    rows = zip(found["tutors"].items(), found["history"][-1]["tutor_probabilities"], strict=True)
    for (layer, tutor), probabilities in rows:
        p = probabilities[layers.index(tutor)]
        yield {"layer": layer.removesuffix(".conv"), "tutor": tutor, "p": p, "probabilities": probabilities}


@cache
def _curves() -> dict[str, list[Mapping[str, float]]]:
    return json.loads(CURVES.read_bytes())


@cache
def _searches() -> list[dict[str, Any]]:
    return [json.loads(path.read_bytes()) for path in sorted(RELEASED.glob("search-*.json"))]
