"""Models in files of other tools, ONNX graphs and PyTorch's exported programs, as modules that can be attacked."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable
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
from zoo.export.gradients.steps import Unsupported
from zoo.export.onnx.graph import quiet
from zoo.system.errors import IntegrityError, UsageError, first_line
from zoo.system.notice import say_once
from zoo.weights.address import Address
from zoo.weights.own import Own


class OnnxModel(nn.Module):
    """The classifier in an ONNX file: ONNX Runtime's answers, on the CPU, with gradients of the same graph in PyTorch.

    A graph of QuantizeLinear and DequantizeLinear is run in int8, and its gradients pass straight through each rounding
    (:mod:`zoo.export.gradients.onnx`). A graph with one batch size is run in pieces of it. If an operator is
    not known there, a sentence says so, and the answers have no gradient.

    >>> import tempfile
    >>> from zoo import load
    >>> from zoo.export.onnx.graph import save_onnx
    >>> path = Path(tempfile.mkdtemp()) / "net.onnx"
    >>> _ = save_onnx(load("nfgsm-w4"), path)
    >>> OnnxModel(path)(torch.rand(2, 3, 32, 32)).shape
    torch.Size([2, 10])

    Args:
        path: of a graph that takes float32 images [N, 3, H, W] in [0, 1] and returns logits [N, K].
        size: H and W.

    Raises:
        UsageError: it takes images of another shape.
        IntegrityError: ONNX Runtime cannot load it as a classifier.
    """

    def __init__(self, path: Path | str, size: int = 32) -> None:
        super().__init__()
        path = Path(path)
        engine = run_locally(backend("onnxruntime"), [path], 1, None, callers=os.cpu_count() or 1)
        shape = [3, size, size]
        if any(isinstance(side, int) and side != ours for side, ours in zip(engine.shape, shape, strict=True)):
            raise UsageError(
                f"'{path}' takes images [N, {', '.join(map(str, engine.shape))}], not [N, 3, {size}, {size}]"
            )
        self._run = engine.running()
        self.batch = _batch(path)
        self.register_buffer("sha256", torch.tensor(list(file_sha256(path))))  # in hashes of models that hold this one
        self._gradients: nn.Module | None = None
        try:
            gradients = read(path)
            with torch.no_grad():
                gradients(torch.zeros(self.batch or 2, *shape))  # forms of operators show when they compute
            self._gradients = gradients
        except Exception as error:  # graphs can be wrong in many ways
            why = error if isinstance(error, Unsupported) else first_line(error)
            say_once(
                f"the gradients of '{path}' are not known here ({why}): it is measured by protocols without gradients "
                "(clean, noise, square, corruptions)"
            )

    def forward(self, x: Tensor) -> Tensor:
        """Images [N, 3, H, W] to logits [N, K]."""
        return torch.cat([self._answers(part) for part in x.cpu().split(self.batch or len(x))]).to(x.device)

    def _answers(self, x: Tensor) -> Tensor:
        n = len(x)
        if n < self.batch:
            x = torch.cat([x, x.new_zeros(self.batch - n, *x.shape[1:])])
        logits = torch.from_numpy(np.array(self._run(x.contiguous().numpy(force=True)), np.float32))
        if self._gradients is not None and x.requires_grad and torch.is_grad_enabled():
            logits = _Answered.apply(self._gradients(x), logits)
        return logits[:n]

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self  # nothing in it changes


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

    Raises:
        UsageError: PyTorch cannot load it, or it has one batch size.
    """
    try:
        with quiet(logging.getLogger("torch.export")):
            program = torch.export.load(Path(path))
    except Exception as error:  # of many kinds
        raise UsageError(f"PyTorch cannot load '{path}' as an exported program: {first_line(error)}") from error
    model = program.module()
    for n in (1, 3):
        try:
            with torch.no_grad():
                model(torch.zeros(n, 3, size, size))
        except Exception as error:
            images = f"images [{n}, 3, {size}, {size}] ({first_line(error)})"
            raise UsageError(f"'{path}' fails on {images}: export it with a dynamic batch") from error
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
        raise UsageError(f"there is no file '{path}'")
    code = partial(READERS[path.suffix.lower()], path, images.image_size)
    return Own(address, code, images, file_sha256(path).hex())


def file_sha256(path: Path) -> bytes:
    """The SHA-256 of a file, and after it of the files that an ONNX graph keeps weights in, if there are any.

    Raises:
        IntegrityError: a file is missing or is no ONNX graph.
    """
    digest = hashlib.sha256(path.read_bytes())
    if path.suffix.lower() == ".onnx":
        weights = _graph(path).initializer
        for place in sorted({ExternalDataInfo(one).location for one in weights if uses_external_data(one)}):
            try:
                digest.update((path.parent / place).read_bytes())
            except OSError:
                raise IntegrityError(f"'{path}' has weights in '{place}', which is not beside it") from None
    return digest.digest()


def _graph(path: Path) -> onnx.GraphProto:
    """The graph without weights from other files."""
    try:
        return onnx.load(str(path), load_external_data=False).graph
    except DecodeError:
        raise IntegrityError(f"'{path}' is not an ONNX graph, or not all of it is here") from None


def _batch(path: Path) -> int:
    """The one batch size of an ONNX graph; 0 if it takes any."""
    graph = _graph(path)
    weights = {one.name for one in graph.initializer}
    (images,) = (port for port in graph.input if port.name not in weights)
    return images.type.tensor_type.shape.dim[0].dim_value
