"""ExecuTorch on the CPU: one program, ``model.pte``, whose layers XNNPACK runs.

A program's memory is planned when it is built: it takes ``LARGEST`` images at most, and more are run in turn. "fp16" is
fp16 throughout, with float32 at either end. "int8" is PyTorch's own static quantisation (PT2E) by XNNPACK's rules:
weights for each output channel, activations by the least and the greatest value seen; pooling and head stay in float.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any
from weakref import WeakSet

import numpy as np
import torch
from torch import Tensor, nn

from zoo.export.engines import backend
from zoo.export.engines.batchnorm import without_batchnorm
from zoo.export.engines.interface import Built, Engine, Order, check_threads
from zoo.export.gradients import artifact_gradients
from zoo.system.errors import ExportFailed, IntegrityError, UsageError, first_line

BACKEND = backend("executorch")
ARTIFACT = "model.pte"
LARGEST = 64
_in_use: WeakSet[Any] = WeakSet()  # programs whose engines are not closed


def runtime() -> Any:
    """ExecuTorch's library.

    Raises:
        MissingDependency: it is not installed, or not for this PyTorch.
    """
    return BACKEND.imported("executorch.extension.pybindings.portable_lib")


def build(order: Order, folder: Path) -> Built:
    """Lower the float model, without BatchNorm, to a program for 1 to ``LARGEST`` images.

    Raises:
        ExportFailed: PyTorch or ExecuTorch could not convert it.
        MissingDependency: ExecuTorch is not installed.
    """
    runtime()
    size, model = order.model.spec.image_size, without_batchnorm(order.model).cpu()
    try:
        with _without_onednn():
            program = _program(_Half(model) if order.precision == "fp16" else model, size, order.calibration)
    except Exception as error:  # those of the packages involved have no base class in common
        raise ExportFailed(f"ExecuTorch could not convert the model: {first_line(error)}") from error
    (folder / ARTIFACT).write_bytes(program)
    return Built(file=ARTIFACT, options={"delegate": "xnnpack", "largest_batch": LARGEST})


class _Half(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model.half()

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x.half()).float()


def _program(model: nn.Module, size: int, calibration: Tensor | None) -> bytes:
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    example = (torch.zeros(2, 3, size, size),)
    shapes = ({0: torch.export.Dim("batch", min=1, max=LARGEST)},)
    graph = torch.export.export(model, example, dynamic_shapes=shapes).module()
    _slice_channels(graph)
    if calibration is not None:
        graph = _quantised(graph, calibration)
    exported = torch.export.export(graph, example, dynamic_shapes=shapes)
    return to_edge_transform_and_lower(exported, partitioner=[XnnpackPartitioner()]).to_executorch().buffer


def _slice_channels(graph: Any) -> None:
    """Shortcuts drop channels by a negative padding, which ExecuTorch refuses when it runs: make slices of these."""
    for node in graph.graph.nodes:
        if node.target is torch.ops.aten.pad.default and node.args[1][-1] < 0:
            x, padding = node.args[:2]  # the last of the paddings is behind the channels
            node.target, node.args = torch.ops.aten.slice.Tensor, (x, 1, 0, padding[-1])
    graph.recompile()


def _quantised(graph: Any, images: Tensor) -> Any:
    """The graph in int8, its ranges from ``images`` [N, C, H, W]."""
    from executorch.backends.xnnpack.quantizer import xnnpack_quantizer as xnnpack
    from torchao.quantization.pt2e import MinMaxObserver
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.quantization.pt2e.quantizer.quantizer import Q_ANNOTATION_KEY

    class Quantizer(xnnpack.XNNPACKQuantizer):
        def annotate(self, model: torch.fx.GraphModule) -> torch.fx.GraphModule:
            model = super().annotate(model)
            for node in model.graph.nodes:
                if node.target in (torch.ops.aten.mean.dim, torch.ops.aten.linear.default):
                    node.meta.pop(Q_ANNOTATION_KEY, None)
            return model

    rules = xnnpack.get_symmetric_quantization_config(is_per_channel=True)
    ranges = replace(rules.input_activation, observer_or_fake_quant_ctr=MinMaxObserver.with_args(eps=2**-12))
    rules = replace(rules, input_activation=ranges, output_activation=ranges)
    observed = prepare_pt2e(graph, Quantizer().set_global(rules))
    with torch.no_grad():
        for batch in images.split(LARGEST):
            observed(batch)
    return convert_pt2e(observed)


@contextmanager
def _without_onednn() -> Iterator[None]:
    """PyTorch's own kernels differ from a batch of 16 on, and tracing them would bind the program to 15 or less."""
    with (
        warnings.catch_warnings(action="ignore"),
        torch.backends.mkldnn.flags(enabled=False),
        torch.backends.nnpack.flags(enabled=False),
    ):
        yield


def load(path: Path | str, *, threads: int | None = None) -> Engine:
    """An engine that runs the program at ``path``.

    Args:
        threads: CPU threads of one call. All engines of a process share one pool, which None leaves as it is.

    Raises:
        MissingDependency: ExecuTorch is not installed.
        IntegrityError: the file is not a classifier that ExecuTorch can load.
        UsageError: fewer than 1 thread, or there are engines that use the pool, and it has another number of threads.
    """
    check_threads(threads)
    library = runtime()
    from executorch.runtime import Runtime

    if threads is not None:
        _size_pool(library, threads)
    try:
        forward = Runtime.get().load_program(Path(path)).load_method("forward")
    except Exception as error:
        raise IntegrityError(f"ExecuTorch cannot load '{path}': {first_line(error)}") from None
    ports = forward.metadata
    single = (ports.num_inputs(), ports.num_outputs()) == (1, 1)
    takes: tuple[int, ...] = ports.input_tensor_meta(0).sizes() if single else ()
    if len(takes) != 4:
        raise IntegrityError(f"'{path}' is not a classifier with one image batch in and logits out")
    largest, channels, height, width = takes
    _in_use.add(forward)

    def run(x: np.ndarray) -> np.ndarray:
        return torch.cat([forward.execute([part])[0] for part in torch.from_numpy(x).split(largest)]).numpy()

    facts = {
        "engine": "executorch",
        "version": version("executorch"),
        "device": "cpu",
        "backend": "xnnpack",
        "threads": library._threadpool_get_thread_count(),
    }
    read = partial(artifact_gradients, BACKEND.module, Path(path))
    return Engine(run, (channels, height, width), facts, read)


def _size_pool(library: Any, threads: int) -> None:
    present = library._threadpool_get_thread_count()
    if threads == present:
        return
    if _in_use:  # they hold pointers into the pool
        raise UsageError(
            f"ExecuTorch's engines share one pool of threads, and the loaded ones run on {present}: "
            f"close them, or load one with {threads} in another process"
        )
    library._unsafe_reset_threadpool(threads)
