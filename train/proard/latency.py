"""Predicted latencies of all sub-nets of a space on one device, from a few measured ones.

The latency is a sum over convolutions. Each resolution has a price per call and a price per MAC, none negative.
Channels are rounded up to full vector lanes: on unseen sub-nets of the tiny space (120 of them, ONNX Runtime, AVX-512)
the error was 3.5 %, and 8 % with plain MACs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict

from zoo.specs.base import Conv
from zoo.system.cache import cache_root
from zoo.system.device import cpu_id
from zoo.system.errors import IntegrityError, UsageError, ZooError
from zoo.system.files import write_atomic
from zoo.system.notice import say_once
from zoo.system.toolchain import toolchain
from zoo.train.proard.labelled import read_json
from zoo.train.proard.measuring import drawn
from zoo.train.proard.predictor import fingerprint
from zoo.train.spaces.dynamic import Genes, Space, Tables

LANES = (1, 4, 8, 16)  # the number with the least error is chosen
FOLDS = 5
LEAST = 2 * FOLDS  # measured sub-nets
ALWAYS = "every net"  # the kind of cost that each net has once
# zoo.export.bench.nets.time_architectures, which is not imported here. It takes specs and the keywords engine and
# threads, and returns the milliseconds of each spec and the fields of Fitted about engine and device.
Stopwatch = Callable[..., tuple[Sequence[float], Mapping[str, Any]]]
Costs = Counter[str]  # amounts by kind, such as "MACs, dense 16" for resolution 16


class Fitted(BaseModel):
    """The file of a table: prices in milliseconds, the measurement, and the error of the fit.

    ``mae`` is the mean of |predicted - measured| / measured, ``tau`` Kendall's rank correlation, both on unseen
    sub-nets (cross-validated).
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
    """A function of sub-nets [n, G] that returns their latencies in milliseconds, float64 [n]."""

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
        """Write it atomically as JSON."""
        write_atomic(path, (self.facts.model_dump_json(indent=2) + "\n").encode())

    @classmethod
    def load(cls, path: Path, space: Space) -> LatencyTable:
        """Read what :meth:`save` wrote.

        Raises:
            UsageError: the table belongs to another space, or to another definition of this one.
            Unreachable, IntegrityError: as :func:`zoo.train.proard.labelled.read_json`.
        """
        facts = read_json(path, Fitted, "latencies")
        if facts.space != space.name:
            message = (
                f"'{path}' holds latencies of space {facts.space}, not {space.name}: measure those of {space.name}"
            )
            raise UsageError(message)
        if facts.space_sha256 != fingerprint(space):
            raise UsageError(f"'{path}' belongs to another definition of space {space.name}: measure it again")
        table = cls(space, facts)
        try:
            table(space.largest)
        except KeyError as error:
            raise IntegrityError(f"the file '{path}' with latencies is damaged: no price for {error}") from None
        return table


def latency_table(
    space: Space,
    stopwatch: Stopwatch,
    *,
    engine: str = "onnxruntime",
    threads: int = 1,
    notify: Callable[[str], None] = lambda message: None,
) -> LatencyTable:
    """The table of this machine, from the cache, or measured in about two minutes and stored there.

    A table of other versions of the tools, or of another definition of the space, is measured again.
    """
    path = cache_root() / "latency" / f"{space.name}--{engine}--{cpu_id(threads)}.json"
    try:
        cached = LatencyTable.load(path, space)
        if cached.facts.toolchain == toolchain():
            return cached
    except ZooError:
        pass
    notify(f"timing sub-nets of space {space.name} with {engine}, about two minutes, stored in '{path}' ...")
    table = measure_latency(space, stopwatch, engine=engine, threads=threads)
    for warning in table.facts.warnings:
        notify(f"these latencies may be too long: {warning}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        table.save(path)
    except OSError as error:
        say_once(f"the latencies cannot be stored in '{path}' ({error.strerror}): they are timed again the next time")
    return table


def measure_latency(
    space: Space, stopwatch: Stopwatch, *, engine: str = "onnxruntime", threads: int = 1, n: int = 60, seed: int = 0
) -> LatencyTable:
    """Time ``n`` sub-nets of ``space``, its extremes and random ones, and fit a table to them."""
    genes = drawn(space, n, seed)
    ms, facts = stopwatch([space.spec(row) for row in genes], engine=engine, threads=threads)
    return fit_latency(space, genes, np.array(ms), facts)


def fit_latency(space: Space, genes: Genes, ms: np.ndarray, facts: Mapping[str, Any], *, seed: int = 0) -> LatencyTable:
    """Fit a table to sub-nets [n, G]: prices by non-negative least squares of the relative error.

    Args:
        ms: measured milliseconds of each sub-net, [n].
        facts: the fields of :class:`Fitted` about engine and device.

    Raises:
        UsageError: there are too few sub-nets.
    """
    from scipy.stats import kendalltau

    if len(ms) < LEAST:
        raise UsageError(f"a latency table needs at least {LEAST} timed sub-nets, not {len(ms)}")
    folds = np.array_split(np.random.default_rng(seed).permutation(len(ms)), FOLDS)
    tried = []
    for lanes in LANES:
        parts = [Counter({ALWAYS: 1}) + costs(space.spec(row).convs(), lanes) for row in genes]
        kinds = sorted(set[str]().union(*parts))
        x = np.array([[one[kind] for kind in kinds] for one in parts], float)
        predicted = np.empty(len(ms))
        for unseen in folds:
            seen = np.setdiff1d(np.arange(len(ms)), unseen)
            predicted[unseen] = x[unseen] @ _prices(x[seen], ms[seen])
        prices = dict(zip(kinds, _prices(x, ms).tolist(), strict=True))
        tried.append((float(abs(predicted / ms - 1).mean()), lanes, predicted, prices))
    mae, lanes, predicted, prices = min(tried, key=lambda one: one[:2])
    tau = float(kendalltau(predicted, ms).statistic)
    of = {"space": space.name, "space_sha256": fingerprint(space), "n": len(ms)}
    return LatencyTable(space, Fitted(**of, **facts, mae=mae, tau=tau, lanes=lanes, prices=prices))


def _prices(x: np.ndarray, ms: np.ndarray) -> np.ndarray:
    """The prices [K] with the least squared relative error of ``x @ prices`` for ``ms``, from ``x`` [n, K]."""
    from scipy.optimize import nnls

    scale = np.maximum(x.max(0), 1)  # a fold may lack a kind
    return nnls(x / scale / ms[:, None], np.ones(len(ms)))[0] / scale


def costs(convs: Iterable[Conv], lanes: int) -> Costs:
    """The amount of each kind of cost: calls and MACs, by resolution, depthwise or dense."""
    parts: Costs = Counter()
    for conv in convs:
        depthwise = conv.groups > 1
        kind = f"{'depthwise' if depthwise else 'dense'} {conv.resolution}"
        c_in, c_out = (-(-channels // lanes) * lanes for channels in (conv.c_in, conv.c_out))
        per_channel = conv.c_in // conv.groups if depthwise else c_in
        parts[f"calls, {kind}"] += 1
        parts[f"MACs, {kind}"] += c_out * per_channel * conv.kernel**2 * conv.resolution**2
    return parts
