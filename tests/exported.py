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
    progress: Any = silent,
    **options: Any,
) -> Path:
    """The folder of a bundle of ``model``, exported with these options of :class:`ExportOptions`."""
    order = ExportOptions(**options)
    return write_bundle(model, known, order, split=split, calibrated=calibrated, progress=progress).folder
