"""Pick a model: the best under a named attack, within budgets."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from numbers import Integral
from typing import Unpack, overload

from zoo.registry.constraints import Budget, Constraint, Limits, MoreLimits, constraints_of, known_protocol
from zoo.registry.entry import Entry, Registry
from zoo.registry.file import load_registry
from zoo.system.arguments import typed
from zoo.system.errors import NothingMatches, UnknownModel, UsageError, nearest


@dataclass(frozen=True)
class Choice:
    """Entries that satisfy all constraints, the best first, and the names of entries that could have been among them.

    ``left_out`` lack a measurement, and ``flagged`` have one that may be too high (:mod:`zoo.evaluation.flags`).
    """

    ranked: list[Entry]
    left_out: list[str]
    flagged: list[str]

    def notes(self) -> Iterator[str]:
        """What was not considered, in sentences."""
        if self.flagged:
            yield f"passed over because their accuracy may be too high: {', '.join(self.flagged)}"
        if self.left_out:
            yield f"left out because a measurement is missing: {', '.join(self.left_out)}"


def choose(registry: Registry, limits: Limits, *, by: str, family: str | None = None, flagged: bool = False) -> Choice:
    """Rank the entries within ``limits`` by accuracy under protocol ``by``; ties go to fewer MACs.

    Entries with a flag are passed over, unless ``flagged`` is True.

    Raises:
        UsageError: ``by`` is not a protocol, or a limit is malformed.
        NothingMatches: no entry is left; the message names the binding constraint and the nearest miss.
    """
    known_protocol(registry, by)
    constraints = constraints_of(registry, limits, by=by)
    entries = [entry for entry in registry.models.values() if family is None or fnmatchcase(entry.family, family)]
    if not registry.models:
        raise NothingMatches("the registry holds no model yet")
    if not entries:
        families = ", ".join(sorted({entry.family for entry in registry.models.values()}))
        raise NothingMatches(f"no model is of family '{family}' (families: {families})")
    # Entries that only lack a measurement could have been an answer: they are left out.
    able = [e for e in entries if all(c.holds(e) for c in constraints if c.measure(e) is not None)]
    measured = [e for e in able if e.accuracy(by) is not None and all(c.measure(e) is not None for c in constraints)]
    if not measured:
        raise NothingMatches(_why_nothing(entries, constraints, by))
    trusted = [entry for entry in measured if flagged or not entry.flags]
    passed_over = sorted(entry.name for entry in measured if entry.flags and not flagged)
    if not trusted:
        raise NothingMatches(
            f"all models within these limits are flagged, because their accuracy may be too high: "
            f"{', '.join(passed_over)}; --flagged takes them too"
        )
    ranked = sorted(trusted, key=lambda entry: (-(entry.accuracy(by) or 0.0), entry.macs, entry.name))
    left_out = {entry.name for entry in able} - {entry.name for entry in measured}
    return Choice(ranked, left_out=sorted(left_out), flagged=passed_over)


def _why_nothing(entries: list[Entry], constraints: list[Constraint], by: str) -> str:
    for constraint in constraints:
        values = [(value, e.name) for e in entries if (value := constraint.measure(e)) is not None]
        if not values:
            return f"no model has a measurement of {constraint.noun}"
        if not any(constraint.holds(entry) for entry in entries):
            value, name = min(values) if constraint.upper else max(values)
            return f"no model has {constraint}; {constraint.best} {name} with {constraint.shown(value)}"
    if not any(entry.accuracy(by) is not None for entry in entries):
        return f"no model was measured under '{by}'"
    wanted = " and ".join(map(str, constraints))
    # Each constraint can be met alone. The nearest miss violates the fewest constraints, and these by the least.
    near = min(entries, key=lambda e: (sum(not c.holds(e) for c in constraints), sum(c.excess(e) for c in constraints)))
    broken = [c for c in constraints if not c.holds(near)]
    if not broken:
        return f"no model with {wanted} was measured under '{by}'; {near.name} meets the limits, but was not measured"
    return f"no model has {wanted}; the nearest, {near.name}, has {' and '.join(c.of(near) for c in broken)}"


def list_models(
    pattern: str = "*",
    *,
    max_flops: Budget = None,
    max_params: Budget = None,
    min_clean: Budget = None,
    min_robust: Budget = None,
    by: str = "pgd20",
    family: str | None = None,
    registry: Registry | None = None,
) -> list[str]:
    """The sorted names of the models within the limits whose name or alias matches the glob ``pattern``.

    >>> list_models("rnascl-s3-*", min_robust="38%")
    ['rnascl-s3-wrt34-2-long']

    Args:
        max_flops: multiply-accumulates per image, as ``"15M"``, ``15e6`` or ``15000000``; ``max_params`` likewise.
        min_clean: clean accuracy, as ``0.7`` or ``"70%"``; ``min_robust`` likewise, under protocol ``by``.
        family: a glob over families.

    Raises:
        UsageError: a limit is malformed, or ``by`` is not a protocol.
    """
    typed(pattern=(pattern, str), family=(family, str | None), registry=(registry, Registry | None))
    registry = registry or load_registry()
    known_protocol(registry, by)
    wanted: Limits = {"flops": max_flops, "params": max_params, "min_clean": min_clean, "min_robust": min_robust}
    limits = constraints_of(registry, wanted, by=by)
    return sorted(
        name
        for name, entry in registry.models.items()
        if any(fnmatchcase(alias, pattern) for alias in (name, *entry.aliases))
        and (family is None or fnmatchcase(entry.family, family))
        and all(limit.holds(entry) for limit in limits)
    )


def matching(pattern: str) -> list[str]:
    """The names of the models that a glob stands for; a name or an address without ``*``, ``?`` and ``[`` as it is.

    Raises:
        UnknownModel: no model's name matches.
    """
    if ":" in pattern or not set(pattern) & set("*?["):
        return [pattern]
    names = list_models(pattern)
    if not names:
        raise UnknownModel(f"no model's name matches '{pattern}': 'zoo list' shows them all")
    return names


@overload
def pick(
    flops: Budget = ...,
    *,
    by: str = ...,
    family: str | None = ...,
    n: None = ...,
    flagged: bool = ...,
    registry: Registry | None = ...,
    **limits: Unpack[MoreLimits],
) -> Entry: ...
@overload
def pick(
    flops: Budget = ...,
    *,
    by: str = ...,
    family: str | None = ...,
    n: int,
    flagged: bool = ...,
    registry: Registry | None = ...,
    **limits: Unpack[MoreLimits],
) -> list[Entry]: ...
def pick(
    flops: Budget = None,
    *,
    by: str = "pgd20",
    family: str | None = None,
    n: int | None = None,
    flagged: bool = False,
    registry: Registry | None = None,
    **limits: Unpack[MoreLimits],
) -> Entry | list[Entry]:
    """The entry with the best accuracy under protocol ``by`` within the budgets, or the best ``n`` of them.

    >>> pick("15M").macs <= 15e6
    True
    >>> len(pick("15M", min_clean=0.6, n=2))
    2

    Args:
        flops: at most this many multiply-accumulates per image, as ``"15M"``, ``15e6`` or ``15000000``.
        params: at most this many parameters; ``size``: at most this many bytes of weights, as ``"1.9MB"``.
        min_clean: at least this clean accuracy, as ``0.7`` or ``"70%"``; ``min_robust`` likewise, under ``by`` (under
            PGD-20 on the same data set if ``by`` has no attack).
        latency_ms: at most this median latency of one image on ``device`` ("this" is the present machine), with
            ``engine``, such as "onnxruntime-int8". Without ``engine`` the fastest one counts, which need not be the one
            that you export to: :func:`zoo.registry.constraints.fastest` names it.
        family: a glob over families.
        flagged: also take models whose accuracy may be too high (:mod:`zoo.evaluation.flags`).

    Raises:
        NothingMatches: the message names the binding constraint and the nearest miss.
        UsageError: a budget is malformed, or ``by`` is not a protocol.

    Warns:
        UserWarning: entries were left out, because they lack a measurement or are flagged.
    """
    typed(n=(n, Integral | None), family=(family, str | None), registry=(registry, Registry | None))
    if n is not None and n < 1:
        raise UsageError(f"pick returns at least one model: n must be 1 or more, not {n}")
    registry = registry or load_registry()
    if unknown := sorted(limits.keys() - MoreLimits.__annotations__.keys()):
        raise TypeError(f"pick() has no limit called '{unknown[0]}'{nearest(unknown[0], MoreLimits.__annotations__)}")
    choice = choose(registry, {"flops": flops, **limits}, by=by, family=family, flagged=flagged)
    for note in choice.notes():
        warnings.warn(note, stacklevel=2)
    return choice.ranked[0] if n is None else choice.ranked[:n]


def pareto(entries: Iterable[Entry], *, by: str = "pgd20") -> list[Entry]:
    """The Pareto front of MACs and accuracy under ``by``: the entries that none with as few or fewer MACs beats, in
    ascending order of MACs. Entries without a measurement under ``by`` are left out.

    >>> front = pareto(pick("30M", n=99))
    >>> [entry.macs for entry in front] == sorted(entry.macs for entry in front)
    True
    """
    typed(entries=(entries, Iterable), by=(by, str))
    entries = list(entries)
    for entry in entries:
        typed(entries=(entry, Entry))
    measured = [(entry.macs, -accuracy, entry.name, entry) for entry in entries
                if (accuracy := entry.accuracy(by)) is not None]  # fmt: skip
    front: list[Entry] = []
    best = 1.0
    for _, loss, _, entry in sorted(measured, key=lambda row: row[:3]):
        if loss < best:
            best = loss
            front.append(entry)
    return front
