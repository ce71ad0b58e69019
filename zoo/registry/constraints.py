"""Bounds on a registry entry, and how they read in a message."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypedDict

from zoo.registry.entry import Entry, Registry
from zoo.system.device import THIS, cpu_id, is_this
from zoo.system.errors import NothingMatches, UsageError, nearest
from zoo.system.units import format_count, format_ms, format_share, format_size, parse_count, parse_share, parse_size

Budget = str | float | None


@dataclass(frozen=True)
class Constraint:
    """A bound on one quantity of an entry, in words too."""

    measure: Callable[[Entry], float | None]  # None: not measured
    bound: float
    upper: bool
    noun: str
    best: str  # of the entry that comes nearest: "the smallest is"
    show: Callable[[float], str]

    def holds(self, entry: Entry) -> bool:
        value = self.measure(entry)
        return value is not None and (value <= self.bound if self.upper else value >= self.bound)

    def excess(self, entry: Entry) -> float:
        """How far beyond the bound, as a fraction of it; 0 where it holds, infinite where nothing was measured."""
        value = self.measure(entry)
        if value is None:
            return float("inf")
        beyond = value - self.bound if self.upper else self.bound - value
        return max(0.0, beyond) / (self.bound or 1.0)

    def shown(self, value: float) -> str:
        """``value`` in short, or in full where the short form would look like the bound."""
        short = self.show(value)
        return short if value == self.bound or short != self.show(self.bound) else f"{value:,.12g}"

    def of(self, entry: Entry) -> str:
        """What ``entry`` has instead: ``18.3M MACs``."""
        value = self.measure(entry)
        return f"no measurement of {self.noun}" if value is None else f"{self.shown(value)} {self.noun}"

    def __str__(self) -> str:
        return f"{'at most' if self.upper else 'at least'} {self.show(self.bound)} {self.noun}"


class MoreLimits(TypedDict, total=False):
    """What an entry must keep to besides its MACs; a limit that is left out, or None, is no limit."""

    params: Budget
    size: Budget  # bytes of weights
    min_clean: Budget
    min_robust: Budget  # under the protocol that ranks, or under PGD-20 where that is "clean"
    latency_ms: float | None  # median of one image
    device: str | None  # where it was measured


class Limits(MoreLimits, total=False):
    """What an entry must keep to."""

    flops: Budget  # multiply-accumulates of one image


def constraints_of(registry: Registry, limits: Limits, *, by: str = "pgd20") -> list[Constraint]:
    """The constraints that ``limits`` mean, with ``by`` as the protocol that ranks.

    Raises:
        UsageError: a limit is not a number of its kind, or a device is given without a latency.
        NothingMatches: no latency was measured on the device.
    """
    found = []
    flops, params, size = limits.get("flops"), limits.get("params"), limits.get("size")
    latency_ms, device = limits.get("latency_ms"), limits.get("device")
    if flops is not None:
        found.append(Constraint(lambda e: e.macs, parse_count(flops), True, "MACs", "the smallest is", format_count))
    if params is not None:
        bound = parse_count(params)
        found.append(Constraint(lambda e: e.params, bound, True, "parameters", "the smallest is", format_count))
    if size is not None:
        bytes_ = parse_size(size)
        found.append(Constraint(lambda e: e.size, bytes_, True, "of weights", "the smallest is", format_size))
    robust = by if by != "clean" else "pgd20"
    for minimum, protocol in ((limits.get("min_clean"), "clean"), (limits.get("min_robust"), robust)):
        if minimum is not None:
            known_protocol(registry, protocol)
            found.append(_accuracy_floor(parse_share(minimum), protocol))
    if latency_ms is not None:
        found.append(_latency_ceiling(registry, latency_ms, device))
    elif device is not None:
        raise UsageError(f"device '{device}' only matters for a latency budget: give latency_ms too")
    return found


def _accuracy_floor(minimum: float, protocol: str) -> Constraint:
    noun = "accuracy (clean)" if protocol == "clean" else f"accuracy under {protocol}"
    return Constraint(lambda entry: entry.accuracy(protocol), minimum, False, noun, "the best is", format_share)


def _latency_ceiling(registry: Registry, latency_ms: float, device: str | None) -> Constraint:
    """On the fastest engine measured on ``device``: the median of one image."""
    if not latency_ms > 0:
        raise UsageError(f"a latency budget is a positive number of milliseconds, not {latency_ms}")
    on = timed_devices(registry, device)

    def median(entry: Entry) -> float | None:
        found = fastest(entry, on)
        return found[0] if found else None

    noun = f"latency on {' or '.join(on)}"
    return Constraint(median, latency_ms, True, noun, "the fastest is", lambda ms: f"{format_ms(ms)} ms")


def timed_devices(registry: Registry, device: str | None) -> list[str]:
    """What ``device`` means among the devices that the registry has latencies of: itself; for "this", whatever is this
    machine, on any number of threads; for None, the only one.

    Raises:
        UsageError: None is given, and there are several.
        NothingMatches: nothing was measured there; the message says how to.
    """
    devices = sorted({device for entry in registry.models.values() for device in entry.latency})
    measured = f"(measured devices: {', '.join(devices) or 'none'})"
    if device == THIS:
        here = [one for one in devices if is_this(one)]
        if not here:
            raise NothingMatches(
                f"no latency was measured on this machine, '{cpu_id(threads=1)}' {measured}: measure the models in "
                "question with `zoo bench NAME --write`"
            )
        return here
    if device is None and len(devices) > 1:
        raise UsageError(f"a latency budget needs a device; measured were: {', '.join(devices)}")
    if device not in (*devices, None) or not devices:
        where = f"on '{device}'" if device else "on any device"
        raise NothingMatches(f"no latency was measured {where} {measured}")
    return [device or devices[0]]


def fastest(entry: Entry, devices: list[str], *, batch: int = 1) -> tuple[float, str, str] | None:
    """The median of a batch in ms, the engine and the device, where ``entry`` is fastest; None if not measured."""
    timed = [
        (batches[str(batch)].p50_ms, engine, device)
        for device in devices
        for engine, batches in entry.latency.get(device, {}).items()
        if str(batch) in batches
    ]
    return min(timed, default=None)


def known_protocol(registry: Registry, name: str) -> None:
    """Raise UsageError, with the nearest names, unless the registry knows a protocol called ``name``."""
    if name not in registry.protocols:
        known = ", ".join(registry.protocols)
        raise UsageError(f"no protocol is called '{name}'{nearest(name, registry.protocols)} (known: {known})")
