"""Latencies of all sub-nets of a space on one device, from a few that were measured.

Milliseconds are a sum over convolutions: for each resolution a price a call and a price a MAC, none negative. MACs are
counted as vector units compute them, channels rounded up to full lanes: on 120 sub-nets of the tiny space (ONNX
Runtime, AVX-512) that left an error of 3.5 % on unseen ones, where plain MACs left 8 %.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from zoo.specs.base import Conv
from zoo.system.device import cpu_id
from zoo.system.errors import IntegrityError, Unreachable, UsageError, ZooError
from zoo.system.files import cache_root, write_atomic
from zoo.system.toolchain import toolchain
from zoo.train.proard.measuring import drawn
from zoo.train.proard.predictor import fingerprint
from zoo.train.spaces.dynamic import Genes, Space, Tables

LANES = (1, 4, 8, 16)  # the best of them is taken
FOLDS = 5
LEAST = 2 * FOLDS  # sub-nets to fit to
ALWAYS = "every net"  # the kind of cost that a net has once
# From specs, and the keywords engine and threads, to the milliseconds of each and what ran them:
# zoo.export.bench.nets.time_architectures. Nothing of that room is imported here.
Stopwatch = Callable[..., tuple[Sequence[float], Mapping[str, Any]]]
Costs = Counter[str]  # how much there is of each kind, such as "MACs, dense 16", at resolution 16


class Fitted(BaseModel):
    """A table's file: prices in milliseconds, what was measured, and how well they foretell it.

    ``mae`` is the mean of |predicted - measured| / measured, ``tau`` Kendall's rank correlation, both on sub-nets that
    the fit had not seen.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    space: str
    space_sha256: str
    engine: str
    runtime: str
    device: str
    threads: int
    batch: int
    n: int
    mae: float
    tau: float
    lanes: int
    prices: dict[str, float]
    warnings: tuple[str, ...]
    toolchain: dict[str, str]
    measured_at: str


@dataclass(frozen=True, eq=False)
class LatencyTable:
    """Called with sub-nets [n, G] it gives milliseconds, float64 [n]."""

    space: Space
    facts: Fitted

    def __call__(self, genes: Genes) -> np.ndarray:
        return self.facts.prices[ALWAYS] + self.space.summed(self._tables, genes)

    @cached_property
    def _tables(self) -> Tables:
        prices, lanes = self.facts.prices, self.facts.lanes
        return self.space.tables(
            lambda convs: float(sum(prices[kind] * much for kind, much in costs(convs, lanes).items()))
        )

    def save(self, path: Path) -> None:
        """Write it as JSON, whole or not at all."""
        write_atomic(path, (self.facts.model_dump_json(indent=2) + "\n").encode())

    @classmethod
    def load(cls, path: Path, space: Space) -> LatencyTable:
        """What :meth:`save` wrote.

        Raises:
            Unreachable: there is no such file.
            UsageError: it is of another space, or of another definition of this one.
            IntegrityError: the file is damaged.
        """
        if not path.is_file():
            raise Unreachable(f"there is no latency table at '{path}'")
        try:
            facts = Fitted.model_validate_json(path.read_bytes())
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            at = f" at '{where}'" if where else ""
            raise IntegrityError(f"the latency table '{path}' is damaged{at}: {first['msg']}") from None
        if facts.space != space.name:
            raise UsageError(f"'{path}' has the latencies of space {facts.space}, not {space.name}: measure these")
        if facts.space_sha256 != fingerprint(space):
            raise UsageError(f"'{path}' is of another definition of space {space.name}: measure it anew")
        table = cls(space, facts)
        try:
            table(space.largest)
        except KeyError as error:
            raise IntegrityError(f"the latency table '{path}' is damaged: it has no price for {error}") from None
        return table


