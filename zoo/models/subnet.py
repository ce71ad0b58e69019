"""Cut a sub-net's weights out of a dynamic net: leading channels, leading blocks, the centres of kernels.

The cut tensors are views, so gradients flow to the given tensors. Training, freezing and loading all use this module.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

import torch
from torch import Tensor

from zoo.models import Classifier, build
from zoo.specs import Spec, StagedSpec

TRANSFORM = "transform."
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")  # of BatchNorm: each sub-net needs separate ones


def cut(full: Mapping[str, Tensor], largest: Spec, spec: Spec) -> dict[str, Tensor]:
    """The parameters of the sub-net ``spec``, by their names in ``build(spec)``.

    Args:
        full: the parameters of the dynamic net whose largest sub-net is ``largest``, and for kernels that may shrink
            the transforms ``transform.NAME.5`` [25, 25] and so on; NAME is the convolution's name in ``largest``, with
            underscores for dots.

    Each tensor has the leading channels of the dynamic net's tensor. A smaller kernel is the centre of the next larger
    one, flattened, times a learned matrix (OFA, Cai et al. 2020).
    """
    return {name: _leading(full, source, shape) for name, (source, shape) in _sources(largest, spec).items()}


@lru_cache(maxsize=4096)
def _sources(largest: Spec, spec: Spec) -> dict[str, tuple[str, torch.Size]]:
    """For each parameter of the sub-net, the name of the parameter that it is cut from, and its shape."""
    places = _places(largest, spec)
    sources = {}
    for name, parameter in skeleton(spec).named_parameters():
        module, _, rest = name.partition(".")
        if places and module == "features":
            place, _, rest = rest.partition(".")
            sources[name] = (f"features.{places[int(place)]}.{rest}", parameter.shape)
        else:
            sources[name] = (name, parameter.shape)
    return sources


def _places(largest: Spec, spec: Spec) -> list[int] | None:
    """For each block of a staged sub-net, its place in the largest net; None where names identify blocks."""
    if not (isinstance(largest, StagedSpec) and isinstance(spec, StagedSpec)):
        return None
    places, start = [0], 1
    for kept, stage in zip(spec.widths, largest.widths, strict=True):
        places += range(start, start + len(kept))
        start += len(stage)
    return places


def _leading(full: Mapping[str, Tensor], name: str, shape: torch.Size) -> Tensor:
    tensor = full[name]
    if tensor.dim() == 4 and tensor.shape[2:] != shape[2:]:
        tensor = _smaller_kernel(full, name, shape[3])
    return tensor if tensor.shape == shape else tensor[tuple(slice(n) for n in shape)]


def _smaller_kernel(full: Mapping[str, Tensor], name: str, kernel: int) -> Tensor:
    tensor = full[name]
    module = name.removesuffix(".weight").replace(".", "_")
    for size in range(tensor.shape[3] - 2, kernel - 1, -2):
        centre = tensor[:, :, 1:-1, 1:-1]  # [C_out, C_in, size, size]
        tensor = (centre.flatten(2) @ full[f"{TRANSFORM}{module}.{size}"]).view(centre.shape)
    return tensor


@lru_cache(maxsize=64)
def skeleton(spec: Spec) -> Classifier:
    """The model of ``spec`` on the meta device, without memory for its parameters."""
    with torch.device("meta"):
        return build(spec)
