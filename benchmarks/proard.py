"""A search of 10,000 sub-nets, predictor and MACs included, against pymoo's NSGA2 as its manual has it: a hundred
generations of a hundred, each candidate judged by itself.

The predictor is fitted to made-up labels: they do not change the speed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from pymoo.algorithms.moo.nsga2 import NSGA2
from pymoo.core.problem import ElementwiseProblem
from pymoo.operators.crossover.ux import UniformCrossover
from pymoo.operators.mutation.pm import PolynomialMutation
from pymoo.operators.repair.rounding import RoundingRepair
from pymoo.operators.sampling.rnd import IntegerRandomSampling
from pymoo.optimize import minimize

from benchmarks.timing import interleaved, row
from zoo.specs import cost
from zoo.train.proard.labelled import Labels
from zoo.train.proard.predictor import Predictor, fit
from zoo.train.proard.search import search
from zoo.train.spaces import space_called
from zoo.train.spaces.dynamic import Genes, Space

OURS, TEXTBOOK = "zoo", "pymoo, one by one"
GENERATIONS = POPULATION = 100


class Textbook(ElementwiseProblem):
    """MACs counted from each candidate's spec, accuracies predicted one candidate at a time."""

    def __init__(self, space: Space, predictor: Predictor) -> None:
        self.space, self.predictor, self.judged = space, predictor, 0
        super().__init__(
            n_var=len(space.genes), n_obj=3, xl=np.zeros(len(space.genes)), xu=space.choices - 1, vtype=int
        )

    def _evaluate(self, x: Genes, out: dict[str, Any], *args: Any, **options: Any) -> None:
        self.judged += 1
        ((clean, robust),) = self.predictor.predict(x[None])[0]
        out["F"] = [cost(self.space.spec(x)).macs, 1 - clean, 1 - robust]


def textbook(space: Space, predictor: Predictor, seed: int = 0) -> np.ndarray:
    """The front that it finds: MACs, clean and robust error, float64 [n, 3]."""
    algorithm = NSGA2(
        pop_size=POPULATION,
        sampling=IntegerRandomSampling(),
        crossover=UniformCrossover(repair=RoundingRepair()),
        mutation=PolynomialMutation(prob_var=0.1, vtype=float, repair=RoundingRepair()),
    )
    return minimize(Textbook(space, predictor), algorithm, ("n_gen", GENERATIONS), seed=seed).F


def made_up(space: Space, n: int = 300) -> Predictor:
    genes = space.sample(n, np.random.default_rng(0))
    share = space.macs(genes) / space.macs(space.largest)
    return fit(space, Labels(genes, 0.5 + 0.3 * share**0.3, 0.3 + 0.2 * share**0.3, 1000))


def race(name: str, *, rounds: int) -> dict:
    space = space_called(name)
    predictor = made_up(space)
    contestants: dict[str, Callable[[], object]] = {
        OURS: lambda: search(space, predictor),
        TEXTBOOK: lambda: textbook(space, predictor),
    }
    what = f"ProARD, a search of 10,000 sub-nets of the {name} space"
    return row(what, OURS, interleaved(contestants, rounds=rounds), goal={TEXTBOOK: 10.0})


def run(*, rounds: int = 5) -> list[dict]:
    return [race(name, rounds=rounds) for name in ("tiny", "mbv3")]
