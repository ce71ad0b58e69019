"""From a model's name to a signed-off bundle: build, climb the ladder, write whole or not at all."""

from __future__ import annotations

import json
import shlex
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from zoo.datasets import dataset_called
from zoo.datasets.base import Dataset, Split, to_float
from zoo.evaluation.evaluate import prepare
from zoo.evaluation.perturb import perturb
from zoo.evaluation.protocols import DATASET, PROTOCOLS
from zoo.evaluation.threat import ThreatModel
from zoo.export.bundle.folder import artifact_sha256, read_bundle, staged
from zoo.export.bundle.manifest import (
    IO,
    PRECISIONS,
    Artifact,
    Calibration,
    Compute,
    Level,
    Manifest,
    Port,
    Precision,
    Source,
    now,
)
from zoo.export.bundle.source import Known, digest, load_source
from zoo.export.engines import Backend, backend
from zoo.export.engines.interface import Order
from zoo.export.engines.options import loading, options_of
from zoo.export.engines.twin import Twin
from zoo.export.ladder.climb import Progress, Terms, climb, random_images, silent
from zoo.export.ladder.gate import sign_off
from zoo.export.ladder.report import unverified, write_reports
from zoo.export.onnx.calibration import Sampling, calibration_images
from zoo.export.onnx.fp16 import to_fp16
from zoo.export.onnx.graph import GRAPH, save_onnx
from zoo.export.onnx.int8 import to_int8
from zoo.export.onnx.uint8 import save_with_uint8_input
from zoo.export.verify import choose_level
from zoo.models import Classifier
from zoo.specs import cost
from zoo.system.errors import DataNotFound, UsageError
from zoo.system.toolchain import toolchain
from zoo.weights.load import task_of

PROBES = 8
UINT8 = "model-uint8.onnx"


def export_model(
    name: str,
    *,
    format: str = "onnx",
    precision: Precision = "fp32",
    calibration: Sampling | None = None,
    batches: Sequence[int] = (1, 8, 64),
    out: Path | str,
    verify: Level | None = None,
    data: Path | str | None = None,
    offline: bool = False,
    keep_failed: bool = False,
    force: bool = False,
    margin: float = Terms.margin,
    tolerance: float | None = None,
    n: int = Terms.n,
    seed: int = 0,
    queries: int | None = None,
    uint8: bool = False,
    engine_options: Mapping[str, Any] | None = None,
    command: str | None = None,
    progress: Progress = silent,
    notify: Callable[[str], None] = warnings.warn,
) -> Path:
    """Export the model called ``name`` into a bundle ``<out>/<name>--<engine>-<precision>``, signed off by the ladder.

    Args:
        name: all that :func:`zoo.load` takes.
        format: an engine or one of its aliases, see :mod:`zoo.export.engines`.
        precision: ``fp32``, ``fp16`` or ``int8``, see :mod:`zoo.export.precision`.
        calibration: how the images for int8 are chosen; they come from the training split.
        batches: batch sizes to be used; parity is checked at these, at 1 and at 2.
        verify: how high to climb: ``none``, ``parity``, ``clean`` or ``robust``; by default the highest that the data
            at hand allow.
        data: where the model's data set is, see :mod:`zoo.datasets`.
        keep_failed: leave a bundle that failed a gate under ``<bundle>.failed``.
        force: replace a bundle that is there.
        margin, tolerance, n, seed, queries: the terms of the sign-off, see :class:`zoo.export.ladder.climb.Terms`; the
            tolerance and whether Square attacks the engine follow from the precision unless they are given.
        uint8: add ``model-uint8.onnx``, the same graph for uint8 images [N, H, W, 3], see :mod:`zoo.export.onnx.uint8`.
        engine_options: of this engine alone, see :mod:`zoo.export.engines.options`.
        command: recorded in the manifest; made up from the arguments if None.
        notify: takes one sentence if robustness could not be verified.

    Returns:
        The bundle's folder.

    Raises:
        UsageError: an option is not as it must be, or the bundle exists.
        UnknownModel, Unreachable, DataNotFound, IntegrityError: the model or the data cannot be had.
        MissingDependency: the engine is not in this release, or not installed.
        ExportFailed: the model could not be converted, or the bundle not written.
        ParityGateFailed, RobustnessGateFailed: the engine is not shown to be as good as the model.
    """
    engine = backend(format)
    batches = _checked_options(engine, precision, batches)
    engine.require(build=True)
    engine.load_module().runtime()
    options_of(engine, engine_options or {})
    terms = Terms.of(precision, margin=margin, tolerance=tolerance, n=n, seed=seed, queries=queries)
    sampling = _sampling(engine, precision, calibration)
    dataset = _dataset(task_of(name, offline=offline).dataset, data, offline=offline) if sampling else None
    model, known = load_source(name, offline=offline)
    level, split = choose_level(verify, known.dataset, model.spec, data, offline=offline)
    calibrated = calibration_images(model, dataset, sampling, known.threat) if sampling and dataset else None
    if verify is None and level != "robust":
        notify(unverified(known.dataset))
    return write_bundle(
        model,
        known,
        engine=engine,
        precision=precision,
        calibrated=calibrated,
        out=Path(out),
        batches=batches,
        level=level,
        split=split,
        terms=terms,
        uint8=uint8,
        engine_options=engine_options,
        command=command or f"zoo export {shlex.quote(name)} --format {format} --precision {precision} --verify {level}",
        keep_failed=keep_failed,
        force=force,
        progress=progress,
    )


