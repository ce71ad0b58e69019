"""Measure a model: results with provenance, for its registry entry."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from zoo.datasets.base import Dataset
from zoo.evaluation.cells import evaluate_cells, summary
from zoo.evaluation.corruptions import source_of
from zoo.evaluation.evaluate import evaluate_split
from zoo.evaluation.flags import SQUARE_GAIN
from zoo.evaluation.ledger import Counts
from zoo.evaluation.protocols import CORRUPTED, Protocol
from zoo.evaluation.statistics import Accuracy
from zoo.system.toolchain import toolchain


@dataclass(frozen=True)
class Measurement:
    """The result of one protocol: the record for the registry, and its per-image bits."""

    protocol: Protocol
    result: dict[str, Any]
    bits: np.ndarray  # bool [n]; under corruptions [cells n], one cell after the other
    split_size: int

    @property
    def accuracy(self) -> dict[str, Any]:
        """Its value, n and interval."""
        return self.result["accuracy"]

    @property
    def flags(self) -> tuple[str, ...]:
        """Why the accuracy may be too high: names in :data:`zoo.evaluation.flags.FLAGS`."""
        return tuple(self.result["flags"])


def measure(
    model: nn.Module,
    weights_sha256: str | None,
    dataset: Dataset,
    protocols: Iterable[Protocol],
    *,
    batch_size: int = 250,
    device: str = "cpu",
    progress: Callable[[Protocol, int, int], None] = lambda protocol, done, total: None,
    resume: Path | None = None,
    together: bool = False,
    directions: Literal["auto", "fp32"] = "auto",
) -> Iterable[Measurement]:
    """Evaluate ``model`` under each protocol in turn and yield a :class:`Measurement` as each is done.

    Args:
        weights_sha256: of the file that ``model`` was loaded from, None if there is none; stored in every result.
        resume: a folder for unfinished evaluations.
        together, directions: as for :func:`zoo.evaluation.evaluate.evaluate`.
    """
    for protocol in protocols:
        split = dataset.split(protocol.split)
        counts: Counts = {}
        flags: set[str] = set()
        start = time.perf_counter()
        options: dict[str, Any] = {
            "batch_size": batch_size,
            "device": device,
            "progress": lambda done, total, protocol=protocol: progress(protocol, done, total),
            "resume": resume,
            "flags": flags,
            "together": together,
        }
        used, table = toolchain(), {}
        if torch.device(device).type == "cuda":
            used["gpu"] = torch.cuda.get_device_name(device)
        if protocol.attack in CORRUPTED:
            source = source_of(protocol, split)
            cells = evaluate_cells(model, split, protocol, source, **options)
            accuracy, bits = Accuracy.over(cells), cells.ravel()
            used, table = used | source.facts(), {"corruptions": summary(cells)}
        else:
            bits = evaluate_split(model, split, protocol, counts=counts, directions=directions, notes=used, **options)
            accuracy = Accuracy.of(bits)
        if counts.get("square", 0.0) > SQUARE_GAIN * len(bits):  # after white-box attacks, or gradient attacks
            flags.add("unreliable")
        result = {
            "accuracy": accuracy.to_dict(),
            "weights_sha256": weights_sha256,
            "dataset_sha256": split.fingerprint,
            "toolchain": used,
            "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "wall_s": round(time.perf_counter() - start, 1),
            "flags": sorted(flags),
            "extra": {f"broken_by_{part}": float(count) for part, count in counts.items()},
            **table,
        }
        yield Measurement(protocol, result, bits, len(split))
