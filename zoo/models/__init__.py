"""Build a torch module from a spec: ``build(spec)``.

A family is a file named after its spec's ``arch``. Its ``features(spec)`` returns the network up to the penultimate
features, and their number. An optional ``followers(module)`` names the BatchNorms to fold outside an ``nn.Sequential``.
"""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

from torch import nn

from zoo.models.classifier import Classifier
from zoo.specs import SPECS, Spec

__all__ = ["Classifier", "build", "family"]

ARCHS = tuple(SPECS)


def family(arch: str) -> ModuleType:
    """The Python module of the family ``arch``."""
    return import_module(f"zoo.models.{arch}")


def build(spec: Spec) -> Classifier:
    """A freshly initialised model of ``spec``: [0, 1] float32 images [N, 3, H, W] in, raw logits [N, classes] out.

    >>> import torch
    >>> from zoo import parse_spec
    >>> model = build(parse_spec({"arch": "staged", "widths": [[8], [16]], "resolutions": [16, 8]}))
    >>> model(torch.rand(2, 3, 32, 32)).shape
    torch.Size([2, 10])

    Raises:
        TypeError: ``spec`` is not an architecture spec.
    """
    arch = str(getattr(spec, "arch", None))
    if arch not in ARCHS:
        raise TypeError(f"build() takes an ArchSpec, not {type(spec).__name__}")
    features, width = family(arch).features(spec)
    model = Classifier(spec, features, nn.Linear(width, spec.classes))
    if not model.mean.is_meta:  # meta tensors have no values, and initialising them is slow
        _initialise(model)
    return model


def _initialise(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.01)
            nn.init.zeros_(module.bias)