def latency_table(
    space: Space,
    stopwatch: Stopwatch,
    *,
    engine: str = "onnxruntime",
    threads: int = 1,
    notify: Callable[[str], None] = lambda message: None,
) -> LatencyTable:
    """The table of this machine: from the cache, else measured (about two minutes) and kept there.

    One that other versions of the tools measured, or of another definition of the space, is measured anew.
    """
    path = cache_root() / "latency" / f"{space.name}--{engine}--{cpu_id(threads)}.json"
    try:
        kept = LatencyTable.load(path, space)
        if kept.facts.toolchain == toolchain():
            return kept
    except ZooError:
        pass
    notify(f"timing sub-nets of space {space.name} with {engine}, some two minutes; kept in '{path}' ...")
    table = measure_latency(space, stopwatch, engine=engine, threads=threads)
    for warning in table.facts.warnings:
        notify(f"these latencies may be too long: {warning}")
    path.parent.mkdir(parents=True, exist_ok=True)
    table.save(path)
    return table


def measure_latency(
    space: Space, stopwatch: Stopwatch, *, engine: str = "onnxruntime", threads: int = 1, n: int = 60, seed: int = 0
) -> LatencyTable:
    """Time the extremes of ``space`` and sub-nets drawn at random, ``n`` in all, and fit a table to them."""
    genes = drawn(space, n, seed)
    ms, facts = stopwatch([space.spec(row) for row in genes], engine=engine, threads=threads)
    return fit_latency(space, genes, np.array(ms), facts)


def fit_latency(space: Space, genes: Genes, ms: np.ndarray, facts: Mapping[str, Any], *, seed: int = 0) -> LatencyTable:
    """A table from measured sub-nets [n, G]: prices by non-negative least squares of the relative error.

    Args:
        ms: of each, [n].
        facts: what they were measured on, as :class:`Fitted` has it.

    Raises:
        UsageError: there are too few.
    """
    from scipy.stats import kendalltau

    if len(ms) < LEAST:
        raise UsageError(f"a latency table takes {LEAST} timed sub-nets at least, not {len(ms)}")
    folds = np.array_split(np.random.default_rng(seed).permutation(len(ms)), FOLDS)
    tried = []
    for lanes in LANES:
        parts = [Counter({ALWAYS: 1}) + costs(space.spec(row).convs(), lanes) for row in genes]
        kinds = sorted(set[str]().union(*parts))
        x = np.array([[one[kind] for kind in kinds] for one in parts], float)
        foretold = np.empty(len(ms))
        for unseen in folds:
            seen = np.setdiff1d(np.arange(len(ms)), unseen)
            foretold[unseen] = x[unseen] @ _prices(x[seen], ms[seen])
        prices = dict(zip(kinds, _prices(x, ms).tolist(), strict=True))
        tried.append((float(abs(foretold / ms - 1).mean()), lanes, foretold, prices))
    mae, lanes, foretold, prices = min(tried, key=lambda one: one[:2])
    tau = float(kendalltau(foretold, ms).statistic)
    of = {"space": space.name, "space_sha256": fingerprint(space), "n": len(ms)}
    return LatencyTable(space, Fitted(**of, **facts, mae=mae, tau=tau, lanes=lanes, prices=prices))


def _prices(x: np.ndarray, ms: np.ndarray) -> np.ndarray:
    """Of each column of ``x`` [n, K], so that ``x @ prices`` is ``ms`` [n] as nearly as can be, relatively."""
    from scipy.optimize import nnls

    scale = np.maximum(x.max(0), 1)  # a fold may have nothing of a kind
    return nnls(x / scale / ms[:, None], np.ones(len(ms)))[0] / scale


def costs(convs: Iterable[Conv], lanes: int) -> Costs:
    """How much there is of each kind that has a price of its own."""
    parts: Costs = Counter()
    for conv in convs:
        depthwise = conv.groups > 1
        kind = f"{'depthwise' if depthwise else 'dense'} {conv.resolution}"
        c_in, c_out = (-(-channels // lanes) * lanes for channels in (conv.c_in, conv.c_out))
        per_channel = conv.c_in // conv.groups if depthwise else c_in
        parts[f"calls, {kind}"] += 1
        parts[f"MACs, {kind}"] += c_out * per_channel * conv.kernel**2 * conv.resolution**2
    return parts
