"""Verify a bundle: check its bytes, rebuild its float twin, and climb the ladder with the stored artifact."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any

from zoo.datasets import DATASETS
from zoo.datasets.base import Split, check_fits
from zoo.evaluation.corruptions import KINDS
from zoo.evaluation.corruptions import require as require_corruptions
from zoo.export.bundle.claims import check_claims
from zoo.export.bundle.conditions import other_arithmetic
from zoo.export.bundle.folder import SIGNATURE, SUMS, check_unsigned, files, read_bundle, rewritten
from zoo.export.bundle.keys import SigningKey, signing_key
from zoo.export.bundle.manifest import Level, Manifest, Notify, Report, level_called
from zoo.export.bundle.provenance import remove_signature, sign_bundle
from zoo.export.bundle.source import is_twin, load_twin
from zoo.export.engines import backend
from zoo.export.engines.interface import Engine
from zoo.export.engines.options import TRUSTED, check_here, patient, reloading
from zoo.export.ladder.climb import Progress, Trial, climb, silent
from zoo.export.ladder.gate import CORRUPTIONS
from zoo.export.ladder.report import findings, write_reports
from zoo.export.ladder.terms import Terms, check_needed
from zoo.export.onnx.graph import GRAPH
from zoo.export.onnx.metadata import check_metadata
from zoo.export.probe import check_probe
from zoo.export.remote.engine import connect, runner_of
from zoo.models import Classifier
from zoo.specs import Spec
from zoo.system.arguments import typed
from zoo.system.errors import DataNotFound, IntegrityError, UsageError, WrongDevice


def choose_level(
    asked: Level | None,
    dataset: str | None,
    spec: Spec,
    data: Path | str | None,
    *,
    offline: bool,
    classes: Sequence[str] = (),
) -> tuple[Level, Split | None]:
    """How high to climb, and the test images for it: as asked, else as high as the data at hand allow.

    ``dataset`` is the name of the data set that the model of ``spec`` is for, None where it names none, and ``classes``
    are the names of the model's classes, where it has some. What is not at hand is fetched only for a level that was
    asked for and cannot do without.

    Raises:
        DataNotFound: the level needs images, or a place for them was named, and they are not there.
        UsageError: there is no such data set, the level needs images and the model names no data set, or the
            images are not those that the model takes.
    """
    if asked == "none":
        return "none", None
    needed = asked in ("clean", "attacked")
    named = DATASETS.get(dataset or "")
    if named is None:
        if needed:
            raise UsageError(
                f"level '{asked}' takes images of the model's data set, and it names none that is known: use 'parity'"
            )
        return "parity", None
    try:
        loaded = named.load(data, offline=offline or not needed)
    except DataNotFound:
        if needed or named.named_folder(data):
            raise
        return "parity", None
    check_fits(loaded, spec, classes)
    return asked or "attacked", loaded.split("test")


def verify_bundle(
    folder: Path | str,
    *,
    level: Level | None = None,
    data: Path | str | None = None,
    offline: bool = False,
    device: str | None = None,
    engine_options: Mapping[str, Any] | None = None,
    write: bool = False,
    sign: SigningKey | Path | str | None = None,
    trust: Sequence[Path | str] | Path | str | None = None,
    model: Classifier | None = None,
    split: Split | None = None,
    progress: Progress = silent,
    notify: Notify = warnings.warn,
    **terms: Any,
) -> Report:
    """Check a bundle and attack its engine again, as when it was exported.

    Args:
        level: ``none``, ``parity``, ``clean`` or ``attacked``; by default the highest that the data at hand allow.
        data: where the model's data set is, see :mod:`zoo.datasets`.
        device: where the artifact runs, see :func:`zoo.export.remote.engine.connect`; gradients are computed here.
        engine_options: to load the engine with; others than those of its export, see :mod:`zoo.export.engines.options`.
        write: replace the bundle's reports, whether the rungs hold or not; the bundle stays whole at any moment.
        sign: with ``write``, sign the bundle with the private key in this file. A signed bundle can only be written so,
            and loses its signature if a rung does not hold.
        trust: files with public keys; the bundle must be signed by one of them.
        model: the float twin, if it is not to be rebuilt from the source that the manifest names.
        split: labelled images in place of the data set's test split.
        notify: takes one sentence each about terms that are laxer than usual, int8 that is computed otherwise than
            where the bundle was checked before, and a signature that was not checked or was removed.
        terms: margin, min_robust, tolerance, n, seed, queries, corruptions, see
            :class:`zoo.export.ladder.terms.Terms`; margin, min_robust, tolerance and corruptions are by default those
            that the bundle was signed off with.

    Returns:
        The report; :func:`sign_off` raises if a gate in it does not hold.

    Raises:
        IntegrityError: a file of the bundle is altered, the bundle contradicts what is known from elsewhere
            (:mod:`zoo.export.bundle.claims`), the source is not what it was made from, or the signature is missing,
            wrong, or not by a trusted key.
        DataNotFound: the level needs images that are not there.
        Unreachable: the source's weights are not here, and cannot be fetched.
        UsageError: ``folder`` is not a bundle, an option is out of range, a key is not one, or a signed bundle is to be
            written without signing it.
        MissingDependency, WrongDevice: the engine cannot run here, or not on ``device``.
    """
    typed(folder=(folder, str | PathLike), level=(level, str | None), data=(data, str | PathLike | None))
    typed(device=(device, str | None), engine_options=(engine_options, Mapping | None))
    typed(sign=(sign, SigningKey | str | PathLike | None))
    typed(model=(model, Classifier | None), split=(split, Split | None))
    typed(progress=(progress, Callable), notify=(notify, Callable))
    folder = Path(folder)
    level = level_called(level)
    check_needed(level, terms)
    level = Terms.of("fp32", **terms).level(level)  # refused before anything is read
    key = None if sign is None else signing_key(sign)
    if key and not write:
        raise UsageError("--sign signs the reports that --write (write=True) puts into the bundle: add it")
    if key and level == "none":
        raise UsageError("at level 'none' nothing is verified that could be signed: verify 'parity' or more")
    if write and not set(engine_options or ()) <= set(TRUSTED):
        raise UsageError(
            "--write (write=True) stores what was found with the engine's own options: leave -O out, or export it again"
        )
    manifest = read_bundle(folder, trust=trust)
    sums = (folder / SUMS).read_bytes() if write else b""
    if write and key is None:
        check_unsigned(folder)
    if (folder / SIGNATURE).exists() and trust is None:
        notify(f"'{folder}' holds a signature, which was not checked: name a public key with --trust (trust=)")
    kind = backend(manifest.engine)
    opened: Callable[[], Engine]
    if device:
        runner_of(manifest.artifact.format)
    else:
        kind.require()
    load_options = reloading(kind, manifest.artifact.options, engine_options or {})
    if device:
        opened = partial(connect, device, folder, options=load_options)
    else:
        check_here(kind, load_options)
        opened = partial(kind.load_module().load, folder / manifest.artifact.file, **patient(kind, load_options))
    check_claims(folder, manifest)
    check_metadata(folder, manifest, kind.lowered(manifest.artifact.precision))
    given = {key: value for key, value in terms.items() if value is not None}
    agreed = Terms.of(manifest.artifact.precision, **_recorded(folder, manifest) | given)
    usual, classes = Terms.of(manifest.artifact.precision), manifest.spec.classes
    lax = agreed.margin > usual.margin or agreed.tolerance > usual.tolerance
    if lax or agreed.floor(classes) < usual.floor(classes):
        notify(f"the terms are laxer than usual: {agreed.in_words()}; the usual ones are {usual.in_words()}")
    obstacle = None if device else kind.obstacle(manifest.artifact.built_for)
    if obstacle:
        opened = partial(kind.load_module().in_place, folder / GRAPH, obstacle)
    if obstacle and level != "none":
        never = "" if manifest.ran else "was never run, and "
        raise WrongDevice(
            f"the engine in '{folder}' {never}cannot run here ({obstacle}): its files are intact, verify it on its "
            "device, with --device ssh://USER@HOST or there"
        )
    if split is None:
        level, split = choose_level(
            level, manifest.dataset, manifest.spec, data, offline=offline, classes=manifest.labels
        )
    if agreed.corruptions and level in (None, "clean", "attacked"):
        require_corruptions(manifest.spec.image_size)
    if model is None:
        model = load_twin(folder, manifest, offline=offline)
    if not is_twin(model, manifest):
        raise IntegrityError(
            f"the source '{manifest.source.name}' is not the model that '{folder}' was made from: "
            "its weights differ, export it again"
        )
    check_probe(folder, model.eval())
    trial = Trial(
        artifact_sha256=manifest.artifact.sha256,
        files=len(files(folder)),
        level=level or "attacked",
        split=split,
        batches=manifest.artifact.batches,
        terms=agreed,
        dataset=manifest.dataset,
        threat=manifest.threat_model,
        ran=not obstacle,
        reopen=opened,
    )
    with opened() as engine:
        report = climb(model, engine, trial, progress)
    if sentence := other_arithmetic(manifest, report):
        notify(sentence)
    if write:
        with rewritten(folder, resigned=key is not None) as scratch:
            read_bundle(scratch)
            if (scratch / SUMS).read_bytes() != sums:
                raise IntegrityError(f"'{folder}' was changed while it was verified: do not use it")
            remove_signature(scratch)
            found = findings(report, manifest.dataset, manifest.spec.classes)
            write_reports(scratch, manifest.model_copy(update=found), report)
            if key and report.failed is None:
                sign_bundle(scratch, key, name=folder.resolve().name)
            elif key:
                notify(f"'{folder}' was not signed, because a rung does not hold")
    return report


def _recorded(folder: Path, manifest: Manifest) -> dict[str, Any]:
    """The terms that the bundle was signed off with."""
    recorded: dict[str, Any] = {key: value for rung in manifest.gates for key, value in rung.threshold.items()}
    kinds = [rung.measured.get("kinds") for rung in manifest.gates if rung.name == CORRUPTIONS]
    named = all(isinstance(one, dict) and set(one) <= set(KINDS) for one in kinds)
    if not named or not set(recorded) <= set(Terms.__dataclass_fields__):
        raise IntegrityError(f"the manifest of '{folder}' has gates with terms that are not known: do not use it")
    return recorded | {"corruptions": [kind for one in kinds for kind in one]}
