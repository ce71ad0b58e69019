"""Bundles of models that were made in a test."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from zoo.datasets.base import Split
from zoo.export.bundle.source import Known
from zoo.export.exporter import write_bundle
from zoo.export.ladder.climb import silent
from zoo.export.options import ExportOptions
from zoo.models import Classifier


def bundle_of(
    model: Classifier,
    known: Known,
    *,
    split: Split | None = None,
    calibrated: Any = None,
    held_out: Split | None = None,
    progress: Any = silent,
    **options: Any,
) -> Path:
    """The folder of a bundle of ``model``, exported with these options of :class:`ExportOptions`."""
    order = ExportOptions(**options)
    images: dict[str, Any] = {"split": split, "calibrated": calibrated, "held_out": held_out}
    return write_bundle(model, known, order, **images, progress=progress).folder
