"""The search for sub-nets within a budget: NSGA-II (Deb et al. 2002) on predicted accuracies.

Sorting and crowding come from pymoo. Its NSGA2 class needs half a second for 10,000 candidates, each an object; this
loop works on arrays.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields

import numpy as np

from zoo.system.errors import NothingMatches, UsageError, nearest
from zoo.system.units import format_count, format_ms, format_share
from zoo.train.proard.predictor import Predictor
from zoo.train.spaces.dynamic import Genes, Space

POPULATION = 200
MUTATION = 0.1  # probability for each gene; at most one gene of a sub-net on average
ATTEMPTS = 10  # at new sub-nets, first from the population and then at random
Latency = Callable[[Genes], np.ndarray]  # [n, G] to milliseconds, float64 [n]; never less for a larger choice
MACS, MS, CLEAN, ROBUST, SPREAD = 0, 1, 2, 3, slice(4, 6)  # columns of the predictions, float64 [n, 6]


@dataclass(frozen=True)
class Limits:
    """The largest cost and the least predicted accuracies of a sub-net; None is no limit."""

    max_macs: float | None = None
    max_latency_ms: float | None = None
    min_clean: float | None = None
    min_robust: float | None = None

    def __post_init__(self) -> None:
        for name, value in ((field.name, getattr(self, field.name)) for field in fields(self)):
            cost = name.startswith("max")
            if value is not None and not (0 < value < math.inf if cost else 0 <= value <= 1):
                raise UsageError(f"{name} must be {'above 0' if cost else 'between 0 and 1'}, not {value}")


@dataclass(frozen=True, eq=False)
class Found:
    """The Pareto front of cost, clean and robust accuracy, the cheapest sub-net first.

    ``genes`` int64 [n, G], ``macs`` int64 [n], ``latency_ms`` float64 [n] or None, the predicted ``clean`` and
    ``robust`` accuracy float64 [n], and the standard deviation of both over the members, ``spread`` float64 [n, 2].
    """

    genes: Genes
    macs: np.ndarray
    latency_ms: np.ndarray | None
    clean: np.ndarray
    robust: np.ndarray
    spread: np.ndarray

    def __len__(self) -> int:
        return len(self.genes)


def search(
    space: Space,
    predictor: Predictor,
    limits: Limits | None = None,
    *,
    latency: Latency | None = None,
    candidates: int = 10_000,
    population: int = POPULATION,
    seed: int = 0,
) -> Found:
    """The best of ``candidates`` sub-nets by clean accuracy, robust accuracy and cost, within ``limits``.

    Args:
        latency: the cost, in place of the MACs.
        candidates: different sub-nets to predict; a small space has fewer.
        population: sub-nets that a generation keeps.

    Raises:
        UsageError: a latency budget comes without ``latency``.
        NothingMatches: a budget is below the whole space, or no sub-net is predicted to meet all limits.
    """
    if min(candidates, population) < 2:
        raise UsageError(
            f"a search needs at least 2 candidates and a population of 2, not {candidates} and {population}"
        )
    limits = limits or Limits()
    if limits.max_latency_ms is not None and latency is None:
        raise UsageError("a latency budget needs the latencies of the space's sub-nets on a device: measure them first")
    check_range(space, limits, latency)

    def predicted(genes: Genes) -> np.ndarray:
        ms = latency(genes) if latency else np.full(len(genes), np.nan)
        return np.column_stack([space.macs(genes), ms, *predictor.predict(genes)])

    rng, seen = np.random.default_rng(seed), set[bytes]()
    cost = [MS if latency else MACS]
    genes = _new(_spread(space, min(population, candidates), rng), seen)
    judged = predicted(genes)
    alive = _survivors(_objectives(judged, cost), _violation(judged, limits), population)
    while len(genes) < candidates:
        children = _children(space, genes[alive], min(population, candidates - len(genes)), seen, rng)
        if not len(children):  # the space has no more
            break
        among = np.concatenate([alive, np.arange(len(genes), len(genes) + len(children))])
        genes, judged = np.concatenate([genes, children]), np.concatenate([judged, predicted(children)])
        alive = among[_survivors(_objectives(judged[among], cost), _violation(judged[among], limits), population)]
    within = np.flatnonzero(_violation(judged, limits) == 0)
    if not len(within):
        raise NothingMatches(_why_nothing(space, limits, judged))
    front = within[_fronts(_objectives(judged[within], cost), 1)[0]]
    front = front[np.lexsort((-judged[front, ROBUST], judged[front, cost[0]]))]
    points = judged[front]
    ms = points[:, MS] if latency else None
    return Found(
        genes[front], points[:, MACS].astype(np.int64), ms, points[:, CLEAN], points[:, ROBUST], points[:, SPREAD]
    )


def best(found: Found, by: str = "robust") -> int:
    """The index in ``found`` of the highest predicted accuracy, "clean" or "robust"."""
    known = ("clean", "robust")
    if by not in known:
        raise UsageError(f"sub-nets are ranked by clean or robust accuracy, not by '{by}'{nearest(by, known)}")
    return int(getattr(found, by).argmax())


# -- NSGA-II -----------------------------------------------------------------------------------------------------


def _spread(space: Space, n: int, rng: np.random.Generator) -> Genes:
    """``n`` sub-nets from the smallest to the largest, so that every budget has some."""
    return space.canonical(rng.binomial(space.choices - 1, np.linspace(0, 1, n)[:, None]))


def _children(space: Space, parents: Genes, n: int, seen: set[bytes], rng: np.random.Generator) -> Genes:
    """``n`` new sub-nets from ``parents``, which are sorted by merit; fewer if the space has no more."""
    children = np.empty((0, len(space.genes)), np.int64)
    for attempt in range(2 * ATTEMPTS):
        if attempt < ATTEMPTS:
            mother, father = parents[rng.integers(len(parents), size=(2, n, 2)).min(2)]  # the better of two, twice
            mixed = np.where(rng.random(mother.shape) < 0.5, mother, father)
            drawn = space.mutate(mixed, rng, min(MUTATION, 1 / len(space.genes)))
        else:
            drawn = space.sample(n, rng)
        children = np.concatenate([children, _new(drawn, seen, n - len(children))])
        if len(children) == n:
            break
    return children


def _new(genes: Genes, seen: set[bytes], most: int | None = None) -> Genes:
    """At most ``most`` rows of canonical ``genes`` that are not in ``seen``; they are added to it."""
    fresh: list[int] = []
    for place, row in enumerate(genes):
        if len(fresh) == most:
            break
        key = row.tobytes()
        if key not in seen:
            seen.add(key)
            fresh.append(place)
    return genes[fresh]


def _survivors(objectives: np.ndarray, violation: np.ndarray, n: int) -> np.ndarray:
    """Indices of the ``n`` best: first all within the limits, by front and crowding, then the rest by violation."""
    from pymoo.operators.survival.rank_and_crowding.metrics import calc_crowding_distance

    within = np.flatnonzero(violation == 0)
    order = []
    for front in _fronts(objectives[within], n):
        crowding = calc_crowding_distance(objectives[within[front]])
        order.append(within[front[np.argsort(-crowding, kind="stable")]])
    beyond = np.flatnonzero(violation)
    return np.concatenate([*order, beyond[np.argsort(violation[beyond], kind="stable")]])[:n]


def _fronts(objectives: np.ndarray, n: int) -> list[np.ndarray]:
    """Non-dominated sorting, until ``n`` sub-nets are ranked."""
    from pymoo.util.nds.non_dominated_sorting import NonDominatedSorting

    return NonDominatedSorting().do(objectives, n_stop_if_ranked=n)


def _objectives(judged: np.ndarray, cost: list[int]) -> np.ndarray:
    """Cost, clean error and robust error, all to be minimised, float64 [n, 3]."""
    return np.column_stack([judged[:, cost], 1 - judged[:, [CLEAN, ROBUST]]])


def _violation(judged: np.ndarray, limits: Limits) -> np.ndarray:
    """The sum of the relative violations of the limits, float64 [n]; 0 is within all."""
    beyond = np.zeros(len(judged))
    for column, most in ((MACS, limits.max_macs), (MS, limits.max_latency_ms)):
        if most is not None:
            beyond += np.maximum(judged[:, column] / most - 1, 0)
    for column, least in ((CLEAN, limits.min_clean), (ROBUST, limits.min_robust)):
        if least is not None:
            beyond += np.maximum(least - judged[:, column], 0)
    return beyond


# -- limits that cannot be met -----------------------------------------------------------------------------------


def check_range(space: Space, limits: Limits, latency: Latency | None = None) -> list[str]:
    """A sentence for each budget that all sub-nets of ``space`` are within; without ``latency`` for the MACs alone.

    Raises:
        NothingMatches: a budget is below the smallest sub-net.
    """
    loose = []
    ends = np.concatenate([space.smallest, space.largest])
    budgets: list[tuple[float, list[float], Callable[[float], str], str]] = []
    if limits.max_macs is not None:
        budgets.append((limits.max_macs, space.macs(ends).tolist(), format_count, "MACs"))
    if limits.max_latency_ms is not None and latency is not None:
        budgets.append((limits.max_latency_ms, latency(ends).tolist(), format_ms, "ms"))
    for most, (low, high), short, unit in budgets:
        budget, smallest, largest = _formatted(short, most, low, high)
        costs = f"its sub-nets have {smallest} to {largest}"
        if most < low:
            raise NothingMatches(f"space {space.name} has no sub-net within {budget} {unit}: {costs}")
        if most > high:
            loose.append(f"{budget} {unit} is no limit: the largest sub-net of space {space.name} has {largest}")
    return loose


def _why_nothing(space: Space, limits: Limits, judged: np.ndarray) -> str:
    """The accuracy that no sub-net within the budgets is predicted to reach, and the best predicted one."""
    cost = Limits(max_macs=limits.max_macs, max_latency_ms=limits.max_latency_ms)
    affordable = judged[_violation(judged, cost) == 0]
    budgets = [f"{format_count(limits.max_macs)} MACs"] if limits.max_macs else []
    budgets += [f"{format_ms(limits.max_latency_ms)} ms"] if limits.max_latency_ms else []
    none = f"no sub-net of space {space.name}" + (f" within {' and '.join(budgets)}" if budgets else "")
    minima = (("clean", CLEAN, limits.min_clean or 0.0), ("robust", ROBUST, limits.min_robust or 0.0))
    for noun, column, least in minima:
        most = affordable[:, column].max()
        if most < least:
            limit, best = _formatted(format_share, least, most)
            return f"{none} is predicted to have {limit} {noun} accuracy: the best has {best}"
    (_, _, clean), (_, _, robust) = minima
    limit, best = _formatted(format_share, robust, affordable[affordable[:, CLEAN] >= clean, ROBUST].max())
    both = f"{format_share(clean)} clean and {limit} robust accuracy at once"
    return f"{none} is predicted to have {both}: with such a clean accuracy, the best robust one is {best}"


def _formatted(short: Callable[[float], str], *values: float) -> list[str]:
    """All values in short, or in full if the first one then looks like another."""
    texts = [short(value) for value in values]
    return texts if texts[0] not in texts[1:] else [f"{value:,.12g}" for value in values]
