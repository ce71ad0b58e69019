"""Models in files of other tools, ONNX graphs and PyTorch's exported programs, as modules that can be attacked."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterable
from copy import copy
from functools import partial
from pathlib import Path
from typing import Any, Self

import numpy as np
import onnx
import torch
from google.protobuf.message import DecodeError
from onnx.external_data_helper import ExternalDataInfo, uses_external_data
from torch import Tensor, nn

from zoo.datasets import dataset_called
from zoo.export.engines import backend
from zoo.export.engines.interface import run_locally
from zoo.export.gradients.onnx import read
from zoo.export.gradients.steps import Steps, Unsupported
from zoo.export.onnx.graph import quiet
from zoo.system.errors import IntegrityError, UsageError, first_line
from zoo.system.notice import say_once
from zoo.weights.address import Address
from zoo.weights.own import Own

NEAR, NEAR_IN_INT8 = 0.02, 0.5  # how far the two graphs' logits may be apart, of their spread


class OnnxModel(nn.Module):
    """The classifier in an ONNX file: ONNX Runtime's answers, on the CPU, with gradients of the same graph in PyTorch.

    A graph of QuantizeLinear and DequantizeLinear is run in int8, and its gradients pass straight through each rounding
    (:mod:`zoo.export.gradients.onnx`). A graph with one batch size is run in pieces of it. If the graph cannot be read
    there, or does not answer as ONNX Runtime does, a sentence says so, and the answers have no gradient.

    >>> import tempfile
    >>> from zoo import load
    >>> from zoo.export.onnx.graph import save_onnx
    >>> path = Path(tempfile.mkdtemp()) / "net.onnx"
    >>> _ = save_onnx(load("nfgsm-w4"), path)
    >>> OnnxModel(path)(torch.rand(2, 3, 32, 32)).shape
    torch.Size([2, 10])

    Args:
        path: of a graph from float32 images [N, 3, H, W] to logits [N, K].
        size: H and W.

    Raises:
        UsageError: it takes images of another shape, or does not return logits.
        IntegrityError: ONNX Runtime cannot load it as a classifier.
    """

    def __init__(self, path: Path | str, size: int = 32) -> None:
        super().__init__()
        path, shape = Path(path), (3, size, size)
        engine = run_locally(backend("onnxruntime"), [path], 1, None)
        if any(isinstance(side, int) and side != ours for side, ours in zip(engine.shape, shape, strict=True)):
            raise UsageError(f"'{path}' takes images {_shape(engine.shape)}, not {_shape(shape)}")
        graph = _graph(path)
        self._run, self.batch = engine.running(), _batch(graph)
        self.register_buffer("sha256", torch.tensor(list(file_sha256(path))))  # in hashes of models that hold this one
        self._gradients: Steps | None = None
        images = torch.rand(self.batch or 4, *shape, generator=torch.Generator().manual_seed(0))
        try:
            logits = self(images)
        except Exception as error:  # the runtime's have no base class of their own
            raise UsageError(f"'{path}' fails on images {[*images.shape]} ({first_line(error)})") from error
        if logits.ndim != 2:
            raise UsageError(f"'{path}' must return logits [N, K], not {_shape(logits.shape[1:])}")
        quantised = any(node.op_type == "QuantizeLinear" for node in graph.node)
        near = (NEAR_IN_INT8 if quantised else NEAR) * (logits - logits.mean(1, keepdim=True)).std()
        try:
            gradients = read(path)
            ours = gradients(images)
            if ours.shape != logits.shape or not (ours - logits).square().mean().sqrt() <= near:
                raise Unsupported("in PyTorch it computes something else")
            self._gradients = gradients
        except Unsupported as error:
            say_once(
                f"the gradients of '{path}' are not known here ({error}): it is measured by protocols without any "
                "(clean, noise, square, corruptions)"
            )

    def forward(self, x: Tensor) -> Tensor:
        """Images [N, 3, H, W] to logits [N, K]."""
        parts = x.float().cpu().split(self.batch or len(x))
        return torch.cat([self._answers(part) for part in parts]).to(x.device, x.dtype)

    def _answers(self, x: Tensor) -> Tensor:
        n = len(x)
        if n < self.batch:
            x = torch.cat([x, x.new_zeros(self.batch - n, *x.shape[1:])])
        logits = torch.from_numpy(np.array(self._run(x.contiguous().numpy(force=True)), np.float32))
        if self._gradients is not None and x.requires_grad and torch.is_grad_enabled():
            logits = _Answered.apply(self._gradients(x), logits)
        return logits[:n]

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """A model with the same session: it is never changed."""
        twin = copy(self)
        twin._buffers, twin._modules = dict(self._buffers), {name: copy(one) for name, one in self._modules.items()}
        return twin


class _Answered(torch.autograd.Function):
    """The engine's logits, with the gradient of ``ours``."""

    @staticmethod
    def forward(ctx: Any, ours: Tensor, logits: Tensor) -> Tensor:
        return logits.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


