"""Measure a model under named protocols: per-image bits, deterministic in the seed, resumable.

Only images that the model classifies correctly are attacked, in batches of about equal size. ``worst_case`` combines
the bits of several attacks per image; they are never averaged.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from contextlib import closing
from functools import partial
from numbers import Integral
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from zoo.attacks import broken
from zoo.attacks.inputs import kind_of
from zoo.attacks.pulse import Meter
from zoo.datasets.base import Split, to_float
from zoo.evaluation.directions import guided
from zoo.evaluation.exact import exact
from zoo.evaluation.flags import explained
from zoo.evaluation.ledger import Counts, Ledger, run_key
from zoo.evaluation.look import IMAGES, MASKED_SHARE, Look, look, wrong_gradient
from zoo.evaluation.perturb import perturb
from zoo.evaluation.protocols import CORRUPTED, Protocol
from zoo.evaluation.together import gathered, place
from zoo.evaluation.workers import Crew, batches_done, equal_parts, limited
from zoo.models.classifier import GlobalAveragePool
from zoo.models.fold import as_built, fold_batchnorm
from zoo.system.arguments import typed
from zoo.system.errors import UsageError
from zoo.system.torch_device import torch_device

Batch = Callable[[np.ndarray], tuple[Tensor, Tensor]]  # indices [B] to images [B, C, H, W] and labels [B]
Progress = Callable[[int, int], None]  # images done, images in all; called by several threads, one at a time

SQUARE = {"attack": "square", "queries": 1000, "step": None, "steps": None, "loss": None, "restarts": 1}
WRONG, LOOKED_AT = "_wrong_gradients", "_looked_at"  # counts of the ledger: wrong or zero gradients, of so many


def prepare(model: nn.Module, images: Tensor | None = None) -> nn.Module:
    """A frozen copy of ``model`` that is faster to attack: BatchNorm folded; activations and their gradients are
    channels_last, where the model can work with these.

    Both are tried on a few ``images`` [N, 3, H, W]. Without these, only a :class:`Classifier` is folded
    (:func:`fold_batchnorm`), and channels_last is set untried.

    It is not compiled, because folded students gain little from it on a CPU (2,000 to 2,400 attack steps per second,
    one image each, in eager mode; 2,000 to 2,700 compiled, on two busy cores).
    """
    prepared = fold_batchnorm(model, images)
    for parent in list(prepared.modules()):
        for name, module in parent.named_children():
            if as_built(module, GlobalAveragePool):
                setattr(parent, name, _Pool().eval())
    try:
        prepared.to(memory_format=torch.channels_last)
        if images is not None:
            where = next((tensor.device for tensor in prepared.state_dict().values()), images.device)
            with torch.enable_grad():
                x = images.to(where, copy=True).requires_grad_()
                if (z := prepared(x.clone())).requires_grad:
                    torch.autograd.grad(z.sum(), x, allow_unused=True)
    except RuntimeError:  # as x.view() of what a convolution returns, or weights of five dimensions
        prepared.to(memory_format=torch.contiguous_format)
    return prepared


class _Pool(nn.Module):
    """:class:`GlobalAveragePool` with a gradient in channels_last, as the layers before it want it."""

    def forward(self, x: Tensor) -> Tensor:
        return x.permute(0, 2, 3, 1).mean((1, 2))


@torch.inference_mode(mode=False)  # whatever the caller's: attacks need gradients
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
    flags: set[str] | None = None,
    together: bool = False,
    directions: Literal["auto", "fp32"] = "auto",
    notes: dict[str, str] | None = None,
) -> np.ndarray:
    """Attack ``model`` as ``protocol`` says: for each image, whether the model classifies it correctly.

    >>> from zoo import load
    >>> from zoo.evaluation.protocols import protocol
    >>> images, labels = np.zeros((2, 32, 32, 3), np.uint8), np.zeros(2, np.int64)
    >>> evaluate(load("trades-s3"), images, labels, protocol("pgd20")).shape
    (2,)

    The model is looked at first (:mod:`zoo.evaluation.look`). One with random answers is attacked in expectation over
    draws; where gradients vanish in rounding, they pass straight through; and a model that gradients cannot be trusted
    for is attacked with Square as well. The verdict on it carries flags.

    Args:
        model: a float32 classifier of images [N, 3, H, W] in [0, 1], in any mode; it is not changed.
        images: uint8 [N, H, W, 3]; the first ``protocol.n`` are used.
        labels: integers [N].
        batch_size: at most so many images are attacked at once. Random starts depend on it.
        progress: takes the images done and all; if Square is run as well, images that are left count once more.
        resume: a folder for the bits so far; see :mod:`zoo.evaluation.ledger`.
        counts: filled with the number of images that each part of a composed attack broke.
        flags: filled with names in :data:`zoo.evaluation.flags.FLAGS`; without it, a flag is a warning.
        together: all processes of torch.distributed call this with the same arguments. Each attacks its share of the
            batches, and all return the bits that one process alone would find.
        directions: "auto" lets attacks take their directions from a copy of the model in bfloat16, where the device has
            instructions for it and the copy agrees with the model (:mod:`zoo.evaluation.directions`). Whether an image
            is broken is always decided by the model itself, in float32.
        notes: filled with what was chosen: ``{"directions": "bf16"}`` if there was such a copy.

    Returns:
        bool [min(N, protocol.n)]; a tie between the correct class and another counts as wrong.

    Raises:
        UsageError: there are no images, an argument is not as above, or the answer to an image depends on the others
            in its batch.
        WrongDevice: torch cannot use ``device`` here.

    Warns:
        UserWarning: a flag was raised, and ``flags`` was not given.
    """
    typed(model=(model, nn.Module), protocol=(protocol, Protocol), batch_size=(batch_size, Integral))
    _check(images, labels)
    if protocol.attack in CORRUPTED:
        raise UsageError(f"'{protocol.name}' corrupts images and attacks none: use zoo.evaluation.measure.measure")
    if batch_size < 1:
        raise UsageError(f"batch_size must be at least 1, not {batch_size}")
    device = torch_device(device)
    n = min(protocol.n, len(images))
    with limited(1):  # a few images: threads would only wait for each other
        prepared = prepare(model, to_float(images[:2])).to(device)

    def batch(index: np.ndarray) -> tuple[Tensor, Tensor]:
        x = to_float(images[index]).to(device)
        return x, torch.from_numpy(labels[index].astype(np.int64)).to(device)

    with limited(1), torch.no_grad():
        logits = prepared(batch(np.arange(1))[0])
    if logits.ndim != 2 or len(logits) != 1:
        raise UsageError(f"the model must map [1, C, H, W] to logits [1, classes], not {list(logits.shape)}")
    low, high, classes = int(labels[:n].min()), int(labels[:n].max()), logits.shape[1]
    if low < 0 or high >= classes:
        raise UsageError(f"this model needs labels from 0 to {classes - 1}, but these go from {low} to {high}")

    paired = device.type == "cpu"  # elsewhere there is one worker
    split = partial(equal_parts, largest=batch_size, paired=paired)
    crew = Crew.of(prepared, batch(np.arange(min(n, 8)))[0], len(split(n)), len(split(n)[0]))
    with limited(crew.threads), exact():
        seen = look(prepared, *batch(np.arange(min(n, IMAGES))), protocol, alone=batch_size == 1)
        attacked = seen.model
        if directions == "auto" and attacked is prepared and not seen.flags and kind_of(protocol.attack).guided:
            attacked = guided(attacked, *batch(np.arange(min(n, IMAGES))))
            if notes is not None and attacked is not prepared:
                notes["directions"] = "bf16"
        right = _right(attacked, batch, equal_parts(n, _at_once(images, paired, batch_size), paired=paired), crew)
        if together:
            right = gathered(right)[0]
        ledger = Ledger(None)
        if protocol.attack == "none":
            progress(n, n)
        else:
            if resume is not None:
                key = run_key(attacked, images[:n], labels[:n], protocol, batch_size, str(device))
                ledger = Ledger(resume / f"{key}.json")
            right = _attack(seen, attacked, batch, right, protocol, split, ledger, progress, counts, together, crew)
        seen.again()
    if together:
        seen.flags.update(*gathered(seen.flags))
    if flags is not None:
        flags |= seen.flags
    elif seen.flags:
        told = f"this accuracy may be too high: {'; '.join(explained(seen.flags))}"
        warnings.warn(told, stacklevel=3)  # past the decorator
    ledger.remove()
    return right


def _at_once(images: np.ndarray, on_cpu: bool, batch_size: int) -> int:
    """How many of ``images`` [N, H, W, 3] are classified at once: large ones, or many on a CPU, would fill memory."""
    usual = 250 if on_cpu else 1000
    return 1 if batch_size == 1 else max(1, min(usual, usual * 32**2 // (images.shape[1] * images.shape[2])))


def _right(model: nn.Module, batch: Batch, parts: list[np.ndarray], crew: Crew) -> np.ndarray:
    """Which images of all ``parts`` are classified correctly: bool [n]."""

    @torch.no_grad()
    def work(number: int, index: np.ndarray) -> np.ndarray:
        x, y = batch(index)
        return (~broken(model(x), y)).cpu().numpy()

    meter = Meter(lambda done, total: None, 0, sum(map(len, parts)))
    with closing(batches_done(work, dict(enumerate(parts)), meter, crew)) as results:
        right = dict(results)
    return np.concatenate([right[number] for number in range(len(parts))])


def _attack(
    seen: Look,
    attacked: nn.Module,
    batch: Batch,
    right: np.ndarray,
    protocol: Protocol,
    split: Callable[[int], list[np.ndarray]],
    ledger: Ledger,
    progress: Progress,
    counts: Counts | None,
    together: bool,
    crew: Crew,
) -> np.ndarray:
    """Which images are right after the attack in batches by ``split``, of those that are ``right`` before: bool [n]."""
    n, bits = len(right), right.copy()
    rank, processes = place() if together else (0, 1)

    def attack(one: Protocol) -> None:
        standing = np.flatnonzero(bits)
        batches = {int(part[0]): standing[part] for part in split(len(standing))}
        meter = Meter(progress, n - len(standing), n, scale=processes)

        def done(start: int, index: np.ndarray) -> tuple[np.ndarray, Counts] | None:
            if ledger.known(one.attack, index) is not None:
                return None
            parts: Counts = {}
            x, y = batch(index)
            # Each batch has its own seed; otherwise all batches would start from the same noise.
            # Square is run as well where gradients are in doubt, so it has no guide.
            chosen = attacked if one is protocol else seen.model
            x_adv = perturb(one.model_copy(update={"seed": one.seed + start}), chosen, x, y, counts=parts)
            with torch.no_grad():
                robust = (~broken(seen.model(x_adv.clone()), y)).cpu().numpy()  # it may write into its images
            if one is not protocol:
                parts[one.attack] = float(len(index) - robust.sum())
            elif kind_of(one.attack).gradients and robust.any():
                left = torch.from_numpy(robust).to(y.device).nonzero()[:, 0]
                few, more = left[: -(-IMAGES * len(index) // len(standing))], left[:IMAGES]
                wrong = wrong_gradient(seen.model, x_adv[few], y[few])
                if wrong.any():  # then the share must be known better
                    wrong = wrong_gradient(seen.model, x_adv[more], y[more])
                parts[WRONG], parts[LOOKED_AT] = float(wrong.sum()), float(len(wrong))
            return robust, parts

        own = dict(list(batches.items())[rank::processes])
        with closing(batches_done(done, own, meter, crew)) as results:  # no worker goes on after an interruption
            for start, found in results:
                if found:
                    ledger.record(one.attack, own[start], *found)
        if together:
            ledger.add(*gathered(ledger.batches))
            seen.flags.update(*gathered(seen.flags))  # these decide what follows
        for index in batches.values():
            bits[index] = ledger.known(one.attack, index)

    attack(protocol)
    if ledger.counts.get(WRONG, 0.0) > MASKED_SHARE * ledger.counts.get(LOOKED_AT, 0.0):
        seen.flags.add("masked")
    kind = kind_of(protocol.attack)
    if seen.flags & {"masked", "coarse"} and kind.gradients and not kind.queries:
        attack(protocol.model_copy(update={**SQUARE, "name": protocol.name}))
    if counts is not None:
        counts.update({part: count for part, count in ledger.counts.items() if part not in (WRONG, LOOKED_AT)})
    return bits


def _check(images: np.ndarray, labels: np.ndarray) -> None:
    """Raise UsageError unless images are uint8 [N, H, W, 3] and labels integers [N], N of at least 1."""
    if not isinstance(images, np.ndarray) or images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3:
        got = f"{images.dtype} {list(images.shape)}" if isinstance(images, np.ndarray) else type(images).__name__
        raise UsageError(f"evaluation takes images as uint8 arrays of shape [N, H, W, 3], not {got}")
    if not isinstance(labels, np.ndarray) or not np.issubdtype(labels.dtype, np.integer) or labels.ndim != 1:
        got = f"{labels.dtype} {list(labels.shape)}" if isinstance(labels, np.ndarray) else type(labels).__name__
        raise UsageError(f"evaluation takes labels as an array of integers of shape [N], not {got}")
    if not len(images) or len(images) != len(labels):
        raise UsageError(f"evaluation needs images and as many labels: got {len(images)} images, {len(labels)} labels")


def worst_case(bits: Mapping[str, np.ndarray]) -> np.ndarray:
    """Per-image worst case over attacks, on the leading images that all attacks share: bool [min n].

    >>> worst_case({"pgd20": np.array([True, True, False]), "autoattack": np.array([True, False])}).tolist()
    [True, False]
    """
    n = min(len(array) for array in bits.values())
    return np.logical_and.reduce([array[:n] for array in bits.values()])


def evaluate_split(model: nn.Module, split: Split, protocol: Protocol, **options: Any) -> np.ndarray:
    """:func:`evaluate` on ``split``; UsageError if the protocol is for another split."""
    if protocol.split != split.name:
        raise UsageError(f"protocol '{protocol.name}' is for the {protocol.split} split, not '{split.name}'")
    return evaluate(model, split.images, split.labels, protocol, **options)
