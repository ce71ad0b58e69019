"""What a page lets one choose by: measures, budgets, and the model that ``zoo pick`` takes within each of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from math import ceil, floor, log10

from zoo.datasets import DATASETS
from zoo.evaluation.protocols import PROTOCOLS
from zoo.evaluation.threat import ThreatModel
from zoo.registry.entry import Entry, Registry
from zoo.registry.pick import choose, pareto
from zoo.system.errors import NothingMatches, UsageError

TITLES = {
    "pgd20": "PGD-20",
    "autoattack": "AutoAttack",
    "clean": "Clean",
    "corruptions": "Corruptions",
    "cifar10-c": "CIFAR-10-C",
}


@dataclass(frozen=True)
class Task:
    """What models are for: a data set and a threat model."""

    dataset: str
    threat: ThreatModel

    @property
    def title(self) -> str:
        """``CIFAR-10, linf 8/255``"""
        return f"{dataset_title(self.dataset)}, {self.threat}"

    @cache  # noqa: B019  # tasks are few
    def protocol(self, measure: str) -> str | None:
        """The name of the protocol for ``measure``, a key of :data:`TITLES`; None where there is none."""
        try:
            return PROTOCOLS[measure].on(self.dataset).under(self.threat).name
        except UsageError:
            return None


@dataclass(frozen=True)
class Stop:
    """A budget, its ``text`` on the command line, and the name of the model that is picked within it."""

    budget: int
    text: str
    pick: str


@dataclass(frozen=True)
class Measure:
    """An accuracy to choose by: the models that have it, the Pareto front among them, and a pick for every budget."""

    task: Task
    key: str
    protocol: str
    entries: tuple[Entry, ...]
    front: tuple[Entry, ...]
    stops: tuple[Stop, ...]

    @property
    def title(self) -> str:
        return TITLES[self.key]


def dataset_title(name: str) -> str:
    return DATASETS[name].title if name in DATASETS else name


def tasks(registry: Registry) -> list[Task]:
    """What the models of ``registry`` are for; that of most models first."""
    return [task for task, _ in Counter(Task(e.dataset, e.threat) for e in registry.models.values()).most_common()]


def measures(registry: Registry) -> list[Measure]:
    """All that one can choose by: what ``zoo pick --by`` takes and finds a model for."""
    found = []
    for task in tasks(registry):
        for key in TITLES:
            protocol = task.protocol(key)
            if protocol is None:
                continue
            try:
                ranked = choose(registry, {}, by=protocol).ranked
            except (UsageError, NothingMatches):  # not measured, or flagged wherever it is
                continue
            front, entries = pareto(ranked, by=protocol), [e for e in registry.models.values() if protocol in e.results]
            stops = _stops(front, [entry.macs for entry in entries])
            found.append(Measure(task, key, protocol, tuple(entries), tuple(front), tuple(stops)))
    return found


def _stops(front: list[Entry], costs: Iterable[int]) -> list[Stop]:
    """The best entry within a budget is the last of the ``front`` that is within it."""
    budgets, stops, within = sorted(set(map(_rounded_up, costs)) | set(_round_numbers(costs))), [], 0
    for budget, text in budgets:
        while within < len(front) and front[within].macs <= budget:
            within += 1
        if within:
            stops.append(Stop(budget, text, front[within - 1].name))
    return stops


def _rounded_up(macs: int) -> tuple[int, str]:
    """The smallest number of three digits and zeros that is at least ``macs``, and how a command line takes it."""
    unit = 10 ** max(0, floor(log10(max(macs, 1))) - 2)
    return _written(ceil(macs / unit) * unit)


def _round_numbers(costs: Iterable[int]) -> list[tuple[int, str]]:
    """1, 1.5, 2, 3, 4, 5, 6 and 8 times the powers of ten, from the least of ``costs`` to the first above the most."""
    costs = [max(cost, 1) for cost in costs]
    low, high = (floor(log10(edge(costs))) for edge in (min, max))
    numbers = [round(step * 10**power) for power in range(low, high + 2) for step in (1, 1.5, 2, 3, 4, 5, 6, 8)]
    above = next((number for number in numbers if number >= max(costs)), numbers[-1])
    return [_written(number) for number in numbers if min(costs) <= number <= above]


def _written(count: int) -> tuple[int, str]:
    for power, unit in ((9, "G"), (6, "M"), (3, "k")):
        if count >= 10**power:
            return count, f"{count / 10**power:g}{unit}"
    return count, str(count)