def exported_program(path: Path | str, size: int = 32) -> nn.Module:
    """The model in a file of ``torch.export.save``, as it was exported, with its gradients. Its code is run.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "net.pt2"
    >>> net, shapes = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 10)), ({0: torch.export.Dim("batch")},)
    >>> torch.export.save(torch.export.export(net, (torch.rand(2, 3, 32, 32),), dynamic_shapes=shapes), path)
    >>> exported_program(path)(torch.rand(5, 3, 32, 32)).shape
    torch.Size([5, 10])

    Args:
        path: of a program from float32 images [N, 3, H, W] to logits [N, K], for any N.
        size: H and W.

    Raises:
        UsageError: PyTorch cannot load it, it has one batch size, or it fails on images of this size.
    """
    try:
        with quiet(logging.getLogger("torch.export")):
            program = torch.export.load(Path(path))
    except Exception as error:  # of many kinds
        raise UsageError(f"PyTorch cannot load '{path}' as an exported program: {first_line(error)}") from error
    model, faults = program.module(), dict[int, Exception]()
    for n in (1, 2, 3):
        try:
            with torch.no_grad():
                model(torch.zeros(n, 3, size, size))
        except Exception as fault:
            faults[n] = fault
    if faults:
        n, first = next(iter(faults.items()))
        advice = ": export it with a dynamic batch" if len(faults) < 3 else ""
        raise UsageError(f"'{path}' fails on images {[n, 3, size, size]} ({first_line(first)}){advice}") from first
    return model


READERS: dict[str, Callable[[Path, int], nn.Module]] = {".onnx": OnnxModel, ".pt2": exported_program}


def own_file(address: Address, dataset: str | None = None) -> Own:
    """The model in the file at ``address``, which classifies the data set called ``dataset``, by default CIFAR-10.

    Raises:
        UsageError: no data set is called so, or there is no such file.
        IntegrityError: it is damaged.
    """
    images, path = dataset_called(dataset or "cifar10"), Path(address.place)
    if not path.is_file():
        raise UsageError(f"'{path}' is a folder, not a file" if path.is_dir() else f"there is no file '{path}'")
    code = partial(READERS[path.suffix.lower()], path, images.image_size)
    return Own(address, code, images, file_sha256(path).hex())


def file_sha256(path: Path) -> bytes:
    """The SHA-256 of a file, and after it of the files that an ONNX graph keeps weights in, if there are any.

    Raises:
        IntegrityError: a file is missing or is no ONNX graph.
    """
    files = [path]
    if path.suffix.lower() == ".onnx":
        graph = _graph(path)
        weights = [*graph.initializer, *(one.t for node in graph.node for one in node.attribute)]
        beside = {ExternalDataInfo(one).location for one in weights if uses_external_data(one)}
        files += [path.parent / place for place in sorted(beside)]
    digest = hashlib.sha256()
    for file in files:
        try:
            with open(file, "rb") as content:
                while part := content.read(2**20):
                    digest.update(part)
        except OSError as error:
            where = "" if file == path else f", where '{path}' keeps weights"
            raise IntegrityError(f"'{file}' cannot be read{where}: {error.strerror}") from None
    return digest.digest()


def _graph(path: Path) -> onnx.GraphProto:
    """The graph without weights from other files."""
    try:
        return onnx.load(str(path), load_external_data=False).graph
    except DecodeError:
        raise IntegrityError(f"'{path}' is not an ONNX graph, or not all of it is here") from None


def _batch(graph: onnx.GraphProto) -> int:
    """The one batch size that an ONNX graph takes; 0 if it takes any."""
    weights = {one.name for one in graph.initializer}
    (images,) = (port for port in graph.input if port.name not in weights)
    return images.type.tensor_type.shape.dim[0].dim_value


def _shape(sides: Iterable[object]) -> str:
    """Of a batch of what has these sides."""
    return f"[{', '.join(map(str, ('N', *sides)))}]"