def write_bundle(
    model: Classifier,
    known: Known,
    *,
    out: Path,
    level: Level,
    split: Split | None,
    engine: Backend | None = None,
    precision: Precision = "fp32",
    calibrated: tuple[Tensor, Calibration] | None = None,
    batches: Sequence[int] = (1, 8, 64),
    terms: Terms | None = None,
    uint8: bool = False,
    engine_options: Mapping[str, Any] | None = None,
    command: str = "zoo.export.write_bundle",
    keep_failed: bool = False,
    force: bool = False,
    progress: Progress = silent,
) -> Path:
    """What :func:`export_model` does once it has the model and the images."""
    engine = engine or backend("onnxruntime")
    terms = terms or Terms.of(precision)
    if precision == "int8" and calibrated is None:
        raise UsageError("an int8 engine needs calibration images: see zoo.export.onnx.calibration")
    images, calibration = calibrated or (None, None)
    options = options_of(engine, engine_options or {})
    model = model.eval()
    final = out / f"{known.title}--{engine.name}-{precision}"
    with staged(final, force=force, keep_failed=keep_failed) as scratch:
        progress("build", 0, 1)
        source = Source(
            name=known.name,
            tensors_sha256=digest(model),
            file_sha256=known.file_sha256,
            repo_id=known.repo_id,
            revision=known.revision,
        )
        graph = scratch / GRAPH
        lowered: Precision = precision if engine.from_onnx else "fp32"
        opset = save_onnx(model, graph, metadata=_metadata(model, known, source, lowered))
        if lowered == "fp16":
            to_fp16(graph)
        elif lowered == "int8" and calibration:
            to_int8(graph, images, method=calibration.method, symmetric=engine.symmetric)
        built = engine.load_module().build(
            Order(model=model, graph=graph, precision=precision, batches=tuple(batches), calibration=images),
            scratch,
            **({} if options is None else {"options": options}),
        )
        if uint8:
            save_with_uint8_input(graph, scratch / UINT8)
        parts = (built.file, *built.companions)
        artifact = Artifact(
            file=built.file,
            format=engine.file_format,
            precision=precision,
            opset=opset,
            batches=tuple(batches),
            size=sum((scratch / part).stat().st_size for part in parts),
            sha256=artifact_sha256(scratch, parts),
            companions=built.companions,
            built_for=built.built_for,
            options=built.options,
        )
        progress("build", 1, 1)
        load_options = loading(engine, asdict(options) if options else {})
        with engine.load_module().load(scratch / artifact.file, **load_options) as loaded:
            report = climb(
                model,
                loaded,
                artifact_sha256=artifact.sha256,
                files=len(parts),
                level=level,
                split=split,
                batches=batches,
                terms=terms,
                dataset=known.dataset or DATASET,
                threat=known.threat,
                progress=progress,
            )
        manifest = Manifest(
            name=known.title,
            spec=model.spec,
            source=source,
            cost=Compute(**cost(model.spec)._asdict()),
            io=_io(model),
            labels=known.labels(model.spec),
            dataset=known.dataset,
            threat_model=known.threat,
            reported=known.reported,
            measured=known.measured,
            artifact=artifact,
            calibration=calibration,
            toolchain=toolchain(*engine.tools),
            engine=engine.name,
            device=report.engine["device"],
            verified=report.reached,
            robustness="",
            gates=(),
            command=command,
            created=now(),
        )
        _write_probe(scratch / "probe", model, split, known.threat)
        write_reports(scratch, manifest, report)
        read_bundle(scratch)
        sign_off(report)
    return final


