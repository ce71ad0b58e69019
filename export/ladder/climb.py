"""The ladder: integrity, parity, clean, transfer, surrogate gradient, targeted, black box.

Each rung is climbed only if the one below holds, and every result is bound to the artifact it was measured on. Common
corruptions are a rung beside the attacks, if asked for: no level depends on it, but an engine that fails it is refused.
Of an engine that cannot run on this machine only the graph that it was built from can be compared: integrity, graph.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from math import inf
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from zoo.datasets.base import Split, to_float
from zoo.evaluation.directions import guided
from zoo.evaluation.evaluate import prepare
from zoo.evaluation.look import IMAGES, look
from zoo.evaluation.protocols import DATASET, PROTOCOLS, Protocol
from zoo.evaluation.threat import LINF_8, ThreatModel
from zoo.export.bundle.manifest import Level, Reached, Report, Rung, now
from zoo.export.engines.interface import Engine
from zoo.export.engines.twin import Twin
from zoo.export.ladder import rungs
from zoo.export.ladder.examples import Examples
from zoo.export.ladder.gate import COARSE, CORRUPTIONS, MASKED, UNSTEADY, compared
from zoo.export.ladder.surrogate import surrogate
from zoo.export.ladder.terms import DEFAULTS, FAITHFUL, QUERIES, Terms
from zoo.export.ladder.witness import Witness
from zoo.models import Classifier
from zoo.specs import Spec
from zoo.system.errors import UsageError
from zoo.system.toolchain import toolchain

CLEAN_IMAGES = 10_000
COARSE_SHARE = 0.5  # of the sampled logits; released students: 0.95 and more in fp16, 1 in fp32 and in int8
WIDE = 0.3  # of the spread: where Square broke twins, walks had left margins of up to 0.16 (docs/robustness.md)
WIDE_FOR_WALKS = 0.5  # of the spread: walks lowered the margins that an attack had left by up to 0.40 (same page)
WIDE_FOR_TARGETS = 0.7  # and walks towards targets by up to 0.51
STEADY = 5e-3  # of the spread: two runs of an engine are no further apart
UNSTEADY_SHARE = 0.01  # of the answers that are asked for again under attack
TRANSFERRED = ("pgd20", "apgd50")
WALK, TARGETED = "pgd20", "pgd20-t"
SQUARE = Protocol(name="square", attack="square", queries=QUERIES)
RANDOM = "random"

Progress = Callable[[str, int, int], None]  # rung, images done, images in all


def silent(rung: str, done: int, total: int) -> None:
    """No progress."""


def random_images(spec: Spec, n: int, seed: int) -> Split:
    """Uniform noise in place of test images, for parity where there is no data; its labels mean nothing."""
    shape = (n, spec.image_size, spec.image_size, 3)
    images = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    return Split(RANDOM, images, np.zeros(n, np.int64))


@dataclass(frozen=True, kw_only=True)
class Trial:
    """The conditions of a verification.

    Attributes:
        artifact_sha256: what every result is bound to.
        files: how many the caller has checked, for the lowest rung: integrity.
        level: how high to climb.
        split: labelled test images; random ones stand in for parity where it is None.
        dataset: the name of the data set that they are from; ``threat``: what the attacks may do.
        ran: False where the engine cannot run on this machine and the ONNX graph that it was built from answers in its
            place: then parity is the graph's, the rung is called so, and no other is climbed.
        reopen: opens the engine anew, to ask it what it was asked under attack, see :mod:`zoo.export.ladder.witness`;
            where it is None the same engine is asked again, which does not find what an engine remembers.
        examples: of the twin, where other engines of it are verified too.

    Raises:
        UsageError: a level above parity without images, or of an engine that cannot run.
    """

    artifact_sha256: str
    files: int
    level: Level
    split: Split | None
    batches: Sequence[int] = (1, 2, 64)
    terms: Terms = DEFAULTS
    dataset: str | None = None
    threat: ThreatModel = LINF_8
    ran: bool = True
    reopen: Callable[[], AbstractContextManager[Engine]] | None = None
    examples: Examples | None = None

    def __post_init__(self) -> None:
        if self.split is None and self.level in ("clean", "attacked"):
            raise UsageError(f"level '{self.level}' needs labelled images")
        if not self.ran and self.level in ("clean", "attacked"):
            raise UsageError(f"level '{self.level}' needs an engine that runs")

    def images(self, spec: Spec) -> Split:
        """The test images, or the random ones."""
        return self.split or random_images(spec, max(rungs.PARITY_IMAGES, *self.batches), self.terms.seed)


def climb(model: Classifier, engine: Engine, trial: Trial, progress: Progress = silent) -> Report:
    """Climb to the level of ``trial`` or to the first rung that does not hold.

    Args:
        model: the float twin, in eval mode, as it was loaded.
    """
    split = trial.images(model.spec)
    bound = {
        "artifact_sha256": trial.artifact_sha256,
        "seed": trial.terms.seed,
        "dataset": split.name,
        "dataset_sha256": split.fingerprint,
    }
    climbed: list[Rung] = []
    reached: Reached = "none"
    since = time.perf_counter()
    for above, facts in _rungs(model, engine, trial, split, progress):
        clock = time.perf_counter()
        climbed.append(Rung(**bound, **facts, seconds=round(clock - since, 2)))
        since = clock
        if not climbed[-1].holds:
            break
        reached = above
    return Report(
        artifact_sha256=trial.artifact_sha256,
        asked=trial.level,
        reached=reached,
        rungs=tuple(climbed),
        engine=engine.describe(),
        toolchain=toolchain(),
        created=now(),
    )


def _rungs(
    model: Classifier, engine: Engine, trial: Trial, split: Split, progress: Progress
) -> Iterator[tuple[Reached, dict[str, Any]]]:
    """The facts of each rung when it has been climbed, and the level that is reached if it holds.

    A generator: nothing of a rung is computed until it is asked for.
    """
    level, terms = trial.level, trial.terms
    yield "none", {"name": "integrity", "n": trial.files, "holds": True}  # what is not intact has raised before
    if level == "none":
        return
    agreement = _parity(model, engine, split, trial, progress)
    if not trial.ran:
        yield "built", {**agreement, "name": "graph"}
        return
    yield "parity", agreement
    if level == "parity":
        return

    def tick(name: str) -> rungs.Tick:
        return lambda done, total: progress(name, done, total)

    twin = Twin.of(model)
    images, labels = split.images[:CLEAN_IMAGES], split.labels[:CLEAN_IMAGES]
    bits = rungs.clean(twin, engine, images, labels, tick("clean"))
    yield "clean", compared("clean", bits, (), terms.margin)
    images, labels, bits = images[: terms.n], labels[: terms.n], (bits[0][: terms.n], bits[1][: terms.n])
    if terms.corruptions:
        witness = Witness(engine, terms.seed)
        right, by_kind = rungs.corruptions(
            twin, witness, images, labels, terms.corruptions, terms.seed, tick(CORRUPTIONS)
        )
        flags = [UNSTEADY] * _unsteady(witness, engine, trial, agreement["measured"])
        facts = compared(CORRUPTIONS, right, (), terms.margin, flags=flags)
        facts["measured"] |= by_kind
        yield "clean", facts
    if level == "clean":
        return

    def judged(protocol: Protocol, **settings: Any) -> Protocol:
        settings |= {"n": len(labels), "seed": terms.seed}
        return protocol.on(trial.dataset or DATASET).under(trial.threat).model_copy(update=settings)

    parity, coarse = agreement["measured"], COARSE in agreement["measured"]["flags"]
    replayed = [judged(PROTOCOLS[name]) for name in TRANSFERRED]
    walk, targeted = judged(PROTOCOLS[WALK]), judged(PROTOCOLS[TARGETED])
    few = to_float(images[:IMAGES]), torch.from_numpy(labels[:IMAGES].astype(np.int64))
    seen = look(twin.model, *few, walk)
    source, twins = seen.model, parity["relative_difference"] <= FAITHFUL
    early_stop = twins and trial.examples is None  # other engines need points beyond the twin's boundary
    if seen.model is twin.model and not seen.flags:
        source = guided(twin.model, *few)
    led = () if source is seen.model else ("transfer", "black-box", *(["targeted"] * twins))  # rungs with a guide
    queries = terms.queries or (QUERIES if coarse or seen.flags else 0)
    square = judged(SQUARE, queries=queries)
    gradients = {"twin": seen.model}
    if not twins:
        own = _own_gradients(model, engine, to_float(images[: rungs.PARITY_IMAGES]), twin)
        gradients |= {} if own is None else {"artifact": own}
    witness = Witness(engine, terms.seed)
    transfers = [rungs.transfer(source, one, trial.examples, early_stop=early_stop) for one in replayed]
    walks = [surrogate(one, twin, witness, walk) for one in gradients.values()]
    if twins:  # what breaks one breaks the other
        targets = [rungs.transfer(source, targeted, trial.examples, early_stop=True)]
    else:
        targets = [surrogate(one, twin, witness, targeted) for one in gradients.values()]
    plan: list[tuple[str, list[Protocol], list[rungs.Attack]]] = [
        ("transfer", replayed, transfers),
        ("surrogate", [walk], walks),
        ("targeted", [targeted], targets),
    ]
    if queries:
        plan.append(("black-box", [square], []))
    margins = np.full((2, len(labels)), np.nan, np.float32)  # of twin and engine
    unit = inf if coarse or seen.flags else parity["logit_spread"]  # inf: margins mean nothing
    for name, protocols, attacks in plan:
        boxed = name == "black-box"
        if boxed:
            in_twin = bits[0] & (margins[0] > WIDE * unit)
            attacks = [rungs.black_box(source if led else twin, witness, square, bits=bits, spared=in_twin)]
        least = (WIDE_FOR_TARGETS if name == "targeted" else WIDE_FOR_WALKS) * unit
        for attack in attacks:
            safe = wide(margins, bits, least) & (not boxed)
            # The first walk along its own gradients attacks the engine everywhere: its margins there are not known.
            spared = np.stack([safe, safe & (attack not in walks[1:])])
            bits = rungs.survivors(attack, twin, witness, images, labels, bits, terms.seed, tick(name), margins, spared)
        last = name == plan[-1][0]
        flags = [UNSTEADY] * _unsteady(witness, engine, trial, parity) + [MASKED] * bool(seen.flags)
        floor = terms.floor(model.spec.classes)
        facts = compared(name, bits, protocols, terms.margin, floor=floor, decides=last, flags=flags)
        if name in led:
            facts["measured"] |= {"directions": "bf16"}
        if name in ("surrogate", "targeted"):
            facts["measured"] |= {"gradients": list(gradients), "optimistic": not twins and len(gradients) == 1}
        facts["measured"] |= {"twin_spared": int((in_twin & bits[1]).sum())} if boxed else {"spared": int(safe.sum())}
        yield "attacked" if last else "clean", facts


def wide(margins: np.ndarray, bits: rungs.Bits, least: float) -> np.ndarray:
    """The images that twin and engine get right, both by more than ``least``, with the difference of their margins
    taken off: bool [N]. The margins are [2, N]."""
    with np.errstate(invalid="ignore"):  # infinite ones are not wide
        return np.logical_and(*bits) & (margins.min(0) - np.ptp(margins, 0) > least)


def _unsteady(witness: Witness, engine: Engine, trial: Trial, parity: Mapping[str, Any]) -> bool:
    """Whether the engine, opened anew, gives other logits than under attack: further apart than parity found them to
    be between batch sizes and runs."""
    known = parity["difference_between_batches"] + parity["difference_between_runs"]
    with trial.reopen() if trial.reopen else nullcontext(engine) as fresh:
        return witness.changed(fresh, FAITHFUL * parity["logit_spread"] + known) > UNSTEADY_SHARE


def _own_gradients(model: Classifier, engine: Engine, x: Tensor, twin: Twin) -> nn.Module | None:
    """A float model that computes what the engine does, if one can be had: gradients where the twin's mislead.

    It must answer as the engine does; where a rounding may fall the other way, nearer than the twin.
    """
    own = engine.differentiable(model)
    if own is None:
        return None
    own = prepare(own)
    answers, reference = engine(x), twin(x)
    off = (Twin(own, shape=twin.shape)(x) - answers).square().mean().sqrt()
    nearest = (reference - answers).square().mean().sqrt()
    return own if off <= FAITHFUL * rungs.spread(reference) or off < nearest else None


def _parity(model: Classifier, engine: Engine, split: Split, trial: Trial, progress: Progress) -> dict[str, Any]:
    x, allowed = to_float(split.images[: max(rungs.PARITY_IMAGES, *trial.batches)]), trial.terms.tolerance
    measured = rungs.parity(model, engine, x, sorted({1, 2, *trial.batches}), seed=trial.terms.seed)
    progress("parity" if trial.ran else "graph", len(x), len(x))
    steady = not measured["difference_between_runs"] > STEADY * measured["logit_spread"]
    flags = [COARSE] * (measured["distinct_logits"] < COARSE_SHARE) + [UNSTEADY] * (not steady)
    apart = max(measured["relative_difference"], measured["widest_margin_flipped"])
    return {
        "name": "parity",
        "n": len(x),
        "holds": apart <= allowed and steady,
        "threshold": {"tolerance": allowed},
        "measured": {**measured, "flags": flags},
    }
