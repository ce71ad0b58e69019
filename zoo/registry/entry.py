"""The records of the registry: plain frozen dataclasses, so that listing models imports little.

``zoo.registry.schema`` validates a registry file against these types and bounds; the classes do not validate.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields
from functools import cached_property
from typing import Annotated, Any

from zoo.evaluation.statistics import Accuracy
from zoo.evaluation.threat import LINF_8, ThreatModel
from zoo.system.records import Amount, Bounds, Count, Record, Sha256, Share, Text

Batch = Annotated[str, Bounds(pattern=r"^[1-9][0-9]*$")]  # a number of images, as a JSON key
Commit = Annotated[str, Bounds(pattern=r"^[0-9a-f]{40}$")]
Safetensors = Annotated[str, Bounds(pattern=r"^[A-Za-z0-9][A-Za-z0-9@._-]*\.safetensors$")]


@dataclass(frozen=True, kw_only=True)
class Corruptions(Record):
    """A result under common corruptions in detail: ``cells`` are the images classified correctly in each kind, at
    severities 1 to 5; ``accuracy`` is that of the ``worst`` kind, over its severities."""

    worst: Text
    accuracy: Accuracy
    cells: dict[str, tuple[Count, Count, Count, Count, Count]]


@dataclass(frozen=True, kw_only=True)
class Result(Record):
    """The result of one model under one protocol, with its provenance. Under corruptions, ``accuracy`` is the mean over
    kinds and severities, see :meth:`zoo.evaluation.statistics.Accuracy.over`."""

    accuracy: Accuracy
    weights_sha256: Sha256
    dataset_sha256: Sha256  # the fingerprint of the split
    toolchain: dict[str, str]
    measured_at: Text  # ISO 8601 with the time zone
    wall_s: Amount
    flags: tuple[str, ...] = ()  # why the accuracy may be too high: zoo.evaluation.flags
    extra: dict[str, float] = field(default_factory=dict)
    corruptions: Corruptions | None = None


@dataclass(frozen=True, kw_only=True)
class Hub(Record):
    """The location of a file on the Hugging Face Hub."""

    repo_id: Text
    revision: Commit
    filename: Safetensors


@dataclass(frozen=True, kw_only=True)
class Weights(Record):
    """A safetensors file, in the package or on the Hub; ``size`` in bytes."""

    file: Safetensors
    size: Annotated[int, Bounds(ge=1)]
    sha256: Sha256
    hub: Hub | None = None


@dataclass(frozen=True, kw_only=True)
class Teacher(Record):
    """The teacher of a distillation: its weights, and their accuracy by protocol."""

    name: Text
    weights_sha256: Sha256
    accuracy: dict[str, Accuracy] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Start(Record):
    """The model whose weights the training started from."""

    name: Text
    weights_sha256: Sha256


@dataclass(frozen=True, kw_only=True)
class Phase(Record):
    """A phase of the training, such as a search."""

    name: Text
    epochs: Amount
    images_seen: Count
    wall_s: Amount


@dataclass(frozen=True, kw_only=True)
class Train(Record):
    """How the weights were trained; ``phases`` are in order, and empty in older entries. ``settings`` are those of the
    recipe (its last phase), None in older entries."""

    recipe: Text
    recipe_sha256: Sha256
    settings: dict[str, Any] | None = None
    seed: int
    start: Start | None = None
    teacher: Teacher | None = None
    epochs: Amount
    images_seen: Count
    wall_s: Amount
    device: Text
    precision: Text | None = None  # of the arithmetic; None in older entries
    commit: Commit | None = None
    torch: Text
    phases: tuple[Phase, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Reported(Record):
    """A number from a paper, kept separate from measurements."""

    value: Share
    source: Text


@dataclass(frozen=True, kw_only=True)
class Latency(Record):
    """Milliseconds for one call with a batch of images: median, 95th and 99th percentile (``zoo bench``)."""

    p50_ms: Amount
    p95_ms: Amount
    p99_ms: Amount
    images_per_s: Amount
    memory_mb: Amount | None = None  # 10^6 bytes that the engine adds to its process; None if unknown
    calls: Annotated[int, Bounds(ge=1)]
    busy: bool  # other work ran on the machine
    runtime: Text  # with its version
    measured_at: Text  # ISO 8601 with the time zone


@dataclass(frozen=True, kw_only=True)
class Subnet(Record):
    """A sub-net of a dynamic net. It shares that net's weights: its file holds only BatchNorm statistics.

    ``values`` are the choices that define it; ``size`` is the size of its share of the weights, in bytes.
    """

    of: Text
    weights_sha256: Sha256  # of the dynamic net's file
    values: dict[str, float]
    size: Annotated[int, Bounds(ge=1)]


UNKNOWN = "unknown"  # the licence of a model whose owner has not stated one; the Hub has the same word


@dataclass(frozen=True, kw_only=True)
class Model(Record):
    """A registry entry as stored in the file; ``parse_spec`` reads ``spec``, and ``macs`` are per image.

    ``aliases`` are other names of the model. A dynamic net names the space of its sub-nets in ``supernet``; loaded as a
    model, it is the largest of them.
    """

    family: Text
    aliases: tuple[Text, ...] = ()
    description: str
    spec: dict[str, Any]
    macs: Count
    params: Count
    dataset: Text = "cifar10"
    threat: ThreatModel = LINF_8
    weights: Weights
    license: Text
    paper: str | None = None
    train: Train
    results: dict[str, Result]
    reported: dict[str, Reported] = field(default_factory=dict)
    latency: dict[str, dict[str, dict[Batch, Latency]]] = field(default_factory=dict)  # by device, engine, batch
    flags: tuple[str, ...] = ()
    supernet: Text | None = None
    subnet: Subnet | None = None


@dataclass(frozen=True, kw_only=True)
class Entry(Model):
    """A registry entry and its name."""

    name: str

    @classmethod
    def listed(cls, name: str, facts: Mapping[str, Any], read: Callable[[], Entry]) -> Entry:
        """An entry that is not read as a whole: ``read`` is called when more than ``facts`` is asked for.

        Args:
            facts: JSON data: of the fields :data:`LISTED` those that differ from the default, ``size``, and
                ``accuracies`` by protocol: value, n, interval.
        """
        known = {key: _MADE[key](value) if key in _MADE else value for key, value in facts.items()}
        entry = cls.__new__(cls)
        vars(entry).update(known, name=name, _read=read)
        return entry

    def __reduce__(self) -> tuple[Any, ...]:
        return Entry.from_dict, (self.name, self.to_dict())  # not the whole registry, which ``_read`` holds

    def __getattr__(self, field: str) -> Any:
        if "_read" not in vars(self) or field not in self.__dataclass_fields__:
            raise AttributeError(f"an entry of the registry has no '{field}'")
        vars(self).update(vars(self._read()))
        return vars(self)[field]

    def measured(self, protocol: str) -> Accuracy | None:
        """The accuracy under ``protocol``, or None if it was not measured."""
        value, n, ci95 = self.accuracies.get(protocol, (None, 0, ()))
        return None if value is None else Accuracy(value=value, n=n, ci95=tuple(ci95))

    def accuracy(self, protocol: str) -> float | None:
        """The share of images classified correctly under ``protocol``, or None if it was not measured."""
        return self.accuracies.get(protocol, (None,))[0]

    @cached_property
    def accuracies(self) -> Mapping[str, Sequence[Any]]:
        """Value, n and interval under each protocol of ``results``."""
        found = {protocol: result.accuracy for protocol, result in self.results.items()}
        return {protocol: (one.value, one.n, one.ci95) for protocol, one in found.items()}

    @cached_property
    def size(self) -> int:
        """Bytes of its weights: of its file, or of a sub-net's share of the dynamic net."""
        return self.weights.size if self.subnet is None else self.subnet.size

    def to_dict(self) -> dict[str, Any]:
        """The entry as JSON data for the registry file, without the name, which is its key there."""
        data = asdict(self)
        del data["name"]
        for result in data["results"].values():
            if result["corruptions"] is None:  # as in most results
                del result["corruptions"]
        return data

    @classmethod
    def from_dict(cls, name: str, data: Mapping[str, Any]) -> Entry:
        """The entry of validated JSON ``data``."""
        hub = data["weights"].get("hub")
        nested = {
            "weights": Weights(**{**data["weights"], "hub": Hub(**hub) if hub else None}),
            "train": _train(data["train"]),
            "results": {protocol: _result(result) for protocol, result in data["results"].items()},
            "reported": {key: Reported(**number) for key, number in data.get("reported", {}).items()},
            "latency": {
                device: {
                    engine: {batch: Latency(**times) for batch, times in batches.items()}
                    for engine, batches in engines.items()
                }
                for device, engines in data.get("latency", {}).items()
            },
        }
        nested |= {key: made(data[key]) for key, made in _MADE.items() if data.get(key) is not None}
        return cls(name=name, **{**data, **nested})


