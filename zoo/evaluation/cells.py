"""Measure a model under common corruptions: every image in every cell of 15 kinds x 5 severities.

An image counts in all cells, also where the model is wrong about it without corruption. The mean over the cells and the
kind with the lowest accuracy are reported; the images of different cells are the same ones, so that the interval is
over images (:meth:`zoo.evaluation.statistics.Accuracy.over`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from zoo.datasets.base import Split, to_float
from zoo.evaluation.corruptions import CELLS, KINDS, SEVERITIES, Source
from zoo.evaluation.evaluate import evaluate, prepare
from zoo.evaluation.ledger import Ledger, run_key
from zoo.evaluation.protocols import Protocol
from zoo.evaluation.statistics import Accuracy
from zoo.evaluation.together import gathered, place


def evaluate_cells(
    model: nn.Module,
    split: Split,
    protocol: Protocol,
    source: Source,
    *,
    batch_size: int = 250,
    device: str | torch.device = "cpu",
    progress: Callable[[int, int], None] = lambda done, total: None,
    resume: Path | None = None,
    flags: set[str] | None = None,
    together: bool = False,
) -> np.ndarray:
    """Who is right in which cell, bool [75, n]; arguments as for :func:`zoo.evaluation.evaluate.evaluate`.

    Args:
        source: of the corrupted images of ``split``; see :func:`zoo.evaluation.corruptions.source_of`.
        progress: takes the corrupted images done and all.
    """
    n = min(protocol.n, len(split))
    images, labels, every = split.images[:n], split.labels[:n], np.arange(n)
    ledger = Ledger(None)
    if resume is not None:
        ready = prepare(model, to_float(images[:2])).to(device)
        key = run_key(ready, images, labels, protocol, batch_size, str(device)) + json.dumps(source.facts())
        ledger = Ledger(resume / f"{hashlib.sha256(key.encode()).hexdigest()}.json")
    plain = protocol.model_copy(update={"attack": "none", "n": n})
    rank, processes = place() if together else (0, 1)
    seen: set[str] = set()
    for number, (kind, severity) in list(enumerate(CELLS))[rank::processes]:
        if ledger.known(f"{kind}-{severity}", every) is None:
            pixels = source.images(kind, severity, n)
            bits = evaluate(model, pixels, labels, plain, batch_size=batch_size, device=device, flags=seen)
            ledger.record(f"{kind}-{severity}", every, bits, {})
        progress((number + 1) * n, len(CELLS) * n)
    if together:
        ledger.add(*gathered(ledger.batches))
        seen.update(*gathered(seen))
    if flags is not None:
        flags |= seen
    ledger.remove()
    return np.array([ledger.known(f"{kind}-{severity}", every) for kind, severity in CELLS])


def summary(bits: np.ndarray, names: Sequence[str] = KINDS) -> dict[str, Any]:
    """What a result says of ``bits`` of the kinds called ``names``, bool [5 kinds, n], beside the mean accuracy,
    JSON-ready: the table, the worst kind.

    The worst kind is chosen by these bits, so that its accuracy is a little too low: by chance any kind may be last.
    """
    kinds = bits.reshape(len(names), len(SEVERITIES), -1)
    worst = int(kinds.mean((1, 2)).argmin())
    return {
        "worst": names[worst],
        "accuracy": Accuracy.over(kinds[worst]).to_dict(),
        "cells": {kind: own.sum(1).tolist() for kind, own in zip(names, kinds, strict=True)},
    }
