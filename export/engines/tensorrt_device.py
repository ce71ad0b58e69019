"""What TensorRT and TensorRT for RTX have in common on a GPU: whether one is there, and how a plan is loaded.

Where CUDA does not work, TensorRT's objects are empty shells, and using or freeing one kills the process (seen with the
runtimes of 10.16 and 11.4). So nothing of it is called before PyTorch has found a GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from zoo.export.bundle.folder import MANIFEST
from zoo.export.bundle.manifest import Manifest, read_manifest
from zoo.export.engines import Backend, backend
from zoo.export.engines.built_for import misfits, phrase
from zoo.export.engines.interface import Engine
from zoo.export.gradients.onnx import own_gradients
from zoo.export.onnx.graph import GRAPH
from zoo.export.runtimes import tensorrt_rtx as plans
from zoo.export.runtimes.tensorrt_rtx import here, log_of, started
from zoo.system.errors import IntegrityError, MissingDependency, UsageError, WrongDevice, ZooError

MAJORS = (10, 11)


def no_gpu() -> str | None:
    """That there is no NVIDIA GPU to use here, as a clause; None where there is one."""
    if torch.cuda.is_available():
        return None
    found = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
    return f"it needs an NVIDIA GPU, and PyTorch, {found}, finds none"


def runtime() -> Any:
    """The module ``tensorrt``, where it can be used.

    Raises:
        MissingDependency: it is not installed, of another version, or there is no GPU.
    """
    engine = backend("tensorrt")
    tensorrt = engine.imported("tensorrt")
    if int(tensorrt.__version__.partition(".")[0]) not in MAJORS:
        wanted = " or ".join(map(str, MAJORS))
        raise engine.missing(f"{tensorrt.__version__} is installed, and {wanted} is needed")
    if why := no_gpu():
        raise MissingDependency(
            f"TensorRT cannot be used here: {why}: go to a machine with one, or export with '--format onnx'"
        )
    return tensorrt


def opened(kind: Callable[[Any], Any], trt: Any) -> Any:
    """A builder or a runtime.

    Raises:
        MissingDependency: TensorRT does not work with the driver.
    """
    try:
        return started(kind, log_of(trt))
    except plans.Unusable as error:
        raise _unusable("TensorRT", error) from None


def load_plan(
    engine: Backend, trt: Any, path: Path, remedy: Callable[[Manifest | None], str], **options: Any
) -> Engine:
    """An engine that runs the plan at ``path``, if what the manifest beside it says of where it runs is met here.

    Args:
        remedy: what to do about a plan for another place, as a clause, from the manifest if there is one.
        options: of :func:`zoo.export.runtimes.tensorrt_rtx.open`.

    Raises:
        MissingDependency: TensorRT does not work with the driver.
        WrongDevice: the plan is for another GPU, version or platform.
        IntegrityError: the file is not a classifier that TensorRT can load.
        UsageError: a version-compatible plan without ``host_code``.
    """
    manifest, facts = _manifest_of(path), here(trt)
    if manifest is not None and (off := misfits(manifest.artifact.built_for, facts)):
        built_for = phrase(manifest.artifact.built_for, off)
        raise WrongDevice(f"'{path}' is for {built_for}, and here is {phrase(facts, off)}: {remedy(manifest)}")
    if manifest is not None and manifest.artifact.options.get("version_compatible") and not options.get("host_code"):
        raise UsageError(
            f"'{path}' carries code for the CPU: if you trust it, load it with host_code=True ('-O host_code=true')"
        )
    try:
        run, shape, own = plans.open([path], None, package=engine.package, **options)
    except OSError as error:
        raise IntegrityError(f"{engine.title} cannot load '{path}': {error.strerror}") from None
    except plans.Unusable as error:
        raise _unusable(engine.title, error) from None
    except plans.Foreign as error:
        raise WrongDevice(f"'{path}' is not for {phrase(facts, facts)} ({error}): {remedy(manifest)}") from None
    except plans.Failed as error:
        raise ZooError(f"{engine.title} cannot use '{path}': {error}") from None
    except ValueError as error:
        raise IntegrityError(f"{engine.title} cannot load '{path}': {error}") from None

    def checked(images: Any) -> Any:
        try:
            return run(images)
        except plans.Failed as error:
            raise ZooError(f"{engine.title} cannot use '{path}': {error}") from None

    own = {"engine": engine.name, "version": trt.__version__, **own}
    return Engine(checked, shape, own, partial(own_gradients, path.with_name(GRAPH)))


def _manifest_of(plan: Path) -> Manifest | None:
    """The manifest beside a plan, if it describes this plan; while a bundle is written there is none yet."""
    file = plan.with_name(MANIFEST)
    manifest = read_manifest(file) if file.exists() else None
    return manifest if manifest is not None and manifest.artifact.file == plan.name else None


def _unusable(title: str, error: Exception) -> MissingDependency:
    return MissingDependency(
        f"{title} cannot be used here: {error}: update the driver, or install a {title} for this one's version of CUDA"
    )
