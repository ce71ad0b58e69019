"""From a model's name to a signed-off bundle: build, climb the ladder, write whole or not at all."""

from __future__ import annotations

import json
import shlex
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import zoo.attacks
from zoo.data import Split, to_float
from zoo.errors import UsageError
from zoo.evaluate import prepare
from zoo.export.bundle import read_bundle, sha256, staged
from zoo.export.engines import Backend, backend
from zoo.export.engines.twin import Twin
from zoo.export.gate import sign_off
from zoo.export.ladder import DEFAULTS, Progress, Terms, climb, random_images, silent
from zoo.export.manifest import IO, Artifact, Compute, Level, Manifest, Port, Source, ThreatModel, now
from zoo.export.report import UNVERIFIED, write_reports
from zoo.export.source import Known, digest, labels_of, load_source
from zoo.export.verify import choose_level
from zoo.models import Classifier
from zoo.protocols import PROTOCOLS
from zoo.spec import cost
from zoo.toolchain import toolchain

PRECISIONS = ("fp32",)
PROBES = 8


def export_model(
    name: str,
    *,
    format: str = "onnx",
    precision: str = "fp32",
    batches: Sequence[int] = (1, 8, 64),
    out: Path | str,
    verify: Level | None = None,
    data: Path | str | None = None,
    offline: bool = False,
    keep_failed: bool = False,
    force: bool = False,
    margin: float = Terms.margin,
    tolerance: float = Terms.tolerance,
    n: int = Terms.n,
    seed: int = 0,
    queries: int = 0,
    command: str | None = None,
    progress: Progress = silent,
    notify: Callable[[str], None] = warnings.warn,
) -> Path:
    """Export the model called ``name`` into a bundle ``<out>/<name>--<engine>-<precision>``, signed off by the ladder.

    Args:
        name: all that :func:`zoo.load` takes.
        format: an engine or one of its aliases, see :mod:`zoo.export.engines`.
        batches: batch sizes to be used; parity is checked at these, at 1 and at 2.
        verify: how high to climb: ``none``, ``parity``, ``clean`` or ``robust``; by default the highest that the data
            at hand allow.
        data: where CIFAR-10 is, see :func:`zoo.data.load_cifar10`.
        keep_failed: leave a bundle that failed a gate under ``<bundle>.failed``.
        force: replace a bundle that is there.
        margin, tolerance, n, seed, queries: the terms of the sign-off, see :class:`zoo.export.ladder.Terms`.
        command: recorded in the manifest; made up from the arguments if None.
        notify: is told in one sentence if robustness could not be verified.

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
    terms = Terms(margin=margin, tolerance=tolerance, n=n, seed=seed, queries=queries)
    batches = _checked_options(precision, batches)
    model, known = load_source(name, offline=offline)
    level, split = choose_level(verify, model.spec, data, offline=offline)
    if verify is None and level != "robust":
        notify(UNVERIFIED)
    return write_bundle(
        model,
        known,
        engine=engine,
        out=Path(out),
        batches=batches,
        level=level,
        split=split,
        terms=terms,
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
    batches: Sequence[int] = (1, 8, 64),
    terms: Terms = DEFAULTS,
    command: str = "zoo.export.write_bundle",
    keep_failed: bool = False,
    force: bool = False,
    progress: Progress = silent,
) -> Path:
    """What :func:`export_model` does once it has the model and the images."""
    engine = engine or backend("onnxruntime")
    model = model.eval()
    final = out / f"{known.title}--{engine.name}-fp32"
    with staged(final, force=force, keep_failed=keep_failed) as scratch:
        progress("build", 0, 1)
        source = Source(
            name=known.name,
            weights_sha256=digest(model),
            file_sha256=known.file_sha256,
            repo_id=known.repo_id,
            revision=known.revision,
        )
        built = engine.load_module().build(model, scratch, metadata=_metadata(model, known, source))
        artifact = Artifact(
            **built,
            precision="fp32",
            batches=tuple(batches),
            size=(scratch / built["file"]).stat().st_size,
            sha256=sha256(scratch / built["file"]),
        )
        progress("build", 1, 1)
        runner = engine.load_module().load(scratch / artifact.file)
        report = climb(
            model,
            runner,
            artifact_sha256=artifact.sha256,
            files=1,
            level=level,
            split=split,
            batches=batches,
            terms=terms,
            progress=progress,
        )
        manifest = Manifest(
            name=known.title,
            spec=model.spec,
            source=source,
            cost=Compute(**cost(model.spec)._asdict()),
            io=_io(model),
            labels=labels_of(model.spec),
            reported=known.reported,
            measured=known.measured,
            artifact=artifact,
            toolchain=toolchain(),
            engine=engine.name,
            device=runner.describe()["device"],
            verified=report.reached,
            robustness="",
            gates=(),
            command=command,
            created=now(),
        )
        _write_probe(scratch / "probe", model, split)
        write_reports(scratch, manifest, report)
        read_bundle(scratch)
        sign_off(report)
    return final


def _checked_options(precision: str, batches: Sequence[int]) -> tuple[int, ...]:
    if precision not in PRECISIONS:
        raise UsageError(f"this release exports {', '.join(PRECISIONS)}, not '{precision}'")
    if not batches or not all(isinstance(size, int) and 1 <= size <= 4096 for size in batches):
        raise UsageError(f"batch sizes are whole numbers from 1 to 4096, not {list(batches)}")
    return tuple(sorted(set(batches)))


def _metadata(model: Classifier, known: Known, source: Source) -> dict[str, str]:
    """The manifest's key fields, for those who meet the ONNX file alone."""
    threat = ThreatModel()
    return {
        "name": known.title,
        "spec": json.dumps(model.spec.to_dict(), sort_keys=True),
        "weights_sha256": source.weights_sha256,
        "precision": "fp32",
        "input": "float32 NCHW RGB in [0, 1], normalisation inside",
        "output": "logits",
        "labels": json.dumps(labels_of(model.spec)),
        "threat_model": f"{threat.norm}, eps {threat.eps:.6g} of [0, 1]",
        "macs": str(cost(model.spec).macs),
    }


def _io(model: Classifier) -> IO:
    size = model.spec.image_size
    return IO(
        input=Port(name="images", shape=("batch", 3, size, size), range=(0.0, 1.0), layout="NCHW, RGB"),
        output=Port(name="logits", shape=("batch", model.spec.classes), layout="NK"),
    )


def _write_probe(folder: Path, model: Classifier, split: Split | None) -> None:
    """A few images, their PGD-20 neighbours, and what the float model answers: a check for any other runtime.

    Random images where there is no data; what the model says of them then stands in for their labels.
    """
    x = to_float((split or random_images(model.spec, PROBES, seed=0)).images[:PROBES])
    twin = Twin(prepare(model), shape=(x.shape[1], x.shape[2], x.shape[3]))
    y = torch.from_numpy(split.labels[:PROBES].astype(np.int64)) if split else twin(x).argmax(1)
    x_adv = zoo.attacks.run(PROTOCOLS["pgd20"], twin.model, x, y, early_stop=False)
    folder.mkdir()
    for kind, images in (("clean", x), ("adversarial", x_adv)):
        arrays: dict[str, Any] = {"images": images.numpy(), "logits": twin(images).numpy(), "labels": y.numpy()}
        np.savez(folder / f"{kind}.npz", **arrays)
