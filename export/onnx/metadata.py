"""The manifest's key fields in the graph itself, for those who meet the ONNX file alone."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from google.protobuf.message import DecodeError

from zoo.evaluation.threat import ThreatModel
from zoo.export.bundle.claims import Claim, accuracies, refuse
from zoo.export.bundle.manifest import IO, Manifest, Precision, Source
from zoo.export.onnx.graph import GRAPH, metadata_of
from zoo.export.onnx.uint8 import CONTRACT, UINT8
from zoo.specs import Spec, cost
from zoo.system.errors import IntegrityError

OPTIONAL = ("file_sha256", "dataset", "measured")  # left out where there are none


def metadata(
    *,
    name: str,
    spec: Spec,
    source: Source,
    precision: Precision,
    io: IO,
    labels: tuple[str, ...],
    dataset: str | None,
    threat: ThreatModel,
    measured: dict[str, Any],
) -> dict[str, str]:
    """What a graph in ``precision`` says of the model that it was made from; the other arguments as in its manifest."""
    images, (low, high) = io.input, io.input.range or (0.0, 1.0)
    known = cost(spec)
    figures = json.dumps(accuracies(measured), sort_keys=True) if measured else None
    optional = dict(zip(OPTIONAL, (source.file_sha256, dataset, figures), strict=True))
    return {
        "name": name,
        "spec": json.dumps(spec.to_dict(), sort_keys=True),
        "tensors_sha256": source.tensors_sha256,
        "precision": precision,
        "input": f"{images.dtype} {images.layout.replace(',', '')} in [{low:g}, {high:g}], "
        f"normalisation {io.normalisation}",
        "output": io.output.name,
        "labels": json.dumps(labels),
        "threat_model": f"{threat.norm}, eps {threat.eps:.6g} of [0, 1]",
        "macs": str(known.macs),
        "params": str(known.params),
        **{key: value for key, value in optional.items() if value},
    }


def check_metadata(folder: Path, manifest: Manifest, precision: Precision) -> None:
    """Compare the ``manifest`` of the bundle in ``folder`` with the graphs in it; model.onnx is in ``precision``.

    Raises:
        IntegrityError: they contradict each other, or a graph cannot be read.
    """
    said = metadata(
        name=manifest.name,
        spec=manifest.spec,
        source=manifest.source,
        precision=precision,
        io=manifest.io,
        labels=manifest.labels,
        dataset=manifest.dataset,
        threat=manifest.threat_model,
        measured=manifest.measured,
    )
    for file, own in ((GRAPH, {}), (UINT8, {"input": CONTRACT})):
        if (folder / file).exists():
            refuse(folder, _claims(file, said | own, _held(folder / file)))


def _held(graph: Path) -> dict[str, str]:
    try:
        return metadata_of(graph)
    except (DecodeError, ValueError):
        raise IntegrityError(f"'{graph}' is not an ONNX file: do not use this bundle") from None


def _claims(file: str, said: Mapping[str, str], held: Mapping[str, str]) -> Iterator[Claim]:
    for key in (*said, *OPTIONAL):
        if key in held:
            yield Claim(key, said.get(key), f"the metadata of {file} have", held[key])
