"""The manifest of a bundle: what is in it, where it came from, and what it was shown to withstand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    ValidationError,
    model_validator,
)

from zoo.evaluation.threat import LINF_8, ThreatModel
from zoo.specs import ArchSpec, Spec
from zoo.system.errors import IntegrityError, UsageError, first_fault
from zoo.system.files import read_utf8
from zoo.system.records import Line, Name

Notify = Callable[[str], None]  # takes one sentence for the user
Level = Literal["none", "parity", "clean", "attacked"]
LEVELS: tuple[Level, ...] = get_args(Level)
# "built": the engine was built where it cannot run, and the graph that it was built from is right.
Reached = Literal["none", "built", "parity", "clean", "attacked"]
Precision = Literal["fp32", "fp16", "int8"]
PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "int8")
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Source(_Record):
    """Where the float weights came from; ``tensors_sha256`` is over the tensors, ``file_sha256`` of the file.

    ``name`` finds the model again, unless its weights are in the bundle: ``twin`` is their file.
    """

    name: Line
    tensors_sha256: Sha256
    file_sha256: Sha256 | None = None
    repo_id: str | None = None
    revision: str | None = None
    twin: Name | None = None


class Compute(_Record):
    """Cost of one forward pass of one image."""

    macs: int
    params: int
    unit: Literal["multiply-accumulates"] = "multiply-accumulates"


class Port(_Record):
    """The model's input or output."""

    name: str
    dtype: Literal["float32"] = "float32"
    shape: tuple[str | int, ...]
    range: tuple[float, float] | None = None
    layout: str


class IO(_Record):
    input: Port
    output: Port
    normalisation: Literal["inside"] = "inside"


def io_of(spec: Spec) -> IO:
    """The input and output of every model of ``spec``."""
    size = spec.image_size
    return IO(
        input=Port(name="images", shape=("batch", 3, size, size), range=(0.0, 1.0), layout="NCHW, RGB"),
        output=Port(name="logits", shape=("batch", spec.classes), layout="NK"),
    )


class Artifact(_Record):
    """The file that an engine runs, and the files that it needs besides.

    ``sha256`` is the file's own, or where there are companions that of the lines "digest  name" of them all. ``tf32``:
    whether it was built to round to 10 bits of mantissa; what a runtime may do is among the conditions of a report.
    """

    file: Name
    format: str
    precision: Precision
    opset: int
    batches: tuple[int, ...]
    tf32: bool = False
    size: int
    sha256: Sha256
    companions: tuple[Name, ...] = ()
    built_for: dict[str, str] = {}
    options: dict[str, Any] = {}


class Calibration(_Record):
    """The images that int8 ranges were chosen by; ``indices_sha256`` is over int64, little-endian."""

    dataset: str
    split: str
    n: int
    indices_sha256: Sha256
    images_sha256: Sha256
    method: Literal["minmax", "entropy", "percentile"]
    adversarial: float = 0.0  # share of them that was attacked first


class Search(_Record):
    """The layers that an int8 graph keeps in float, and what it then loses under attack on held-out images.

    Attributes:
        kept: names of nodes; ``macs``: their share of the multiply-accumulates.
        allowed: the accuracy under attack that may be lost, as a share.
        before: what is lost with every layer in int8; ``lost``: with these in float; ``upper95``: its upper bound.
        protocol: the attack, with n and the split; it walks along the graph's own gradients.
        graphs: how many were attacked to find this one.
    """

    kept: tuple[str, ...]
    macs: float
    allowed: float
    before: float
    lost: float
    upper95: float
    only_twin_right: int
    only_engine_right: int
    protocol: dict[str, Any]
    graphs: int


class Int8(_Record):
    """How an int8 graph departs from the usual one: weights in 7 bits, layers in float."""

    portable: bool = False
    search: Search | None = None


ACCESS = {"access": "white-box, untargeted"}  # which every threat model grants, and a manifest spells out


def _plain(threat: Any) -> Any:
    return dict(one for one in threat.items() if one not in ACCESS.items()) if isinstance(threat, dict) else threat


Threat = Annotated[ThreatModel, BeforeValidator(_plain), PlainSerializer(lambda threat: asdict(threat) | ACCESS)]


