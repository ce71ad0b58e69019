"""Sub-nets within a budget: NSGA-II (Deb et al. 2002) over a space, by predicted accuracies.

Sorting and crowding are pymoo's. Its NSGA2 class keeps every candidate as an object and takes half a second for 10,000
of them before anything is predicted; the loop here keeps arrays.
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
MUTATION = 0.1  # of each gene, but of no more than one of a sub-net on average
ATTEMPTS = 10  # at new sub-nets, from the population and then at random
Latency = Callable[[Genes], np.ndarray]  # [n, G] to milliseconds, float64 [n]; never less for a larger choice
MACS, MS, CLEAN, ROBUST, SPREAD = 0, 1, 2, 3, slice(4, 6)  # columns of what is told of sub-nets, float64 [n, 6]


@dataclass(frozen=True)
class Limits:
    """What a sub-net must keep to: cost at most, predicted accuracies at least; None is no limit."""

    max_macs: float | None = None
    max_latency_ms: float | None = None
    min_clean: float | None = None
    min_robust: float | None = None

    def __post_init__(self) -> None:
        for name, value in ((field.name, getattr(self, field.name)) for field in fields(self)):
            cost = name.startswith("max")
            if value is not None and not (0 < value < math.inf if cost else 0 <= value <= 1):
                raise UsageError(f"{name} is {'above 0' if cost else 'between 0 and 1'}, not {value}")


@dataclass(frozen=True, eq=False)
class Found:
    """Sub-nets of which none is beaten by another in cost and both accuracies at once; the cheapest comes first.

    ``genes`` int64 [n, G], ``macs`` int64 [n], ``latency_ms`` float64 [n] or None, the predicted ``clean`` and
    ``robust`` accuracy float64 [n], and how much the predictor's members disagree on these, ``spread`` float64 [n, 2].
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
        latency: then it is the cost, in place of the MACs.
        candidates: different sub-nets to look at; fewer where the space has no more.
        population: how many a generation keeps.

    Raises:
        UsageError: a limit is above all of the space, or one of latency comes without ``latency``.
        NothingMatches: a limit is below all of the space, or no sub-net is predicted to keep to all of them.
    """
    if min(candidates, population) < 2:
        raise UsageError(
            f"a search takes 2 candidates and a population of 2 or more, not {candidates} and {population}"
        )
    limits = limits or Limits()
    _check_range(space, limits, latency)

    def judged(genes: Genes) -> np.ndarray:
        ms = latency(genes) if latency else np.full(len(genes), np.nan)
        return np.column_stack([space.macs(genes), ms, *predictor.predict(genes)])

    rng, seen = np.random.default_rng(seed), set[bytes]()
    cost = [MS if latency else MACS]
    genes = _new(_spread(space, min(population, candidates), rng), seen)
    told = judged(genes)
    alive = _survivors(_objectives(told, cost), _violation(told, limits), population)
    while len(genes) < candidates:
        children = _children(space, genes[alive], min(population, candidates - len(genes)), seen, rng)
        if not len(children):  # the space has no more
            break
        among = np.concatenate([alive, np.arange(len(genes), len(genes) + len(children))])
        genes, told = np.concatenate([genes, children]), np.concatenate([told, judged(children)])
        alive = among[_survivors(_objectives(told[among], cost), _violation(told[among], limits), population)]
    within = np.flatnonzero(_violation(told, limits) == 0)
    if not len(within):
        raise NothingMatches(_why_nothing(space, limits, told))
    front = within[_fronts(_objectives(told[within], cost), 1)[0]]
    front = front[np.lexsort((-told[front, ROBUST], told[front, cost[0]]))]
    of = told[front]
    ms = of[:, MS] if latency else None
    return Found(genes[front], of[:, MACS].astype(np.int64), ms, of[:, CLEAN], of[:, ROBUST], of[:, SPREAD])


def best(found: Found, by: str = "robust") -> int:
    """The place in ``found`` of the highest predicted accuracy, "clean" or "robust"."""
    known = ("clean", "robust")
    if by not in known:
        raise UsageError(f"sub-nets are ranked by clean or robust accuracy, not by '{by}'{nearest(by, known)}")
    return int(getattr(found, by).argmax())


# -- NSGA-II -----------------------------------------------------------------------------------------------------


def _spread(space: Space, n: int, rng: np.random.Generator) -> Genes:
    """From the smallest sub-net to the largest, so that every budget has some: genes are drawn ever higher."""
    return space.canonical(rng.binomial(space.choices - 1, np.linspace(0, 1, n)[:, None]))


def _children(space: Space, parents: Genes, n: int, seen: set[bytes], rng: np.random.Generator) -> Genes:
    """``n`` new sub-nets of ``parents``, which are sorted by merit; fewer where the space has no more."""
    found = np.empty((0, len(space.genes)), np.int64)
    for attempt in range(2 * ATTEMPTS):
        if attempt < ATTEMPTS:
            mother, father = parents[rng.integers(len(parents), size=(2, n, 2)).min(2)]  # the better of two, twice
            mixed = np.where(rng.random(mother.shape) < 0.5, mother, father)
            drawn = space.mutate(mixed, rng, min(MUTATION, 1 / len(space.genes)))
        else:
            drawn = space.sample(n, rng)
        found = np.concatenate([found, _new(drawn, seen, n - len(found))])
        if len(found) == n:
            break
    return found


def _new(genes: Genes, seen: set[bytes], most: int | None = None) -> Genes:
    """Of canonical ``genes``, ``most`` that were not seen before, each once; from now on they were."""
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
    """Places of the ``n`` best, by merit: those within the limits by front, in a front by crowding; others by how far
    they are beyond."""
    from pymoo.operators.survival.rank_and_crowding.metrics import calc_crowding_distance

    within = np.flatnonzero(violation == 0)
    order = []
    for front in _fronts(objectives[within], n):
        crowding = calc_crowding_distance(objectives[within[front]])
        order.append(within[front[np.argsort(-crowding, kind="stable")]])
    beyond = np.flatnonzero(violation)
    return np.concatenate([*order, beyond[np.argsort(violation[beyond], kind="stable")]])[:n]


def _fronts(objectives: np.ndarray, n: int) -> list[np.ndarray]:
    """Non-dominated sorting, as far as ``n`` places need it."""
    from pymoo.util.nds.non_dominated_sorting import NonDominatedSorting

    return NonDominatedSorting().do(objectives, n_stop_if_ranked=n)


def _objectives(told: np.ndarray, cost: list[int]) -> np.ndarray:
    """Cost, clean error, robust error: the smaller, the better, float64 [n, 3]."""
    return np.column_stack([told[:, cost], 1 - told[:, [CLEAN, ROBUST]]])


def _violation(told: np.ndarray, limits: Limits) -> np.ndarray:
    """How far beyond the limits, as shares, float64 [n]; 0 is within all."""
    beyond = np.zeros(len(told))
    for column, most in ((MACS, limits.max_macs), (MS, limits.max_latency_ms)):
        if most is not None:
            beyond += np.maximum(told[:, column] / most - 1, 0)
    for column, least in ((CLEAN, limits.min_clean), (ROBUST, limits.min_robust)):
        if least is not None:
            beyond += np.maximum(least - told[:, column], 0)
    return beyond


# -- limits that cannot be kept ----------------------------------------------------------------------------------


def _check_range(space: Space, limits: Limits, latency: Latency | None) -> None:
    if limits.max_latency_ms is not None and latency is None:
        raise UsageError("a latency budget needs the latencies of the space's sub-nets on a device: measure them first")
    ends = np.concatenate([space.smallest, space.largest])
    asked: list[tuple[float, list[float], Callable[[float], str], str]] = []
    if limits.max_macs is not None:
        asked.append((limits.max_macs, space.macs(ends).tolist(), format_count, "MACs"))
    if limits.max_latency_ms is not None and latency is not None:
        asked.append((limits.max_latency_ms, latency(ends).tolist(), format_ms, "ms"))
    for most, (low, high), short, unit in asked:
        if not low <= most <= high:
            budget, *their = _told(short, most, low, high)
            their_own = f"its own go from {their[0]} to {their[1]}"
            if most < low:
                raise NothingMatches(f"space {space.name} has no sub-net within {budget} {unit}: {their_own}")
            raise UsageError(f"a budget of {budget} {unit} is above all sub-nets of space {space.name}: {their_own}")


def _why_nothing(space: Space, limits: Limits, told: np.ndarray) -> str:
    """Which predicted accuracy cannot be had within the budgets, and the best that can."""
    cost = Limits(max_macs=limits.max_macs, max_latency_ms=limits.max_latency_ms)
    affordable = told[_violation(told, cost) == 0]
    budgets = [f"{format_count(limits.max_macs)} MACs"] if limits.max_macs else []
    budgets += [f"{format_ms(limits.max_latency_ms)} ms"] if limits.max_latency_ms else []
    none = f"no sub-net of space {space.name}" + (f" within {' and '.join(budgets)}" if budgets else "")
    wanted = (("clean", CLEAN, limits.min_clean or 0.0), ("robust", ROBUST, limits.min_robust or 0.0))
    for noun, column, least in wanted:
        most = affordable[:, column].max()
        if most < least:
            asked, had = _told(format_share, least, most)
            return f"{none} is predicted to have {asked} {noun} accuracy: the best has {had}"
    (_, _, clean), (_, _, robust) = wanted
    asked, had = _told(format_share, robust, affordable[affordable[:, CLEAN] >= clean, ROBUST].max())
    both = f"{format_share(clean)} clean and {asked} robust accuracy at once"
    return f"{none} is predicted to have {both}: with such a clean accuracy, the best robust one is {had}"


def _told(short: Callable[[float], str], value: float, *others: float) -> list[str]:
    """All in short, or in full where in short ``value`` could not be told from another."""
    told = [short(one) for one in (value, *others)]
    return told if told[0] not in told[1:] else [f"{one:,.12g}" for one in (value, *others)]
