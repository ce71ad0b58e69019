"""Artifacts that are not made from an ONNX graph, as PyTorch modules with gradients, read from their own files."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import torch
from torch import nn

from zoo.models import Classifier


def artifact_gradients(engine: str, path: Path, model: Classifier) -> nn.Module | None:
    """A differentiable module of the artifact at ``path``, which ``model`` was exported to; None if none can be made.

    The formats belong to other packages, which may change them; a file that cannot be understood is no error.
    """
    try:
        net, size = import_module(f"zoo.export.gradients.{engine}").read(path), model.spec.image_size
        with torch.no_grad():
            logits = net(torch.zeros(2, 3, size, size))  # forms of operators show when they compute
        return net if logits.shape == (2, model.spec.classes) else None
    except Exception:  # those of the packages involved have no base class in common
        return None
