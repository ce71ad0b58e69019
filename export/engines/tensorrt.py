"""TensorRT 10 and 11 on an NVIDIA GPU: a plan, built from the ONNX graph, for the GPU and version that it is built on.

Neither the builder nor the runtime has been run on a GPU by the authors yet: names and signatures were checked against
the Python bindings of 10.13, 10.16 and 11.4, the sequence of calls with a stand-in for them. docs/engines.md says how
owners of a GPU can find out.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from zoo.export.bundle.folder import MANIFEST, read_bundle
from zoo.export.bundle.manifest import Manifest, read_manifest
from zoo.export.engines import backend
from zoo.export.engines.interface import Built, Engine, Order, check_threads
from zoo.export.engines.tensorrt_builder import DEFAULTS, Options, build_plan, profile_of
from zoo.export.engines.tensorrt_device import device, here, log_of, misfits, opened, phrase, reason, runtime
from zoo.export.onnx.gradients import own_gradients
from zoo.export.onnx.graph import GRAPH
from zoo.system.errors import IntegrityError, UsageError, WrongDevice, ZooError

BACKEND = backend("tensorrt")
ARTIFACT = "model.plan"
LOADING = ("host_code",)
# How TensorRT's own errors about foreign plans read.
FOREIGN = ("incompatible device", "not compatible with this", "incompatible serialization", "old deserialization call")


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
    check_threads(threads)
    trt, path = runtime(), Path(path)
    manifest, facts = _manifest_of(path), here(trt)
    if manifest is not None:
        off = misfits(manifest.artifact.built_for, facts)
        if off:
            built_for = phrase(manifest.artifact.built_for, off)
            raise WrongDevice(
                f"'{path}' is for {built_for}, and here is {phrase(facts, off)}: {_remedy(path, manifest)}"
            )
        if manifest.artifact.options.get("version_compatible") and not host_code:
            raise UsageError(
                f"'{path}' carries code for the CPU: if you trust it, load it with host_code=True ('-O host_code=true')"
            )
    try:
        plan = path.read_bytes()
    except OSError as error:
        raise IntegrityError(f"TensorRT cannot load '{path}': {error.strerror}") from None
    log = log_of(trt)
    loader = opened(trt.Runtime, log)
    loader.engine_host_code_allowed = host_code
    engine = loader.deserialize_cuda_engine(plan)
    if engine is None and any(phrase in error for error in log.errors for phrase in FOREIGN):
        raise WrongDevice(f"'{path}' is not for {phrase(facts, facts)} ({reason(log)}): {_remedy(path, manifest)}")
    if engine is None:
        raise IntegrityError(f"TensorRT cannot load '{path}': {reason(log)}")
    return TensorRt(trt, loader, engine, path)


def _manifest_of(plan: Path) -> Manifest | None:
    """The manifest beside a plan, if it describes this plan; while a bundle is written there is none yet."""
    file = plan.with_name(MANIFEST)
    manifest = read_manifest(file) if file.exists() else None
    return manifest if manifest is not None and manifest.artifact.file == plan.name else None


def _remedy(plan: Path, manifest: Manifest | None) -> str:
    if manifest is None:
        return "export the model on this machine"
    name, precision = shlex.quote(manifest.source.name), manifest.artifact.precision
    again = f"run 'zoo export {name} --format tensorrt --precision {precision}'"
    return (
        f"{again if manifest.source.twin is None else 'export the model'} on this machine, or build another plan "
        f"from the {GRAPH} beside it with zoo.export.engines.tensorrt.rebuild('{plan.parent}')"
    )


class TensorRt(Engine):
    """A deserialised plan, on the GPU that was in use when it was loaded."""

    def __init__(self, trt: Any, loader: Any, engine: Any, path: Path) -> None:
        names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        inputs = [name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
        shapes = {name: tuple(engine.get_tensor_shape(name)) for name in names}
        typed = all(engine.get_tensor_dtype(name) == trt.float32 for name in names)
        if len(names) != 2 or len(inputs) != 1 or len(shapes[inputs[0]]) != 4 or not typed:
            raise IntegrityError(f"'{path}' is not a classifier with one float32 image batch in and logits out")
        (self.input,), (self.output,) = inputs, set(names) - set(inputs)
        _, channels, height, width = shapes[self.input]
        place = here(trt)
        facts = {
            "engine": "tensorrt",
            "version": place["tensorrt"],
            "device": "cuda",
            "name": place["gpu"],
            "compute_capability": place["compute_capability"],
            "cuda": torch.version.cuda,
        }
        gradients = partial(own_gradients, path.with_name(GRAPH))
        super().__init__(self._forward, (channels, height, width), facts, gradients)
        self.classes = shapes[self.output][-1]
        self.largest, *_ = engine.get_tensor_profile_shape(self.input, 0)[2]  # of (min, opt, max)
        self.trt, self.path = trt, path
        self.device = device()
        self.stream = torch.cuda.Stream(self.device)  # on the default one TensorRT would synchronise the whole device
        # In the order in which they are freed.
        self.held = [engine.create_execution_context(), engine, loader]
        if self.held[0] is None:
            raise ZooError(f"TensorRT could not prepare '{path}' to run: {reason(log_of(trt))}")

    def close(self) -> None:
        super().close()
        while self.held:
            self.held.pop(0)

    def _forward(self, images: np.ndarray) -> np.ndarray:
        logits = []
        with torch.cuda.device(self.device), torch.cuda.stream(self.stream):
            for part in torch.from_numpy(images).split(self.largest):
                there = torch.empty((len(part), self.classes), device=self.device)
                self._enqueue(part.to(self.device), there)
                logits.append(there.cpu())  # which waits for the stream
        return torch.cat(logits).numpy()

    def _enqueue(self, images: Tensor, logits: Tensor) -> None:
        """Have a batch that is on the GPU computed into ``logits``, on ``stream``; both contiguous and float32."""
        log, context = log_of(self.trt), self.held[0]
        log.errors.clear()
        ready = (
            context.set_input_shape(self.input, tuple(images.shape))
            and context.set_tensor_address(self.input, images.data_ptr())
            and context.set_tensor_address(self.output, logits.data_ptr())
        )
        if not ready or not context.execute_async_v3(self.stream.cuda_stream):
            raise ZooError(f"TensorRT could not run '{self.path}' on a batch of {len(images)}: {reason(log)}")
