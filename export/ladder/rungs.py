"""The rungs: what is measured of an engine against its float twin. ``climb.py`` decides which are climbed.

An engine has no gradients, and quantisation masks them. Replaying the twin's adversarial examples is therefore
an optimistic bound; the walks of ``surrogate.py`` are a tighter one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from functools import partial
from math import inf
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from zoo.attacks import Model, broken, margin
from zoo.attacks.pulse import Meter, portion
from zoo.datasets.base import to_float
from zoo.evaluation.corruptions import corrupted, one_each, versions
from zoo.evaluation.perturb import perturb
from zoo.evaluation.protocols import Protocol
from zoo.evaluation.workers import Crew, batches_done, equal_parts, limited
from zoo.export.engines.interface import Engine
from zoo.export.engines.twin import Twin
from zoo.export.ladder.examples import Examples
from zoo.system.errors import UsageError

BATCH = 250  # at most so many images are attacked at once
PARITY_IMAGES = 64
SAMPLE = 640  # logits, to see whether they take few values
SHIFT = 4  # pixels

Tick = Callable[[int, int], None]  # images done, images in all
Bits = tuple[np.ndarray, np.ndarray]  # who is right, bool [N]: the twin, the engine
# x, y, seed, the indices of the images, and on which of them the twin and the engine are attacked (bool [2, n]), to
# images for the twin and for the engine
Attack = Callable[[Tensor, Tensor, int, np.ndarray, Tensor], tuple[Tensor, Tensor]]


def right(engine: Engine, x: Tensor, y: Tensor) -> np.ndarray:
    """Which images the engine classifies correctly, bool [N]. A tie counts as broken, or an engine with coarse
    logits would look robust."""
    return ~broken(engine(x), y).numpy()


def spread(logits: Tensor) -> float:
    """The spread of a net's logits [N, K]: the median over the images of their standard deviation over the classes.

    It grows with the logits as rounding errors do, and what all classes have in common, which no decision sees, is not
    in it. It is one number for a net: rounding depends on what the net computes, and not on how undecided it is about
    one image. The median, so that one image far from the others does not set it.
    """
    return logits.std(1, correction=0).median().item()


def parity(model: nn.Module, engine: Engine, x: Tensor, sizes: Sequence[int], *, seed: int = 0) -> dict[str, Any]:
    """How far the engine's logits are from the model's, in batches of each of ``sizes``.

    They are compared on ``x``, and on some of it mirrored and moved by up to 4 pixels: an engine that knows the test
    images by heart does not know these.

    Args:
        model: the float model as it was loaded, nothing folded.
        x: images [N, C, H, W] in [0, 1].
        seed: of the moves.

    Returns:
        The worst over the batch sizes of: the largest difference of a logit, also as a share of the model's
        :func:`spread`; the largest change of a decision margin (of the class that the model decides for); the share of
        images with the same decision, and the widest margin of the model, as a share of the spread, among the images
        with another decision. How deterministic the engine is: by how much its own logits of an image differ
        between batch sizes, and between two runs of the same batches. And how many of a sample of its logits
        are distinct, as a share.
    """
    twin = Twin(model, shape=(x.shape[1], x.shape[2], x.shape[3]))
    images = torch.cat([x, _moved(x[:PARITY_IMAGES], seed)])
    reference = torch.cat([twin(part) for part in images.split(64)])  # [N + M, K]
    decided = reference.argmax(1)
    own_margin = margin(reference, decided)
    logit_differences, margin_changes, agreements, flipped = [], [], [], [reference.new_zeros(())]

    def answered(part: slice, size: int) -> Tensor:
        """The engine's logits of a part of the images, which are compared with the model's."""
        logits = torch.cat([engine(batch) for batch in images[part].split(size)])
        if logits.shape != reference[part].shape:
            raise UsageError(f"the engine answers with logits {list(logits.shape)}, not {list(reference[part].shape)}")
        agree = ~broken(logits, decided[part])
        logit_differences.append((logits - reference[part]).abs().max())
        margin_changes.append((margin(logits, decided[part]) - own_margin[part]).abs().max())
        agreements.append(agree.double().mean())
        flipped.extend(own_margin[part][~agree])
        return logits[:PARITY_IMAGES]

    # Thousands of batches of 1 would show nothing more.
    parts = [slice(0, min(len(x), max(PARITY_IMAGES, size))) for size in sizes]
    answers = [answered(part, size) for part, size in zip(parts, sizes, strict=True)]
    again = answered(parts[-1], sizes[-1])
    answered(slice(len(x), None), sizes[-1])
    sample = answers[-1].flatten()[:SAMPLE]
    difference, scale = torch.stack(logit_differences).max().item(), spread(reference[: len(x)])
    return {
        "max_logit_difference": difference,  # NaN if there is one
        "logit_spread": scale,
        "relative_difference": _share(difference, scale),
        "max_margin_change": torch.stack(margin_changes).max().item(),
        "agreement": torch.stack(agreements).min().item(),
        "widest_margin_flipped": _share(torch.stack(flipped).max().item(), scale),
        "smallest_margin": own_margin.min().item(),
        "difference_between_batches": max((a - answers[0]).abs().max().item() for a in answers),
        "difference_between_runs": (again - answers[-1]).abs().max().item(),
        "distinct_logits": len(sample.unique()) / len(sample),
        "batches": list(sizes),
    }


def _moved(x: Tensor, seed: int) -> Tensor:
    """Images [N, C, H, W] mirrored and moved, by as much for all of them."""
    down, right = torch.randint(1, SHIFT + 1, (2,), generator=torch.Generator().manual_seed(seed)).tolist()
    return x.flip(-1).roll((down, right), (-2, -1))


def _share(difference: float, scale: float) -> float:
    """``difference / scale``; of a net that answers with equal logits nothing may differ."""
    return difference / scale if scale else (inf if difference else 0.0)


def transfer(
    source: nn.Module, protocol: Protocol, examples: Examples | None = None, *, early_stop: bool = False
) -> Attack:
    """What ``protocol`` (PGD, targeted PGD or APGD) makes of a float model, given to both.

    Args:
        source: the twin's net, with a guide or without.
        examples: of this net, for all engines that they are replayed on.
        early_stop: an image ends at its first misclassified point. Else it takes every step: points that only just
            cross the boundary of the model would not cross that of an engine that computes something else.
    """

    def attack(x: Tensor, y: Tensor, seed: int, index: np.ndarray, only: Tensor) -> tuple[Tensor, Tensor]:
        seeded = protocol.model_copy(update={"seed": seed})
        some = only.any(0)
        make = partial(perturb, seeded, source, x, y, early_stop=early_stop, only=some)
        x_adv = make() if examples is None else examples.of(f"{seeded.model_dump_json()} {some.tolist()}", x, y, make)
        return x_adv, x_adv

    return attack


def black_box(
    twin: Model, engine: Engine, protocol: Protocol, *, bits: Bits | None = None, spared: np.ndarray | None = None
) -> Attack:
    """Square, as ``protocol`` says, on each in turn; what it finds in the engine owes nothing to gradients.

    Each is attacked on the images that it is right on, with the same random numbers as in a full batch. The twin is not
    attacked on those images ``spared`` that the engine withstands: the engine's bits and the images that only the twin
    gets right stay the same, and the twin cannot get more of the others wrong. Non-inferiority is no easier to show.

    Args:
        twin: the twin, or its net with a guide, by which candidates are left out (:mod:`zoo.attacks.foresight`).
        bits: who is right so far; None: both, on every image.
        spared: images on which Square is not expected to find anything in the twin, bool [N]; None: no image.
    """

    def attack(x: Tensor, y: Tensor, seed: int, index: np.ndarray, only: Tensor) -> tuple[Tensor, Tensor]:
        seeded = protocol.model_copy(update={"seed": seed})
        so_far = [one[index] for one in bits] if bits else [np.ones(len(index), bool)] * 2
        twin_right, engine_right = (one & wanted for one, wanted in zip(so_far, only.numpy(), strict=True))
        with portion(0, 0.5):
            for_engine = perturb(seeded, engine, x, y, only=torch.from_numpy(engine_right))
        if spared is not None:
            twin_right = twin_right & ~(spared[index] & engine_right & right(engine, for_engine, y))
        with portion(0.5, 1):
            return perturb(seeded, twin, x, y, only=torch.from_numpy(twin_right)), for_engine

    return attack


def clean(twin: Twin, engine: Engine, images: np.ndarray, labels: np.ndarray, tick: Tick) -> Bits:
    """Who classifies which image correctly, unperturbed; arguments as for :func:`survivors`."""
    everything = np.ones(len(labels), bool)
    return survivors(lambda x, *_: (x, x), twin, engine, images, labels, (everything, everything), 0, tick)


def corruptions(
    twin: Twin,
    engine: Engine,
    images: np.ndarray,
    labels: np.ndarray,
    kinds: Sequence[str],
    seed: int,
    tick: Tick,
) -> tuple[Bits, dict[str, Any]]:
    """Who classifies which image correctly when each has one corruption, a kind of ``kinds`` and a severity at random.

    The images stay independent, so that the gate for pairs is valid; other arguments as for :func:`survivors`.

    Returns:
        the bits, and what was found by kind: its images, how many the twin and the engine got right; the kind in
        which the engine is right least often, and that in which it loses most; what computed the images.
    """
    cells = one_each(len(labels), kinds, seed)
    damaged = np.empty_like(images)
    for cell in sorted(set(cells)):
        index = np.flatnonzero([one == cell for one in cells])
        damaged[index] = corrupted(images[index], *cell, seed=seed, index=index)
    bits = clean(twin, engine, damaged, labels, tick)
    found = {}
    for kind in (kind for kind in kinds if kind in dict(cells)):
        own = np.array([cell[0] == kind for cell in cells])
        found[kind] = {"n": int(own.sum()), "twin": int(bits[0][own].sum()), "engine": int(bits[1][own].sum())}
    worst = min(found, key=lambda kind: found[kind]["engine"] / found[kind]["n"])
    most_lost = max(found, key=lambda kind: (found[kind]["twin"] - found[kind]["engine"]) / found[kind]["n"])
    return bits, {"kinds": found, "worst": worst, "most_lost": most_lost, "computed_by": versions()}


def survivors(
    attack: Attack,
    twin: Twin,
    engine: Engine,
    images: np.ndarray,
    labels: np.ndarray,
    bits: Bits,
    seed: int,
    tick: Tick,
    margins: np.ndarray | None = None,
    spared: np.ndarray | None = None,
) -> Bits:
    """Worst case so far after one more attack, per image; images that both already get wrong are not attacked.

    Both are attacked on the same images in the same batches, so that they get the same random starts: their
    difference is then the engine's doing, not chance's.

    Args:
        images: uint8 [N, H, W, C]; labels: int64 [N]; bits: who is right so far.
        margins: the smallest margins so far, of the twin and of the engine, [2, N], NaN before the first attack;
            lowered where the attack finds smaller ones.
        spared: the images that the twin is not attacked on, and those that the engine is not, bool [2, N]; None: no
            image. The others are attacked as if these were too.
    """
    twin_right, engine_right = bits[0].copy(), bits[1].copy()
    standing = np.flatnonzero(bits[0] | bits[1])
    batches = {int(part[0]): standing[part] for part in equal_parts(len(standing), BATCH)}
    meter = Meter(tick, len(labels) - len(standing), len(labels))

    wanted = np.ones((2, len(labels)), bool) if spared is None else ~spared

    def attacked(start: int, index: np.ndarray) -> list[np.ndarray]:
        only = torch.from_numpy(wanted[:, index])
        if not only.any():
            return [np.empty(0, np.float32)] * 2
        x, y = to_float(images[index]), torch.from_numpy(np.asarray(labels[index], dtype=np.int64))
        given = zip((twin, engine), attack(x, y, seed + start, index, only), only, strict=True)
        return [margin(one(x_adv[asked]), y[asked]).numpy() for one, x_adv, asked in given]

    crew = Crew.of(twin.model, to_float(images[:8]), len(batches), max(map(len, batches.values()), default=1))
    with limited(crew.threads), closing(batches_done(attacked, batches, meter, crew)) as results:
        for start, found in results:
            for side, (bits_so_far, own) in enumerate(zip((twin_right, engine_right), found, strict=True)):
                rows = batches[start][wanted[side, batches[start]]]
                bits_so_far[rows] &= own > 0  # NaN and ties are broken
                if margins is not None:
                    margins[side, rows] = np.fmin(margins[side, rows], own)
    return twin_right, engine_right
