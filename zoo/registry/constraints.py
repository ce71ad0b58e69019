"""Bounds on registry entries, and their wording in messages."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real
from typing import TypedDict

from zoo.registry.entry import Entry, Registry
from zoo.system.arguments import typed
from zoo.system.device import THIS, cpu_id, is_this
from zoo.system.errors import NothingMatches, UsageError, nearest
from zoo.system.units import format_count, format_ms, format_share, format_size, parse_count, parse_share, parse_size

Budget = str | float | None


@dataclass(frozen=True)
class Constraint:
    """A bound on one quantity of an entry, with its wording."""

    measure: Callable[[Entry], float | None]  # None: not measured
    bound: float
    upper: bool
    noun: str
    best: str  # introduces the nearest entry: "the smallest is"
    show: Callable[[float], str]

    def holds(self, entry: Entry) -> bool:
        value = self.measure(entry)
        return value is not None and (value <= self.bound if self.upper else value >= self.bound)

    def excess(self, entry: Entry) -> float:
        """The violation as a fraction of the bound; 0 if it holds, infinite if there is no measurement."""
        value = self.measure(entry)
        if value is None:
            return float("inf")
        beyond = value - self.bound if self.upper else self.bound - value
        return max(0.0, beyond) / (self.bound or 1.0)

    def shown(self, value: float) -> str:
        """``value`` in short form, or in full if its short form equals that of the bound."""
        short = self.show(value)
        return short if value == self.bound or short != self.show(self.bound) else f"{value:,.12g}"

    def of(self, entry: Entry) -> str:
        """The value of ``entry`` in words: ``18.3M MACs``."""
        value = self.measure(entry)
        return f"no measurement of {self.noun}" if value is None else f"{self.shown(value)} {self.noun}"

    def __str__(self) -> str:
        return f"{'at most' if self.upper else 'at least'} {self.show(self.bound)} {self.noun}"


class MoreLimits(TypedDict, total=False):
    """Limits on an entry besides its MACs; a limit that is missing or None does not apply."""

    params: Budget
    size: Budget  # bytes of weights
    min_clean: Budget  # on the data set of the entry
    min_robust: Budget  # under the ranking protocol, or under PGD-20 if that has no attack
    latency_ms: float | None  # median of one image
    device: str | None  # on which it was measured
    engine: str | None  # with which it was measured, such as "onnxruntime-int8"; None: the fastest


class Limits(MoreLimits, total=False):
    """All limits on an entry."""

    flops: Budget  # multiply-accumulates of one image


def constraints_of(registry: Registry, limits: Limits, *, by: str = "pgd20") -> list[Constraint]:
    """The constraints for ``limits``; ``by`` is the ranking protocol.

    Raises:
        UsageError: a limit is malformed, or a device or an engine is given without a latency.
        NothingMatches: no latency was measured on the device, or with the engine there.
    """
    required = []
    flops, params, size = limits.get("flops"), limits.get("params"), limits.get("size")
    latency_ms, device, engine = limits.get("latency_ms"), limits.get("device"), limits.get("engine")
    if flops is not None:
        required.append(Constraint(lambda e: e.macs, parse_count(flops), True, "MACs", "the smallest is", format_count))
    if params is not None:
        bound = parse_count(params)
        required.append(Constraint(lambda e: e.params, bound, True, "parameters", "the smallest is", format_count))
    if size is not None:
        bytes_ = parse_size(size)
        required.append(Constraint(lambda e: e.size, bytes_, True, "of weights", "the smallest is", format_size))
    if (minimum := limits.get("min_clean")) is not None:
        required.append(_accuracy_floor(minimum, "accuracy (clean)", lambda entry: on(entry.dataset, "clean")))
    if (minimum := limits.get("min_robust")) is not None:
        known_protocol(registry, by)
        asked = registry.protocols[by]
        under = by if asked["attack"] != "none" else on(asked.get("dataset", "cifar10"), "pgd20")
        required.append(_accuracy_floor(minimum, f"accuracy under {under}", lambda entry: under))
    if latency_ms is not None:
        required.append(_latency_ceiling(registry, latency_ms, device, engine))
    elif device is not None or engine is not None:
        what, given = ("a device", device) if device is not None else ("an engine", engine)
        raise UsageError(f"{what} applies only to a latency budget: give latency_ms with '{given}'")
    return required


def on(dataset: str, protocol: str) -> str:
    """The name of the CIFAR-10 protocol ``protocol`` on another data set, as :meth:`Protocol.on` makes it."""
    return protocol if dataset == "cifar10" else f"{dataset}-{protocol}"


def _accuracy_floor(minimum: str | float, noun: str, protocol: Callable[[Entry], str]) -> Constraint:
    def accuracy(entry: Entry) -> float | None:
        return entry.accuracy(protocol(entry))

    return Constraint(accuracy, parse_share(minimum), False, noun, "the best is", format_share)


def _latency_ceiling(registry: Registry, latency_ms: float, device: str | None, engine: str | None) -> Constraint:
    """The median latency of one image on ``device``, with ``engine`` or with the fastest."""
    typed(latency_ms=(latency_ms, Real), device=(device, str | None), engine=(engine, str | None))
    if not latency_ms > 0:
        raise UsageError(f"a latency budget must be a positive number of milliseconds, not {latency_ms}")
    on = timed_devices(registry, device)
    where = " or ".join(on)
    timed = sorted({name for entry in registry.models.values() for one in on for name in entry.latency.get(one, {})})
    if engine not in (*timed, None):
        raise NothingMatches(
            f"no latency of {engine} was measured on {where} (measured there: {', '.join(timed)}): choose one of "
            "these, or measure a bundle with `zoo bench BUNDLE --write`"
        )

    def median(entry: Entry) -> float | None:
        timing = fastest(entry, on, engine=engine)
        return timing[0] if timing else None

    noun = f"latency{f' with {engine}' if engine else ''} on {where}"
    return Constraint(median, latency_ms, True, noun, "the fastest is", lambda ms: f"{format_ms(ms)} ms")


def timed_devices(registry: Registry, device: str | None) -> list[str]:
    """The measured devices that ``device`` refers to: the device itself; for "this", those of this machine, on any
    number of threads; for None, the only one.

    Raises:
        UsageError: ``device`` is None, and there are several.
        NothingMatches: no latency was measured there.
    """
    devices = sorted({device for entry in registry.models.values() for device in entry.latency})
    measured = f"(measured devices: {', '.join(devices) or 'none'})"
    if device == THIS:
        here = [name for name in devices if is_this(name)]
        if not here:
            raise NothingMatches(
                f"no latency was measured on this machine, '{cpu_id(threads=1)}' {measured}: measure a model "
                "with `zoo bench NAME --write`"
            )
        return here
    if device is None and len(devices) > 1:
        raise UsageError(f"a latency budget needs a device: choose one of {', '.join(devices)}")
    if device not in (*devices, None) or not devices:
        where = f"on '{device}'" if device else "on any device"
        raise NothingMatches(f"no latency was measured {where} {measured}")
    return [device or devices[0]]


def fastest(
    entry: Entry, devices: list[str], *, batch: int = 1, engine: str | None = None
) -> tuple[float, str, str] | None:
    """The lowest median of a batch in ms, with its engine and device; None if ``entry`` was not measured there.

    Args:
        engine: the only one that counts, such as "onnxruntime-int8"; None: all.
    """
    timed = [
        (batches[str(batch)].p50_ms, name, device)
        for device in devices
        for name, batches in entry.latency.get(device, {}).items()
        if str(batch) in batches and engine in (name, None)
    ]
    return min(timed, default=None)


def known_protocol(registry: Registry, name: str) -> None:
    """Raise UsageError, with the nearest names, unless the registry knows a protocol called ``name``."""
    typed(by=(name, str))
    if name not in registry.protocols:
        known = ", ".join(registry.protocols)
        raise UsageError(f"no protocol is called '{name}'{nearest(name, registry.protocols)} (known: {known})")
