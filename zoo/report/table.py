"""The table of models: a row for each entry; columns that no entry has are left out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from zoo.evaluation.statistics import Accuracy
from zoo.registry.constraints import fastest
from zoo.registry.entry import Entry, Registry
from zoo.report.bundles import Shown
from zoo.report.choice import TITLES, Task, dataset_title, tasks
from zoo.system.units import format_count, format_ms


@dataclass(frozen=True)
class Cell:
    """What a cell says, in small type behind it a ``note``, and the value that it is sorted by."""

    text: str
    order: float | str
    note: str = ""


@dataclass(frozen=True)
class Column:
    """A column of the table, but for the model's name; ``essential`` ones are shown on phones too."""

    key: str
    title: str
    meaning: str
    cell: Callable[[Entry], Cell | None]
    number: bool = True
    essential: bool = False
    best: Literal["least", "most", ""] = ""  # what comes first when it is sorted; rows without a cell come last

    @property
    def absent(self) -> float:
        """What a row without a cell is sorted by."""
        return -1.0 if self.best == "most" else 1e18


def columns(registry: Registry, bundles: Sequence[Shown]) -> list[Column]:
    """The columns that some entry has a cell in."""
    return [one for one in _columns(registry, bundles) if any(one.cell(e) for e in registry.models.values())]


def _columns(registry: Registry, bundles: Sequence[Shown]) -> Iterator[Column]:
    several = len(tasks(registry)) > 1
    yield Column("family", "Family", "who made it, and how", lambda e: Cell(e.family, e.family), number=False)
    if several:
        yield Column("dataset", "Data set", "that it classifies", _dataset, number=False)
        yield Column("threat", "Threat", "norm and size of the attacks", _threat, number=False)
    macs = "multiply-accumulates of one image, which FLOPs mean here"
    yield Column("macs", "MACs", macs, lambda e: Cell(format_count(e.macs), e.macs), essential=True)
    yield Column("params", "Params", "parameters", lambda e: Cell(format_count(e.params), e.params))
    for key in ("clean", "pgd20", "autoattack", "corruptions", "cifar10-c"):
        meaning = "accuracy in %, with half of its 95 % interval"
        essential = key in ("clean", "pgd20", "autoattack")
        yield Column(key, TITLES[key], meaning, _accuracy(key), essential=essential, best="most")
    kept = _least_kept(bundles)
    meaning = "accuracy under attack that its int8 engine keeps, of its float model's on the same images; the least"
    yield Column("int8", "int8 keeps", meaning, lambda e: kept.get(e.name), best="most")
    for device in sorted({device for entry in registry.models.values() for device in entry.latency}):
        meaning = f"median milliseconds of one image on {device}, with the fastest engine"
        yield Column(f"ms-{device}", f"ms, {device}", meaning, _latency(device))


def _dataset(entry: Entry) -> Cell:
    return Cell(dataset_title(entry.dataset), entry.dataset)


def _threat(entry: Entry) -> Cell:
    return Cell(str(entry.threat), str(entry.threat))


def _accuracy(measure: str) -> Callable[[Entry], Cell | None]:
    def cell(entry: Entry) -> Cell | None:
        result = entry.results.get(Task(entry.dataset, entry.threat).protocol(measure) or "")
        return accuracy_cell(result.accuracy) if result else None

    return cell


def accuracy_cell(accuracy: Accuracy) -> Cell:
    low, high = accuracy.ci95
    return Cell(f"{100 * accuracy.value:.1f}", accuracy.value, f"±{50 * (high - low):.1f}")


def _latency(device: str) -> Callable[[Entry], Cell | None]:
    def cell(entry: Entry) -> Cell | None:
        found = fastest(entry, [device])
        return Cell(format_ms(found[0]), found[0], found[1]) if found else None

    return cell


def _least_kept(bundles: Sequence[Shown]) -> Mapping[str, Cell]:
    """By the model's name, what the int8 engine that keeps least keeps of the accuracy under attack."""
    kept: dict[str, Cell] = {}
    for one in bundles:
        if one.precision == "int8" and one.model and one.kept is not None:
            name, cell = one.model.name, Cell(f"{100 * one.kept:.1f} %", one.kept, one.manifest.engine)
            if name not in kept or one.kept < float(kept[name].order):
                kept[name] = cell
    return kept
