"""Who takes part in a bench: the engines of bundles, and peers that run the same float models."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from zoo.export.bench.contestant import PEERS, Contestant
from zoo.export.bundle.folder import as_bundle, read_bundle
from zoo.export.bundle.manifest import Manifest
from zoo.export.bundle.source import is_twin, load_twin
from zoo.export.engines import Backend, backend
from zoo.export.engines.options import reloading
from zoo.export.exporter import Job, job_of
from zoo.export.options import ExportOptions
from zoo.export.remote.engine import runner_of
from zoo.system.errors import UsageError, WrongDevice, ZooError
from zoo.weights.folder import ModelConfig, ModelFolder
from zoo.weights.tensors import save_weights


def entrants(
    subjects: Sequence[Path | str],
    peers: Collection[str],
    folder: Path,
    *,
    engine: str,
    device: str | None,
    offline: bool,
    notify: Callable[[str], None],
    terms: dict[str, Any],
) -> Iterator[Contestant]:
    """The contestants of each model: the engines of its bundles, then the peers.

    Args:
        subjects: bundles' folders, and names of models, which are exported in fp32 to ``engine``.
        device: where the engines will run; None: here.
        folder: for what the contestants load; it must last as long as they do.
        terms: ``threads``, ``cpus`` and ``batches``, of every job.

    Raises:
        UsageError: two subjects are the same engine of the same model.
        MissingDependency: an engine is not installed, or has no runner for other devices.
        ZooError: a bundle cannot be read, or a model not exported.
    """
    given: list[tuple[Path, Manifest] | tuple[str, Job]] = []
    for subject in subjects:  # what cannot be run is refused before any model is loaded
        place = as_bundle(subject)
        manifest = read_bundle(place) if place else None
        kind = backend(manifest.engine if manifest else engine)
        if device:
            runner_of(kind.file_format)
        if place and manifest:
            if not device:
                kind.require()
                _check_runs(kind, str(subject), kind.obstacle(manifest.artifact.built_for))
            given.append((place.resolve(), manifest))
        else:
            order = {"format": engine, "batches": terms["batches"], "verify": "parity", "offline": offline}
            options = ExportOptions(out=folder, **order)
            kind.require(build=True)
            if not device:
                _check_runs(kind, str(subject), options.obstacle)
            given.append((str(subject), job_of(str(subject), options, notify=notify)))
    models: dict[str, list[tuple[Path, Manifest]]] = {}
    for subject, one in given:
        if isinstance(one, Job):
            notify(f"exporting {subject} ...")
            bundle = one.run()
            subject, one = bundle.folder.resolve(), bundle.manifest
        models.setdefault(one.source.tensors_sha256, []).append((Path(subject), one))
    for theirs in models.values():
        yield from _engines(theirs, terms)
        if peers:
            yield from _peers(theirs, peers, folder, offline, terms)


def _check_runs(kind: Backend, subject: str, obstacle: str | None) -> None:
    if obstacle:
        raise WrongDevice(
            f"'{subject}' cannot be timed here, because this machine cannot run {kind.title} engines ({obstacle}): "
            "time it on its device, with --device ssh://USER@HOST or there"
        )


def _engines(bundles: Sequence[tuple[Path, Manifest]], terms: dict[str, Any]) -> Iterator[Contestant]:
    names = [f"{manifest.engine}-{manifest.artifact.precision}" for _, manifest in bundles]
    for name, (bundle, manifest) in zip(names, bundles, strict=True):
        if names.count(name) > 1:
            raise UsageError(f"two subjects are {name} of {manifest.name}: time them one after the other")
        facts = {**_facts(manifest), "engine": name, "artifact_sha256": manifest.artifact.sha256}
        options = reloading(backend(manifest.engine), manifest.artifact.options, {})
        options.pop("threads", None)  # a bench has its own
        file = str(bundle / manifest.artifact.file)
        job = {"kind": "engine", "engine": manifest.engine, "file": file, "options": options}
        yield Contestant(facts, {**job, "image_size": manifest.spec.image_size, **terms})


def _peers(
    bundles: Sequence[tuple[Path, Manifest]], peers: Collection[str], folder: Path, offline: bool, terms: dict[str, Any]
) -> Iterator[Contestant]:
    """On the GPU where an engine of the same model is."""
    bundle, manifest = bundles[0]
    place = folder / manifest.source.tensors_sha256[:12]
    why = _unpack(bundle, manifest, place, offline)
    device = "cuda" if any(one.device.startswith("cuda") for _, one in bundles) else "cpu"
    for peer in (one for one in PEERS if one in peers):
        job = {"kind": peer, "folder": str(place), "device": device, "image_size": manifest.spec.image_size}
        yield Contestant({**_facts(manifest), "engine": f"{peer}-fp32"}, {**job, **terms}, why)


def _facts(manifest: Manifest) -> dict[str, Any]:
    source = manifest.source
    hashes = {"tensors_sha256": source.tensors_sha256, "file_sha256": source.file_sha256}
    return {"model": manifest.name, "source": source.name, **hashes}


def _unpack(bundle: Path, manifest: Manifest, folder: Path, offline: bool) -> str | None:
    """Write a bundle's float model into ``folder``, from where processes can load it; returns why that cannot be."""
    try:
        model = load_twin(bundle, manifest, offline=offline)
    except (ZooError, OSError) as error:
        return f"the float model cannot be had: {error}"
    if not is_twin(model, manifest):
        return f"the source '{manifest.source.name}' is not the model that the bundle was made from"
    ModelFolder(folder).write(ModelConfig(spec=model.spec.to_dict()))
    save_weights(model.state_dict(), ModelFolder(folder).weights)
    return None
