"""TensorRT 10 and 11 on an NVIDIA GPU: a plan, built from the ONNX graph, for the GPU and version that it is built on.

docs/nvidia.md says what of this the authors have run.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path

from zoo.export.bundle.folder import read_bundle
from zoo.export.bundle.manifest import Manifest
from zoo.export.engines import backend
from zoo.export.engines.interface import Built, Engine, Order, check_threads
from zoo.export.engines.tensorrt_builder import DEFAULTS, Options, build_plan, profile_of
from zoo.export.engines.tensorrt_device import here, load_plan, runtime
from zoo.export.onnx.graph import GRAPH
from zoo.system.errors import UsageError

BACKEND = backend("tensorrt")
ARTIFACT = "model.plan"
LOADING = ("host_code",)


def build(order: Order, folder: Path, *, options: Options = DEFAULTS) -> Built:
    """Build a plan for the GPU in use; larger batches than the largest of ``order`` are split when it runs.

    Raises:
        MissingDependency: TensorRT cannot be used here.
        ExportFailed: TensorRT refused the graph.
    """
    facts = here(runtime())
    (folder / ARTIFACT).write_bytes(build_plan(order.graph.read_bytes(), batches=order.batches, options=options))
    return Built(
        file=ARTIFACT,
        built_for=bound_to(facts, options),
        options={
            **{name: one for name, one in asdict(options).items() if name not in LOADING},
            "profile": list(profile_of(order.batches)),
            "built_on": facts,
        },
    )


def bound_to(facts: Mapping[str, str], options: Options) -> dict[str, str]:
    """What a plan built with ``options`` where ``facts`` hold needs to run: equal values, or none below a ">="."""
    needs = dict(facts)
    if options.version_compatible:
        needs["tensorrt"] = f">={facts['tensorrt']}"
    if options.hardware != "none":
        del needs["gpu"]
    if options.hardware == "ampere_plus":
        needs["compute_capability"] = ">=8.0"
    return needs


def rebuild(folder: Path | str) -> bytes:
    """A plan for the GPU in use, from the graph in the TensorRT bundle at ``folder``, built as the one in it was.

    It is another artifact: the bundle's reports are about the old one. To have the new one attacked too, export again.

    Raises:
        MissingDependency, ExportFailed: see :func:`build`.
        IntegrityError, UsageError: ``folder`` is damaged, or not a TensorRT bundle.
    """
    artifact = read_bundle(folder).artifact
    if artifact.format != BACKEND.file_format:
        raise UsageError(f"'{folder}' holds no TensorRT plan but {artifact.format}: export with '--format tensorrt'")
    options = Options(**{name: artifact.options[name] for name in asdict(DEFAULTS) if name not in LOADING})
    return build_plan((Path(folder) / GRAPH).read_bytes(), batches=artifact.batches, options=options)


def load(path: Path | str, *, threads: int | None = None, host_code: bool = False) -> Engine:
    """An engine that runs the plan at ``path``, with what the manifest beside it says of where it runs.

    Args:
        threads: nothing here is computed on the CPU, so any number will do.
        host_code: let a version-compatible plan run the code that it carries, on the CPU, with your rights: only for
            plans from those you trust.

    Raises:
        MissingDependency: TensorRT cannot be used here.
        WrongDevice: the plan is for another GPU, version or platform.
        IntegrityError: the file is not a classifier that TensorRT can load.
        UsageError: a version-compatible plan without ``host_code``.
    """
    check_threads(threads)
    path = Path(path)
    return load_plan(BACKEND, runtime(), path, partial(_remedy, path), host_code=host_code)


def _remedy(plan: Path, manifest: Manifest | None) -> str:
    if manifest is None:
        return "export the model on this machine"
    name, precision = shlex.quote(manifest.source.name), manifest.artifact.precision
    again = f"run 'zoo export {name} --format tensorrt --precision {precision}'"
    return (
        f"{again if manifest.source.twin is None else 'export the model'} on this machine, or build another plan "
        f"from the {GRAPH} beside it with zoo.export.engines.tensorrt.rebuild('{plan.parent}')"
    )