def _checked_options(engine: Backend, precision: str, batches: Sequence[int]) -> tuple[int, ...]:
    if precision not in PRECISIONS:
        raise UsageError(f"a precision is one of {', '.join(PRECISIONS)}, not '{precision}'")
    if precision not in engine.precisions:
        raise UsageError(f"{engine.name} engines are {', '.join(engine.precisions)} here, not {precision}")
    if not batches or not all(isinstance(size, int) and 1 <= size <= 4096 for size in batches):
        raise UsageError(f"batch sizes are whole numbers from 1 to 4096, not {list(batches)}")
    return tuple(sorted(set(batches)))


def _sampling(engine: Backend, precision: Precision, asked: Sampling | None) -> Sampling | None:
    """How calibration images are chosen; None where none are needed.

    Raises:
        UsageError: some were asked for, and the precision has no use for them, or not in a way that the engine has.
    """
    if precision == "int8":
        asked = asked or Sampling()
        if asked.method not in (None, *engine.calibrators):
            known = ", ".join(engine.calibrators)
            raise UsageError(f"int8 ranges of {engine.name} are chosen by {known} here, not by {asked.method}")
        return replace(asked, method=asked.method or engine.calibrators[0])
    if asked is not None:
        raise UsageError(f"{precision} needs no calibration: leave it out, or ask for int8")
    return None


def _dataset(name: str | None, data: Path | str | None, *, offline: bool) -> Dataset:
    if name is None:
        raise UsageError("int8 ranges are chosen by images of the model's data set, and the model names none")
    try:
        return dataset_called(name).load(data, offline=offline)
    except DataNotFound as error:
        raise DataNotFound(f"int8 ranges are chosen by training images: {error}") from None


def _metadata(model: Classifier, known: Known, source: Source, precision: Precision) -> dict[str, str]:
    """The manifest's key fields, for those who meet the ONNX file alone."""
    threat = known.threat
    return {
        "name": known.title,
        "spec": json.dumps(model.spec.to_dict(), sort_keys=True),
        "tensors_sha256": source.tensors_sha256,
        "precision": precision,
        "input": "float32 NCHW RGB in [0, 1], normalisation inside",
        "output": "logits",
        "labels": json.dumps(known.labels(model.spec)),
        **({"dataset": known.dataset} if known.dataset else {}),
        "threat_model": f"{threat.norm}, eps {threat.eps:.6g} of [0, 1]",
        "macs": str(cost(model.spec).macs),
    }


def _io(model: Classifier) -> IO:
    size = model.spec.image_size
    return IO(
        input=Port(name="images", shape=("batch", 3, size, size), range=(0.0, 1.0), layout="NCHW, RGB"),
        output=Port(name="logits", shape=("batch", model.spec.classes), layout="NK"),
    )


def _write_probe(folder: Path, model: Classifier, split: Split | None, threat: ThreatModel) -> None:
    """A few images, their PGD-20 neighbours, and what the float model answers: a check for any other runtime.

    Random images where there is no data; what the model says of them then stands in for their labels.
    """
    x = to_float((split or random_images(model.spec, PROBES, seed=0)).images[:PROBES])
    twin = Twin(prepare(model), shape=(x.shape[1], x.shape[2], x.shape[3]))
    y = torch.from_numpy(split.labels[:PROBES].astype(np.int64)) if split else twin(x).argmax(1)
    x_adv = perturb(PROTOCOLS["pgd20"].under(threat), twin.model, x, y, early_stop=False)
    folder.mkdir()
    for kind, images in (("clean", x), ("adversarial", x_adv)):
        arrays: dict[str, Any] = {"images": images.numpy(), "logits": twin(images).numpy(), "labels": y.numpy()}
        np.savez(folder / f"{kind}.npz", **arrays)