# The fields of an entry that lists and picks need, with their defaults. All with a default are among these, or an entry
# that was not read would answer with the default.
LISTED = {"family": None, "macs": None, "params": None} | {
    one.name: one.default for one in fields(Entry) if one.default is not MISSING
}
_MADE: dict[str, Callable[[Any], Any]] = {
    "aliases": tuple,
    "flags": tuple,
    "threat": lambda data: ThreatModel(**data),
    "subnet": lambda data: Subnet(**data),
}


def _result(data: Mapping[str, Any]) -> Result:
    nested = {"accuracy": Accuracy.from_dict(data["accuracy"]), "flags": tuple(data.get("flags", ()))}
    if corruptions := data.get("corruptions"):
        cells = {kind: tuple(right) for kind, right in corruptions["cells"].items()}
        accuracy = Accuracy.from_dict(corruptions["accuracy"])
        nested["corruptions"] = Corruptions(worst=corruptions["worst"], accuracy=accuracy, cells=cells)
    return Result(**{**data, **nested})


def _train(data: Mapping[str, Any]) -> Train:
    start, teacher = data.get("start"), data.get("teacher")
    phases = tuple(Phase(**phase) for phase in data.get("phases", ()))
    nested = {"start": Start(**start) if start else None, "teacher": _teacher(teacher) if teacher else None}
    return Train(**{**data, **nested, "phases": phases})


def _teacher(data: Mapping[str, Any]) -> Teacher:
    accuracy = {protocol: Accuracy.from_dict(number) for protocol, number in data.get("accuracy", {}).items()}
    return Teacher(**{**data, "accuracy": accuracy})


@dataclass(frozen=True)
class Registry:
    """A validated registry file; ``protocols`` and ``datasets`` are its JSON."""

    protocols: Mapping[str, Mapping[str, Any]]
    datasets: Mapping[str, Mapping[str, Any]]
    models: Mapping[str, Entry]

    @cached_property
    def named(self) -> Mapping[str, Entry]:
        """The entries by name and by alias."""
        return dict(self.models) | {alias: entry for entry in self.models.values() for alias in entry.aliases}
