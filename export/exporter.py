"""From a model's name to a signed-off bundle: build, climb the ladder, write whole or not at all."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from zoo.attacks.pulse import Meter, listening
from zoo.datasets import dataset_called
from zoo.datasets.base import Dataset, Split, check_fits
from zoo.evaluation.corruptions import require as require_corruptions
from zoo.evaluation.protocols import DATASET, PROTOCOLS
from zoo.export.bundle.folder import Bundle, artifact_sha256, check_free, staged
from zoo.export.bundle.keys import signing_key
from zoo.export.bundle.manifest import (
    Artifact,
    Calibration,
    Compute,
    Int8,
    Level,
    Manifest,
    Notify,
    io_of,
    level_called,
    now,
)
from zoo.export.bundle.provenance import sign_bundle
from zoo.export.bundle.sbom import SBOM, sbom
from zoo.export.bundle.source import Known, public, record_of, source_of
from zoo.export.engines import choice
from zoo.export.engines.interface import Order
from zoo.export.engines.options import check_here, loading, options_of, patient
from zoo.export.ladder.climb import TARGETED, Progress, Trial, climb, silent
from zoo.export.ladder.examples import Examples
from zoo.export.ladder.gate import sign_off
from zoo.export.ladder.report import findings, never_run, unverified, write_reports
from zoo.export.ladder.terms import check_needed
from zoo.export.mixed import search
from zoo.export.onnx.calibration import calibration_images
from zoo.export.onnx.fp16 import to_fp16
from zoo.export.onnx.graph import GRAPH, save_onnx
from zoo.export.onnx.int8 import to_int8
from zoo.export.onnx.metadata import metadata
from zoo.export.onnx.uint8 import UINT8, save_with_uint8_input
from zoo.export.options import ExportOptions
from zoo.export.probe import write_probe
from zoo.export.verify import choose_level
from zoo.models import Classifier
from zoo.specs import Spec, cost
from zoo.system.arguments import typed
from zoo.system.errors import DataNotFound, UsageError, WrongDevice, nearest
from zoo.system.files import sha256_file
from zoo.system.toolchain import toolchain
from zoo.weights.load import Found

SEARCHED_ON = 1000  # held-out images


@dataclass(frozen=True)
class Job:
    """An export that nothing known stands against: :meth:`run` alone loads the model.

    Attributes:
        level: how high to climb, and ``split``, the test images for it.
        calibrating: the data set that int8 ranges are chosen by, and layers to keep in float.
    """

    found: Found
    known: Known
    options: ExportOptions
    level: Level
    split: Split | None
    calibrating: Dataset | None

    def run(self, progress: Progress = silent, examples: Examples | None = None) -> Bundle:
        """Build, climb and write; errors are those of :func:`export_model`.

        Args:
            examples: of the same model, where it is exported to other engines too.
        """
        model = self.found.load()
        sampling, calibrated, held_out = self.options.sampling, None, None
        if sampling and self.calibrating:
            progress("calibration", 0, sampling.n)
            with listening(Meter(partial(progress, "calibration"), 0, sampling.n).part(sampling.n)):
                calibrated = calibration_images(model, self.calibrating, sampling, self.known.threat)
            progress("calibration", sampling.n, sampling.n)
            held_out = self.calibrating.split("validation") if self.options.keep_robust is not None else None
        options = replace(self.options, verify=self.level)
        images: dict[str, Any] = {"split": self.split, "calibrated": calibrated, "held_out": held_out}
        return write_bundle(model, self.known, options, **images, progress=progress, examples=examples)


def job_of(name: str, options: ExportOptions, *, notify: Notify = warnings.warn) -> Job:
    """The export of the model called ``name``, checked as far as it can be without loading it.

    Args:
        notify: takes one sentence if robustness cannot be verified.

    Raises:
        MissingDependency: the engine is not installed.
        UsageError: the bundle exists, the data set is not one for the model, or a term is for a higher level.
        UnknownModel, Unreachable, DataNotFound, IntegrityError: the model or the data cannot be had.
        WrongDevice: the level runs the engine, and this machine cannot.
    """
    check_needed(level_called(options.verify), vars(options))
    options.engine.require(build=True)
    options.engine.load_module().runtime()
    check_here(options.engine, options.engine_options)
    obstacle, asked = options.obstacle, options.terms.level(level_called(options.verify))
    if obstacle and asked in ("clean", "attacked"):
        raise WrongDevice(
            f"level '{asked}' runs the engine, and {options.engine.title} engines cannot run here ({obstacle}): "
            "leave --verify and --corruptions out to build it here, and verify it on its device"
        )
    found, known = source_of(name, offline=options.offline)
    check_free(options.folder(known.title), force=options.force)
    calibrating = _calibrating(known.dataset, found.spec, options) if options.sampling else None
    if options.terms.corruptions:
        require_corruptions(found.spec.image_size)
    level, split = choose_level(
        asked, known.dataset, found.spec, options.data, offline=options.offline, classes=known.labels
    )
    if obstacle and level != "none":
        level = "parity"
        notify(never_run(options.engine))
    elif asked is None and level != "attacked":
        notify(unverified(known.dataset))
    return Job(found, known, options, level, split, calibrating)


def export_model(
    name: str,
    *,
    out: Path | str,
    progress: Progress = silent,
    notify: Notify = warnings.warn,
    **given: Any,
) -> Bundle:
    """Export the model called ``name`` into a bundle ``<out>/<name>--<engine>-<precision>``, signed off by the ladder.

    Whatever can be refused is refused before the model is loaded.

    Args:
        name: all that :func:`zoo.load` takes.
        out: the folder that gets the bundle.
        progress: called with a stage, what is done of it, and how much there is.
        notify: takes one sentence if robustness cannot be verified.
        given: see :class:`zoo.export.options.ExportOptions`.

    Returns:
        The bundle: its folder, manifest and report.

    Raises:
        UsageError: an option is not as it must be, or the bundle exists.
        UnknownModel, Unreachable, DataNotFound, IntegrityError: the model or the data cannot be had.
        MissingDependency: the engine is not in this release, or not installed.
        ExportFailed: the model could not be converted, or the bundle not written.
        WrongDevice: the level runs the engine, and this machine cannot.
        ParityGateFailed, RobustnessGateFailed: the engine is not shown to be as good as the model.
    """
    typed(progress=(progress, Callable), notify=(notify, Callable))
    known = [option.name for option in fields(ExportOptions)]
    for unknown in given.keys() - known:
        raise TypeError(f"export_model() has no option called '{unknown}'{nearest(unknown, known)}")
    options = ExportOptions(out=out, **given)
    if which := choice(options.format):
        notify(which)
    return job_of(name, options, notify=notify).run(progress)


def write_bundle(
    model: Classifier,
    known: Known,
    options: ExportOptions,
    *,
    split: Split | None = None,
    calibrated: tuple[Tensor, Calibration] | None = None,
    held_out: Split | None = None,
    progress: Progress = silent,
    examples: Examples | None = None,
) -> Bundle:
    """What :func:`export_model` does once it has the model and the images; ``held_out`` are those that layers are kept
    in float by."""
    engine, precision, own = options.engine, options.precision, options_of(options.engine, options.engine_options)
    if precision == "int8" and calibrated is None:
        raise UsageError("an int8 engine needs calibration images: see zoo.export.onnx.calibration")
    if options.keep_robust is not None and held_out is None:
        raise UsageError("layers are kept in float by held-out images, and there are none")
    images, calibration = calibrated or (None, None)
    int8: Int8 | None = None
    obstacle = options.obstacle
    level = level_called(options.verify) or ("attacked" if split and not obstacle else "parity")
    model, final = model.eval(), options.folder(known.title)
    with staged(final, force=options.force, keep_failed=options.keep_failed) as scratch:
        progress("build", 0, 1)
        graph, lowered = scratch / GRAPH, engine.lowered(precision)
        about: dict[str, Any] = {"name": known.title, "spec": model.spec, "source": record_of(model, known, scratch)}
        about |= {"io": io_of(model.spec), "labels": known.labels, "dataset": known.dataset, "measured": known.measured}
        opset = save_onnx(model, graph, metadata=metadata(**about, precision=lowered, threat=known.threat))
        if lowered == "fp16":
            to_fp16(graph)
        elif lowered == "int8" and calibration and images is not None:
            how = {"symmetric": engine.symmetric or getattr(own, "symmetric", False), "inputs_only": engine.inputs_only}
            how |= {"method": calibration.method, "portable": options.portable_int8}
            int8 = _quantised(model, graph, partial(to_int8, images=images, **how), known, options, held_out, progress)
        built = engine.load_module().build(
            Order(model=model, graph=graph, precision=precision, batches=options.sizes, calibration=images),
            scratch,
            **({} if own is None else {"options": own}),
        )
        if options.uint8:
            save_with_uint8_input(graph, scratch / UINT8)
        parts = (built.file, *built.companions)
        sums = {part: sha256_file(scratch / part) for part in parts}
        artifact = Artifact(
            file=built.file,
            format=engine.file_format,
            precision=precision,
            opset=opset,
            batches=options.sizes,
            tf32=bool(built.options.get("tf32")),
            size=sum((scratch / part).stat().st_size for part in parts),
            sha256=artifact_sha256(sums, parts),
            companions=built.companions,
            built_for=built.built_for,
            options=built.options,
        )
        progress("build", 1, 1)
        load_options = patient(engine, loading(engine, asdict(own) if own else {}))
        opened = partial(engine.load_module().load, scratch / artifact.file, **load_options)
        if obstacle:
            opened = partial(engine.load_module().in_place, graph, obstacle)
        with opened() as loaded:
            trial = Trial(
                artifact_sha256=artifact.sha256,
                files=len(parts),
                level=level,
                split=split,
                batches=options.sizes,
                terms=options.terms,
                dataset=known.dataset,
                threat=known.threat,
                ran=not obstacle,
                reopen=opened,
                examples=examples,
            )
            report = climb(model, loaded, trial, progress)
        manifest = Manifest(
            **about,
            cost=Compute(**cost(model.spec)._asdict()),
            threat_model=known.threat,
            reported=known.reported,
            artifact=artifact,
            calibration=calibration,
            int8=int8,
            toolchain=toolchain(*engine.tools),
            engine=engine.name,
            device=report.engine["device"],
            command=options.command
            or f"zoo export {public(known.name)} --format {engine.name} --precision {precision} --verify {level}",
            created=now(),
            **findings(report, known.dataset, model.spec.classes),
        )
        write_probe(scratch, model, split, known.threat)
        (scratch / SBOM).write_text(sbom(manifest, sums), encoding="utf-8", newline="\n")
        write_reports(scratch, manifest, report, sums=sums)
        sign_off(report, also=_also(options))
        if options.sign is not None:
            sign_bundle(scratch, signing_key(options.sign), name=final.name)
    return Bundle(final, manifest, report)


def _quantised(
    model: Classifier,
    graph: Path,
    quantise: Callable[..., None],
    known: Known,
    options: ExportOptions,
    held_out: Split | None,
    progress: Progress,
) -> Int8 | None:
    """Rewrite the graph in int8, as the options want it; returns how it departs from the usual, None if it does not."""
    if options.keep_robust is None or held_out is None:
        quantise(graph)
        return Int8(portable=True) if options.portable_int8 else None
    terms = {"split": "validation", "n": min(len(held_out), SEARCHED_ON), "seed": options.terms.seed}
    walk = PROTOCOLS[TARGETED].on(known.dataset or DATASET).under(known.threat).model_copy(update=terms)
    how: dict[str, Any] = {"allowed": options.keep_robust, "inputs_only": options.engine.inputs_only}
    found = search(model, graph, quantise, held_out, walk, **how, progress=progress)
    return Int8(portable=options.portable_int8, search=found)


def _also(options: ExportOptions) -> str:
    """What else than other terms may sign an int8 engine off, as a clause; "" where nothing may."""
    if options.precision != "int8" or not options.engine.from_onnx or options.keep_robust == 0:
        return ""
    if options.keep_robust is None:
        return "keep layers in float (--keep-robust 0.5)"
    return f"keep more layers in float (a lower --keep-robust than {100 * options.keep_robust:g})"


def _calibrating(name: str | None, spec: Spec, options: ExportOptions) -> Dataset:
    if name is None:
        raise UsageError("int8 ranges are chosen by images of the model's data set, and the model names none")
    try:
        dataset = dataset_called(name).load(options.data, offline=options.offline)
    except DataNotFound as error:
        raise DataNotFound(f"int8 ranges are chosen by training images: {error}") from None
    check_fits(dataset, spec)
    return dataset
