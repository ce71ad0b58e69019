"""Measure a model under named protocols: per-image bits, deterministic in the seed, resumable.

Only images that the model classifies correctly are attacked; all batches but the last are full. ``worst_case``
combines the bits of several attacks per image; they are never averaged.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor, nn

from zoo.attacks import broken
from zoo.datasets.base import Split, to_float
from zoo.evaluation.perturb import perturb
from zoo.evaluation.protocols import Protocol
from zoo.models.fold import fold_batchnorm
from zoo.system.errors import IntegrityError, UsageError
from zoo.system.files import replaced

Progress = Callable[[int, int], None]  # images done, images in all
Counts = dict[str, float]


def prepare(model: nn.Module) -> nn.Module:
    """A frozen copy of ``model`` that is faster to attack: BatchNorm folded, channels_last.

    It is not compiled, because folded students gain little from it on a CPU (2,000 to 2,400 attack steps per second,
    one image each, in eager mode; 2,000 to 2,700 compiled, on two busy cores).
    """
    return fold_batchnorm(model).to(memory_format=torch.channels_last)


def evaluate(
    model: nn.Module,
    images: np.ndarray,
    labels: np.ndarray,
    protocol: Protocol,
    *,
    batch_size: int = 250,
    device: str | torch.device = "cpu",
    progress: Progress = lambda done, total: None,
    resume: Path | None = None,
    counts: Counts | None = None,
) -> np.ndarray:
    """Attack ``model`` as ``protocol`` says: for each image, whether the model classifies it correctly.

    Args:
        model: a float32 classifier of images [N, 3, H, W] in [0, 1], in any mode; it is not changed.
        images: uint8 [N, H, W, 3]; the first ``protocol.n`` are used.
        labels: int64 [N].
        resume: a file for the bits so far; a run with the same model, images and protocol continues from it and
            removes it at the end.
        counts: filled with the number of images that each part of a composed attack broke.

    Returns:
        bool [min(N, protocol.n)]; a tie between the correct class and another counts as wrong.

    Raises:
        UsageError: there are no images, or images and labels differ in number.
        IntegrityError: the resume file is damaged.
    """
    n = min(protocol.n, len(images))
    if n == 0 or len(images) != len(labels):
        raise UsageError(f"evaluation needs images and as many labels: got {len(images)} images, {len(labels)} labels")
    attacked = prepare(model).to(device)
    ledger = _Ledger(resume, _run_key(attacked, images[:n], labels[:n], protocol, batch_size), n)

    def batch(index: np.ndarray) -> tuple[Tensor, Tensor]:
        x = to_float(images[index]).to(device)
        return x, torch.from_numpy(np.asarray(labels[index])).to(device)

    right = np.zeros(n, bool)
    at_once = max(1, min(1000, 1000 * 32**2 // (images.shape[1] * images.shape[2])))  # large images fill the memory
    with torch.no_grad():
        for index in np.array_split(np.arange(n), -(-n // at_once)):
            x, y = batch(index)
            right[index] = (~broken(attacked(x), y)).cpu().numpy()
    if protocol.attack == "none":
        progress(n, n)
        return right

    candidates = np.flatnonzero(right)
    for start in range(0, len(candidates), batch_size):
        index = candidates[start : start + batch_size]
        if not ledger.done[index].all():
            x, y = batch(index)
            # Each batch has its own seed; otherwise all batches would start from the same noise.
            seeded = protocol.model_copy(update={"seed": protocol.seed + start})
            parts: Counts = {}
            x_adv = perturb(seeded, attacked, x, y, counts=parts)
            with torch.no_grad():
                ledger.record(index, (~broken(attacked(x_adv), y)).cpu().numpy(), parts)
        progress(n - len(candidates) + min(start + batch_size, len(candidates)), n)
    if counts is not None:
        counts.update(ledger.counts)
    ledger.remove()
    return right & ledger.bits


def worst_case(bits: Mapping[str, np.ndarray]) -> np.ndarray:
    """Per-image worst case over attacks, on the leading images that all attacks share: bool [min n]."""
    n = min(len(array) for array in bits.values())
    return np.logical_and.reduce([array[:n] for array in bits.values()])


def evaluate_split(model: nn.Module, split: Split, protocol: Protocol, **options: Any) -> np.ndarray:
    """:func:`evaluate` on ``split``; UsageError if the protocol is for another split."""
    if protocol.split != split.name:
        raise UsageError(f"protocol '{protocol.name}' is for the {protocol.split} split, not '{split.name}'")
    return evaluate(model, split.images, split.labels, protocol, **options)


def _run_key(model: nn.Module, images: np.ndarray, labels: np.ndarray, protocol: Protocol, batch_size: int) -> str:
    """The hash of a run's model, images, protocol and batching, so that bits of different runs are not mixed."""
    digest = hashlib.sha256(json.dumps([protocol.model_dump(), batch_size, torch.__version__]).encode())
    for tensor in model.state_dict().values():
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    digest.update(np.ascontiguousarray(images).data)
    digest.update(np.ascontiguousarray(labels).data)
    return digest.hexdigest()


class _Ledger:
    """The bits of the finished images, saved after every batch."""

    def __init__(self, path: Path | None, key: str, n: int) -> None:
        self.path, self.key = path, key
        self.done, self.bits = np.zeros(n, bool), np.zeros(n, bool)
        self.counts: Counts = {}
        if path is None or not path.exists():
            return
        try:
            with np.load(path) as stored:
                if str(stored["key"]) == key:
                    self.done, self.bits = stored["done"], stored["bits"]
                    self.counts = json.loads(str(stored["counts"]))
        except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
            raise IntegrityError(
                f"the unfinished evaluation in '{path}' cannot be read ({type(error).__name__}): remove it"
            ) from None

    def record(self, index: np.ndarray, robust: np.ndarray, parts: Counts) -> None:
        self.done[index], self.bits[index] = True, robust
        for part, count in parts.items():
            self.counts[part] = self.counts.get(part, 0) + count
        if self.path is None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with replaced(self.path) as file:
            np.savez(file, key=self.key, done=self.done, bits=self.bits, counts=json.dumps(self.counts))

    def remove(self) -> None:
        if self.path is not None:
            self.path.unlink(missing_ok=True)
