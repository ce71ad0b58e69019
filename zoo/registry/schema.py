"""The registry file's schema: the types of ``zoo.registry.entry``, and the relations between their fields.

``python -m zoo.registry.schema > docs/registry.schema.json`` writes the JSON Schema.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import TypeAdapter, ValidationError

from zoo.evaluation.corruptions import CELLS, KINDS
from zoo.evaluation.protocols import CORRUPTED, Protocol
from zoo.evaluation.statistics import Accuracy, wilson
from zoo.registry.entry import Corruptions, Latency, Model, Result
from zoo.specs import ArchSpec, cost, parse_spec
from zoo.system.errors import IntegrityError, UsageError, first_fault
from zoo.system.records import Bounds, Record, Sha256

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9@._-]{0,39}", re.ASCII)
NAMING = "a name has 1 to 40 letters, digits, '@', '.', '_' and '-', and must start with a letter or digit"
PROVENANCE = ("torch", "cpu")  # required in every toolchain


@dataclass(frozen=True, kw_only=True)
class Split(Record):
    """The number of images of a split, and the SHA-256 of its pixels and labels."""

    n: Annotated[int, Bounds(ge=1)]
    sha256: Sha256


@dataclass(frozen=True, kw_only=True)
class Dataset(Record):
    """The splits that results refer to."""

    splits: dict[str, Split]


@dataclass(frozen=True, kw_only=True)
class RegistryFile(Record):
    """registry.json: models, and the protocols and data of their results."""

    schema_version: Literal[1]
    protocols: dict[str, Protocol]
    datasets: dict[str, Dataset]
    models: dict[str, Model]


@cache
def _adapter() -> TypeAdapter[RegistryFile]:
    return TypeAdapter(RegistryFile)


def json_schema() -> dict[str, Any]:
    """The JSON Schema (2020-12) of a registry file; architecture specs are spelled out.

    It has no docstrings: which of them pydantic takes over differs between its versions.
    """
    schema = _adapter().json_schema()
    spec = TypeAdapter(ArchSpec).json_schema()
    schema["$defs"] |= spec.pop("$defs")
    schema["$defs"]["Model"]["properties"]["spec"] = {"title": "Spec"} | spec
    for part in (schema, *schema["$defs"].values()):
        part.pop("description", None)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def check(text: bytes, path: Path) -> None:
    """Validate ``text``, the content of the registry file ``path``.

    Raises:
        IntegrityError: it is not JSON, breaks the schema, or contradicts itself; the message names the first fault.
    """
    try:
        file = _adapter().validate_json(text)
    except ValidationError as error:
        raise IntegrityError(f"the registry '{path}' is wrong{first_fault(error)}") from None
    for where, fault in _contradictions(file):
        raise IntegrityError(f"the registry '{path}' is wrong at '{where}': {fault}")


def check_model(model: Mapping[str, Any]) -> None:
    """Validate one entry alone; contradictions to the rest of the registry are found when it is written.

    Raises:
        UsageError: a field is missing, unknown or malformed; the message names the first.
    """
    try:
        TypeAdapter(Model).validate_json(json.dumps(model))
    except ValidationError as error:
        raise UsageError(f"the entry is wrong{first_fault(error)}") from None


def _contradictions(file: RegistryFile) -> Iterator[tuple[str, str]]:
    """The place of every contradiction, and its description."""
    for name, protocol in file.protocols.items():
        if protocol.name != name:
            yield f"protocols.{name}.name", f"its name is '{protocol.name}'"
    taken = {name: name for name in file.models}  # the owner of each name and alias
    for name, model in file.models.items():
        where = f"models.{name}"
        if not NAME.fullmatch(name):
            yield where, NAMING
        for alias in model.aliases:
            if not NAME.fullmatch(alias):
                yield f"{where}.aliases", NAMING
            if taken.setdefault(alias, name) != name or alias == name or model.aliases.count(alias) > 1:
                yield f"{where}.aliases", f"'{alias}' is already a name of '{taken[alias]}'"
        try:
            macs, params = cost(parse_spec(model.spec))
        except UsageError as error:
            yield f"{where}.spec", str(error)
            continue
        for field, stored, true in (("macs", model.macs, macs), ("params", model.params, params)):
            if stored != true:
                yield f"{where}.{field}", f"{stored} is stored, but the spec has {true}"
        if fault := _subnet_fault(file, model):
            yield f"{where}.subnet", fault
        for protocol_name, accuracy in (model.train.teacher.accuracy if model.train.teacher else {}).items():
            for field, fault in _accuracy_faults(accuracy):
                yield f"{where}.train.teacher.accuracy.{protocol_name}{field}", fault
        for protocol_name, result in model.results.items():
            for field, fault in _result_faults(file, model, protocol_name, result):
                yield f"{where}.results.{protocol_name}{field}", fault
        for device, engines in model.latency.items():
            for engine, batches in engines.items():
                for batch, latency in batches.items():
                    for field, fault in _latency_faults(latency):
                        yield f"{where}.latency.{device}.{engine}.{batch}{field}", fault


def _subnet_fault(file: RegistryFile, model: Model) -> str | None:
    if model.subnet is None:
        return None
    of = file.models.get(model.subnet.of)
    if of is None or of.supernet is None:
        return f"no dynamic net is called '{model.subnet.of}'"
    if of.weights.sha256 != model.subnet.weights_sha256:
        return f"cut from other weights than those of '{model.subnet.of}'"
    return None


def _accuracy_faults(accuracy: Accuracy) -> Iterator[tuple[str, str]]:
    n, value = accuracy.n, accuracy.value
    right = round(value * n)
    if not math.isclose(value * n, right, abs_tol=1e-6):
        yield ".value", f"{value} is not a number of images out of {n}"
    elif not all(math.isclose(a, b, abs_tol=1e-9) for a, b in zip(accuracy.ci95, wilson(right, n), strict=True)):
        yield ".ci95", f"{list(accuracy.ci95)} is not the Wilson interval {list(wilson(right, n))}"


def _result_faults(file: RegistryFile, model: Model, name: str, result: Result) -> Iterator[tuple[str, str]]:
    protocol = file.protocols.get(name)
    if protocol is None:
        yield "", "no protocol of that name is defined in 'protocols'"
        return
    if protocol.dataset != model.dataset:
        yield "", f"the protocol is for {protocol.dataset}, but the model for {model.dataset}"
    n = result.accuracy.n
    if n > protocol.n:
        yield ".accuracy.n", f"{n} images, but the protocol has {protocol.n}"
    if (protocol.attack in CORRUPTED) != (result.corruptions is not None):
        yield ".corruptions", "a result has a table of corruptions if its protocol has corrupted images, and only then"
    elif result.corruptions is not None:
        yield from _corruption_faults(result.accuracy, result.corruptions)
    else:
        for field, fault in _accuracy_faults(result.accuracy):
            yield f".accuracy{field}", fault
    if result.weights_sha256 != model.weights.sha256:
        yield ".weights_sha256", "measured with other weights than those of the entry"
    dataset = file.datasets.get(protocol.dataset)
    split = dataset.splits.get(protocol.split) if dataset else None
    if split is None:
        yield ".dataset_sha256", f"'datasets' has no {protocol.split} split of {protocol.dataset}"
    elif split.sha256 != result.dataset_sha256 or n > split.n:
        yield ".dataset_sha256", f"measured on another {protocol.split} split than that of 'datasets'"
    missing = [key for key in PROVENANCE if not result.toolchain.get(key)]
    if missing:
        yield ".toolchain", f"does not name the {missing[0]}"
    yield from _time_faults(result.measured_at)


def _corruption_faults(mean: Accuracy, found: Corruptions) -> Iterator[tuple[str, str]]:
    right = {kind: sum(cells) for kind, cells in found.cells.items()}
    if tuple(right) != KINDS or any(count > mean.n for cells in found.cells.values() for count in cells):
        yield ".corruptions.cells", f"not the counts of {', '.join(KINDS)}, each of up to {mean.n} images"
        return
    if right.get(found.worst) != min(right.values()):
        yield ".corruptions.worst", f"'{found.worst}' is not the kind with the fewest images classified correctly"
        return
    shown = {"": (mean, sum(right.values()) / len(CELLS)), ".corruptions": (found.accuracy, min(right.values()) / 5)}
    for where, (accuracy, images) in shown.items():
        low, high = accuracy.ci95
        if accuracy.n != mean.n or not math.isclose(accuracy.value * accuracy.n, images, abs_tol=1e-6):
            yield f"{where}.accuracy", f"{accuracy.value} of {accuracy.n} images is not what the cells come to"
        elif not low <= accuracy.value <= high:
            yield f"{where}.accuracy.ci95", f"{list(accuracy.ci95)} does not contain {accuracy.value}"


def _latency_faults(latency: Latency) -> Iterator[tuple[str, str]]:
    if not latency.p50_ms <= latency.p95_ms <= latency.p99_ms:
        yield "", "the median is above the 95th percentile, or the 95th percentile above the 99th"
    yield from _time_faults(latency.measured_at)


def _time_faults(measured_at: str) -> Iterator[tuple[str, str]]:
    try:
        aware = datetime.fromisoformat(measured_at).tzinfo is not None
    except ValueError:
        aware = False
    if not aware:
        yield ".measured_at", f"'{measured_at}' is not an ISO 8601 time with a time zone"


if __name__ == "__main__":
    print(json.dumps(json_schema(), indent=2))
