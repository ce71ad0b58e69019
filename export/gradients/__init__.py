"""Artifacts that are not made from an ONNX graph, as PyTorch modules with gradients, read from their own files."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import nn

from zoo.models import Classifier


def artifact_gradients(module: str, path: Path, model: Classifier) -> nn.Module | None:
    """A differentiable module of the artifact at ``path``, which ``model`` was exported to; None if none can be made.

    The formats belong to other packages, which may change them; a file that cannot be understood is no error.

    Args:
        module: that of the engine, ``Backend.module``: the reader has its name.
    """
    name = f"{__name__}.{module}"
    if find_spec(name) is None:
        return None
    reader = import_module(name)
    try:
        net, size = reader.read(path), model.spec.image_size
        with torch.no_grad():
            logits = net(torch.zeros(2, 3, size, size))  # forms of operators show when they compute
        return net if logits.shape == (2, model.spec.classes) else None
    except Exception:  # those of the packages involved have no base class in common
        return None