class Rung(_Record):
    """One check of an engine against its float twin, bound to the artifact, the data and the protocols.

    ``n`` counts images, on the rung "integrity" files.
    """

    name: str
    holds: bool
    artifact_sha256: Sha256
    n: int
    seed: int
    dataset: str
    dataset_sha256: Sha256
    protocols: tuple[dict[str, Any], ...] = ()
    threshold: dict[str, float] = {}
    measured: dict[str, Any] = {}
    seconds: float
    bits: dict[str, str] | None = None  # hexadecimal, first image in the highest bit: who is right on which image

    @model_validator(mode="after")
    def _is_by_the_spread(self) -> Rung:
        """The first bundles had tolerances in logits, which would be far too lax as shares of their spread."""
        if self.name in ("graph", "parity") and not {"relative_difference", "logit_spread"} <= self.measured.keys():
            raise ValueError("parity was measured in logits, as the first bundles had it: export the model again")
        return self


def _ran(rungs: tuple[Rung, ...]) -> bool:
    return any(rung.name not in ("integrity", "graph") for rung in rungs)


class Report(_Record):
    """How far up the ladder an engine came: every rung that was run, in order."""

    schema_version: Literal[1] = 1
    artifact_sha256: Sha256
    asked: Level
    reached: Reached
    rungs: tuple[Rung, ...]
    engine: dict[str, Any]
    toolchain: dict[str, str]
    created: str

    @property
    def ran(self) -> bool:
        """Whether the engine itself was run."""
        return _ran(self.rungs)

    @property
    def failed(self) -> Rung | None:
        """The rung that did not hold; only the last can be it."""
        return next((rung for rung in self.rungs if not rung.holds), None)


class Manifest(_Record):
    """Everything a user of a bundle may ask about it."""

    schema_version: Literal[1] = 1
    name: Name
    spec: ArchSpec
    source: Source
    cost: Compute
    io: IO
    labels: tuple[Line, ...]
    dataset: str | None = None  # that the model is for; None where it names none
    threat_model: Threat = LINF_8
    reported: dict[str, Any] = {}
    measured: dict[str, Any] = {}
    artifact: Artifact
    calibration: Calibration | None = None  # of quantised engines
    int8: Int8 | None = None  # None: as usual
    toolchain: dict[str, str]
    engine: str
    device: str
    conditions: dict[str, Any] = {}  # under which it was attacked, see zoo.export.bundle.conditions
    verified: Reached
    robustness: str
    gates: tuple[Rung, ...]
    command: str
    created: str

    @property
    def ran(self) -> bool:
        """Whether the engine itself was run when its reports were written."""
        return _ran(self.gates)


def level_called(asked: str | None) -> Level | None:
    """The level that is called ``asked``, None as it is.

    Raises:
        UsageError: there is no such level.
    """
    if asked is None or asked in LEVELS:
        return asked
    raise UsageError(f"a verification level is one of {', '.join(LEVELS)}, not '{asked}'")


def now() -> str:
    """This second, UTC, ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def to_json(record: BaseModel) -> str:
    return record.model_dump_json(indent=2, exclude_none=True) + "\n"


def read_manifest(path: Path) -> Manifest:
    """The manifest in the file ``path``.

    Raises:
        IntegrityError: it is unreadable, truncated, or a field is missing, unknown or wrong; the message names it.
    """
    try:
        return Manifest.model_validate_json(read_utf8(path))
    except OSError as error:
        raise IntegrityError(f"'{path}' cannot be read: {error.strerror}") from None
    except ValidationError as error:
        raise IntegrityError(f"the bundle's manifest '{path}' is wrong{first_fault(error)}") from None


Record = TypeVar("Record", bound=BaseModel)


def read_report(path: Path, kind: type[Record]) -> Record:
    """The report of this kind in the file ``path``.

    Raises:
        IntegrityError: it is unreadable, truncated, or a field is missing, unknown or wrong.
    """
    try:
        return kind.model_validate_json(read_utf8(path))
    except OSError as error:
        raise IntegrityError(f"'{path}' cannot be read: {error.strerror}") from None
    except ValidationError as error:
        raise IntegrityError(f"'{path}' is damaged{first_fault(error)}") from None
