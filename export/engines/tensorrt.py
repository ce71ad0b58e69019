"""TensorRT 10 and 11 on an NVIDIA GPU: a plan, built from the ONNX graph, for the GPU and version that it is built on.

Neither the builder nor the runtime has been run on a GPU by the authors yet: names and signatures were checked against
the Python bindings of 10.13, 10.16 and 11.4, the sequence of calls with a stand-in for them. Owners of a GPU can find
out with ``python -m zoo.export.engines.tensorrt_report``.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from zoo.export.bundle.folder import MANIFEST, read_bundle
from zoo.export.bundle.manifest import Manifest, read_manifest
from zoo.export.engines.interface import Built, Order, checked
from zoo.export.engines.tensorrt_builder import DEFAULTS, Options, build_plan, profile_of
from zoo.export.engines.tensorrt_device import device, here, log_of, misfits, opened, package, reason, told
from zoo.export.onnx.gradients import own_gradients
from zoo.export.onnx.graph import GRAPH
from zoo.models import Classifier
from zoo.system.errors import IntegrityError, UsageError, WrongDevice, ZooError

ARTIFACT, FORMAT = "model.plan", "tensorrt-plan"
LOADING = ("host_code",)
# How TensorRT's own errors about foreign plans read.
FOREIGN = ("incompatible device", "not compatible with this", "incompatible serialization", "old deserialization call")


def build(order: Order, folder: Path, *, options: Options = DEFAULTS) -> Built:
    """Build a plan for the GPU in use; larger batches than the largest of ``order`` are split when it runs.

    Raises:
        MissingDependency: TensorRT cannot be used here.
        ExportFailed: TensorRT refused the graph.
    """
    facts = here(package())
    (folder / ARTIFACT).write_bytes(build_plan(order.graph.read_bytes(), batches=order.batches, options=options))
    return Built(
        file=ARTIFACT,
        format=FORMAT,
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
    if artifact.format != FORMAT:
        raise UsageError(f"'{folder}' holds no TensorRT plan but {artifact.format}: export with '--format tensorrt'")
    options = Options(**{name: artifact.options[name] for name in asdict(DEFAULTS) if name not in LOADING})
    return build_plan((Path(folder) / GRAPH).read_bytes(), batches=artifact.batches, options=options)


def load(path: Path | str, *, threads: int | None = None, host_code: bool = False) -> TensorRt:
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
    if threads is not None and threads < 1:
        raise UsageError(f"an engine runs on 1 thread or more, not on {threads}")
    trt, path = package(), Path(path)
    manifest, facts = _manifest_of(path), here(trt)
    if manifest is not None:
        off = misfits(manifest.artifact.built_for, facts)
        if off:
            built_for = told(manifest.artifact.built_for, off)
            raise WrongDevice(f"'{path}' is for {built_for}, and here is {told(facts, off)}: {_remedy(path, manifest)}")
        if manifest.artifact.options.get("version_compatible") and not host_code:
            raise UsageError(
                f"'{path}' carries code for the CPU: if you trust it, load it with host_code=True ('-O host_code=true')"
            )
    try:
        plan = path.read_bytes()
    except OSError as error:
        raise IntegrityError(f"TensorRT cannot load '{path}': {error.strerror}") from None
    log = log_of(trt)
    runtime = opened(trt.Runtime, log)
    runtime.engine_host_code_allowed = host_code
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None and any(phrase in error for error in log.errors for phrase in FOREIGN):
        raise WrongDevice(f"'{path}' is not for {told(facts, facts)} ({reason(log)}): {_remedy(path, manifest)}")
    if engine is None:
        raise IntegrityError(f"TensorRT cannot load '{path}': {reason(log)}")
    return TensorRt(trt, runtime, engine, path)


def _manifest_of(plan: Path) -> Manifest | None:
    """The manifest beside a plan, if it is about it; there is none yet while a bundle is being written."""
    file = plan.with_name(MANIFEST)
    manifest = read_manifest(file) if file.exists() else None
    return manifest if manifest is not None and manifest.artifact.file == plan.name else None


def _remedy(plan: Path, manifest: Manifest | None) -> str:
    if manifest is None:
        return "export the model on this machine"
    name, precision = shlex.quote(manifest.source.name), manifest.artifact.precision
    return (
        f"run 'zoo export {name} --format tensorrt --precision {precision}' on this machine, or build another plan "
        f"from the {GRAPH} beside it with zoo.export.engines.tensorrt.rebuild('{plan.parent}')"
    )


class TensorRt:
    """A deserialised plan behind the engines' interface, on the GPU that was in use when it was loaded."""

    def __init__(self, trt: Any, runtime: Any, engine: Any, path: Path) -> None:
        names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        inputs = [name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
        shapes = {name: tuple(engine.get_tensor_shape(name)) for name in names}
        typed = all(engine.get_tensor_dtype(name) == trt.float32 for name in names)
        if len(names) != 2 or len(inputs) != 1 or len(shapes[inputs[0]]) != 4 or not typed:
            raise IntegrityError(f"'{path}' is not a classifier with one float32 image batch in and logits out")
        (self.input,), (self.output,) = inputs, set(names) - set(inputs)
        _, channels, height, width = shapes[self.input]
        self.shape, self.classes = (channels, height, width), shapes[self.output][-1]
        self.largest, *_ = engine.get_tensor_profile_shape(self.input, 0)[2]  # of (min, opt, max)
        self.trt, self.runtime, self.engine, self.path = trt, runtime, engine, path
        self.device = device()
        self.stream = torch.cuda.Stream(self.device)  # on the default one TensorRT would synchronise the whole device
        self.context = engine.create_execution_context()
        if self.context is None:
            raise ZooError(f"TensorRT could not prepare '{path}' to run: {reason(log_of(trt))}")

    def __call__(self, images: Tensor | np.ndarray) -> Tensor:
        """Images [N, C, H, W] to logits [N, classes], always in new memory.

        Raises:
            UsageError: not a batch of float32 images in [0, 1].
        """
        logits = []
        with torch.cuda.device(self.device), torch.cuda.stream(self.stream):
            for part in checked(images, self.shape).split(self.largest):
                there = torch.empty((len(part), self.classes), device=self.device)
                self.enqueue(part.to(self.device), there)
                logits.append(there.cpu())  # which waits for the stream
        return torch.cat(logits)

    def enqueue(self, images: Tensor, logits: Tensor) -> None:
        """Have a batch that is on the GPU computed into ``logits``, on ``stream``; both contiguous and float32."""
        log = log_of(self.trt)
        log.errors.clear()
        ready = (
            self.context.set_input_shape(self.input, tuple(images.shape))
            and self.context.set_tensor_address(self.input, images.data_ptr())
            and self.context.set_tensor_address(self.output, logits.data_ptr())
        )
        if not ready or not self.context.execute_async_v3(self.stream.cuda_stream):
            raise ZooError(f"TensorRT could not run '{self.path}' on a batch of {len(images)}: {reason(log)}")

    def differentiable(self, model: Classifier) -> nn.Module | None:
        return own_gradients(self.path.with_name(GRAPH), model)

    def describe(self) -> dict[str, Any]:
        facts = here(self.trt)
        return {
            "engine": "tensorrt",
            "version": facts["tensorrt"],
            "device": "cuda",
            "name": facts["gpu"],
            "compute_capability": facts["compute_capability"],
            "cuda": torch.version.cuda,
        }
