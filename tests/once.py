"""PyTorch's exporter to ONNX takes a second for a tiny net, and tests export the same few nets over and over: here it
does its work once in a process."""

from __future__ import annotations

import functools
import hashlib
import sys
from typing import Any

import torch
from torch import Tensor, nn


def convert_once() -> None:
    """From now on ``torch.onnx.export`` returns again what it returned for a net of the same modules and tensors. It
    itself is ``torch.onnx.export.__wrapped__``."""
    export, known = torch.onnx.export, dict[bytes, torch.onnx.ONNXProgram | None]()

    @functools.wraps(export)
    def once(model: nn.Module, inputs: tuple[Tensor, ...], **options: Any) -> torch.onnx.ONNXProgram | None:
        shapes = [(one.shape, one.dtype) for one in inputs]
        key = hashlib.sha256(repr((type(model), model, shapes, options)).encode())
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            key.update(name.encode() + tensor.numpy(force=True).tobytes())
        if key.digest() not in known:
            known[key.digest()] = export(model, inputs, **options)
        return known[key.digest()]

    torch.onnx.export = once


def read_the_operators_once() -> None:
    """PyTorch reads its table of ONNX's operators anew for every export, which takes half of its time."""
    exporter = sys.modules.get("torch.onnx._internal.exporter._registration")
    if exporter is not None and not hasattr(exporter.ONNXRegistry.from_torchlib, "cache_info"):
        read = functools.cache(exporter.ONNXRegistry.from_torchlib)
        exporter.ONNXRegistry.from_torchlib = staticmethod(read)
