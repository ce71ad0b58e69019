"""The ladder: integrity, parity, clean, transfer, surrogate gradient, black box.

Each rung is climbed only if the one below holds, and every result is bound to the artifact it was measured on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import numpy as np
from torch import Tensor, nn

from zoo.datasets.base import Split, to_float
from zoo.evaluation.evaluate import prepare
from zoo.evaluation.protocols import DATASET, PROTOCOLS, Protocol
from zoo.evaluation.threat import LINF_8, ThreatModel
from zoo.export.bundle.manifest import Level, Precision, Report, Rung, now
from zoo.export.engines.interface import Engine
from zoo.export.engines.twin import Twin
from zoo.export.ladder import rungs
from zoo.export.ladder.gate import compared
from zoo.models import Classifier
from zoo.specs import Spec
from zoo.system.arguments import typed
from zoo.system.errors import UsageError
from zoo.system.toolchain import toolchain

# Of a logit, by precision; measured on the released students: 1e-6, 0.005 and 0.3. For int8 it only catches a
# conversion that went wrong: what rounding costs is for the rungs above.
TOLERANCE: dict[Precision, float] = {"fp32": 1e-3, "fp16": 5e-2, "int8": 1.0}
FAITHFUL = 1e-3  # a float model this close to an engine has its gradients
CLEAN_IMAGES = 10_000
TRANSFERRED = ("pgd20", "apgd50")
WALK = "pgd20"
QUERIES = 1000
SQUARE = Protocol(name="square", attack="square", queries=QUERIES)
RANDOM = "random"

Progress = Callable[[str, int, int], None]  # rung, images done, images in all


def silent(rung: str, done: int, total: int) -> None:
    """No progress."""


@dataclass(frozen=True, kw_only=True)
class Terms:
    """On what terms an engine is signed off.

    Attributes:
        margin: accuracy that an engine may lose at most, shown with 95 % confidence (0.01 is one point).
        tolerance: the largest difference of a logit that still counts as parity.
        n: leading images for the rungs under attack.
        queries: of the Square attack on the engine itself, per image; 0 leaves this rung out. An fp32 engine that
            passes parity is its twin, gradients and all; coarser arithmetic may mask them, which no gradient shows.
    """

    margin: float = 0.01
    tolerance: float = TOLERANCE["fp32"]
    n: int = 1000
    seed: int = 0
    queries: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.margin < 1:
            raise UsageError(f"a margin lies between 0 and 1 (0.01 is one point), not at {self.margin:g}")
        if not self.tolerance >= 0:
            raise UsageError(f"a tolerance is 0 or more, not {self.tolerance:g}")
        if self.n < 1 or self.queries < 0:
            raise UsageError(f"verification takes 1 image or more, not {self.n}, and 0 queries or more")

    @classmethod
    def of(cls, precision: Precision, **given: Any) -> Terms:
        """The terms for an engine of ``precision``: those ``given``, by name; as usual where they are None.

        Raises:
            UsageError: one is out of range, or not a number.
        """
        whole = ("n", "seed", "queries")
        typed(**{key: (value, (Integral if key in whole else Real) | None) for key, value in given.items()})
        usual = {"tolerance": TOLERANCE[precision], "queries": 0 if precision == "fp32" else QUERIES}
        return cls(**usual | {key: value for key, value in given.items() if value is not None})


DEFAULTS = Terms()


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

    Raises:
        UsageError: a level above parity without images.
    """

    artifact_sha256: str
    files: int
    level: Level
    split: Split | None
    batches: Sequence[int] = (1, 2, 64)
    terms: Terms = DEFAULTS
    dataset: str | None = None
    threat: ThreatModel = LINF_8

    def __post_init__(self) -> None:
        if self.split is None and self.level in ("clean", "attacked"):
            raise UsageError(f"level '{self.level}' needs labelled images")

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
    reached: Level = "none"
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
) -> Iterator[tuple[Level, dict[str, Any]]]:
    """The facts of each rung when it has been climbed, and the level that is reached if it holds.

    A generator: nothing of a rung is computed until it is asked for.
    """
    level, terms = trial.level, trial.terms
    yield "none", {"name": "integrity", "n": trial.files, "holds": True}  # what is not intact has raised before
    if level == "none":
        return
    agreement = _parity(model, engine, split, trial, progress)
    yield "parity", agreement
    if level == "parity":
        return

    def tick(name: str) -> rungs.Tick:
        return lambda done, total: progress(name, done, total)

    twin = Twin(prepare(model), shape=(3, model.spec.image_size, model.spec.image_size))
    images, labels = split.images[:CLEAN_IMAGES], split.labels[:CLEAN_IMAGES]
    bits = rungs.clean(twin, engine, images, labels, tick("clean"))
    yield "clean", compared("clean", bits, (), terms.margin)
    if level == "clean":
        return

    images, labels, bits = images[: terms.n], labels[: terms.n], (bits[0][: terms.n], bits[1][: terms.n])

    def judged(protocol: Protocol, **settings: Any) -> Protocol:
        settings |= {"n": len(labels), "seed": terms.seed}
        return protocol.on(trial.dataset or DATASET).under(trial.threat).model_copy(update=settings)

    replayed = [judged(PROTOCOLS[name]) for name in TRANSFERRED]
    walk, square = judged(PROTOCOLS[WALK]), judged(SQUARE, queries=terms.queries)
    gradients = {"twin": twin.model}
    if agreement["measured"]["max_logit_difference"] > FAITHFUL:
        own = _own_gradients(model, engine, to_float(images[: rungs.PARITY_IMAGES]), twin)
        gradients |= {} if own is None else {"artifact": own}
    walks = [rungs.surrogate(one, twin, engine, walk) for one in gradients.values()]
    plan = [
        ("transfer", replayed, [rungs.transfer(twin, protocol) for protocol in replayed]),
        ("surrogate", [walk], walks),
    ]
    if terms.queries:
        plan.append(("black-box", [square], [rungs.black_box(twin, engine, square)]))
    for name, protocols, attacks in plan:
        for attack in attacks:
            bits = rungs.survivors(attack, twin, engine, images, labels, bits, terms.seed, tick(name))
        last = name == plan[-1][0]
        facts = compared(name, bits, protocols, terms.margin, decides=last)
        if name == "surrogate":
            facts["measured"]["gradients"] = list(gradients)
        yield "attacked" if last else "clean", facts


def _own_gradients(model: Classifier, engine: Engine, x: Tensor, twin: Twin) -> nn.Module | None:
    """A float model that computes what the engine does, if one can be had: gradients where the twin's mislead.

    It must answer as the engine does; where a rounding may fall the other way, nearer than the twin.
    """
    own = engine.differentiable(model)
    if own is None:
        return None
    own = prepare(own)
    answers = engine(x)
    off = (Twin(own, shape=twin.shape)(x) - answers).square().mean().sqrt()
    nearest = (twin(x) - answers).square().mean().sqrt()
    return own if off <= FAITHFUL or off < nearest else None


def _parity(model: Classifier, engine: Engine, split: Split, trial: Trial, progress: Progress) -> dict[str, Any]:
    x = to_float(split.images[: max(rungs.PARITY_IMAGES, *trial.batches)])
    measured = rungs.parity(model, engine, x, sorted({1, 2, *trial.batches}))
    progress("parity", len(x), len(x))
    return {
        "name": "parity",
        "n": len(x),
        "holds": measured["max_logit_difference"] <= trial.terms.tolerance,
        "threshold": {"tolerance": trial.terms.tolerance},
        "measured": measured,
    }
