"""Cut a sub-net's weights out of a dynamic net: leading channels, leading blocks, the centres of kernels.

What is cut are views of the given tensors, through which gradients flow: training, freezing and loading all go by this.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

import torch
from torch import Tensor

from zoo.models import Classifier, build
from zoo.specs import Spec, StagedSpec

TRANSFORM = "transform."
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")  # BatchNorm's: each sub-net needs its own


def cut(full: Mapping[str, Tensor], largest: Spec, spec: Spec) -> dict[str, Tensor]:
    """The parameters of the sub-net ``spec``, by their names in ``build(spec)``.

    Args:
        full: of the dynamic net, whose largest sub-net is ``largest``: its parameters, and the transforms
            ``transform.NAME.5`` [25, 25] and the like of kernels that may be smaller, NAME being the largest's
            convolution (with underscores for dots).

    A tensor has the leading channels of the dynamic net's. A smaller kernel is the centre of the next larger one,
    flattened, times a learned matrix (OFA, Cai et al. 2020).
    """
    return {name: _leading(full, source, shape) for name, (source, shape) in _sources(largest, spec).items()}


@lru_cache(maxsize=4096)
def _sources(largest: Spec, spec: Spec) -> dict[str, tuple[str, torch.Size]]:
    """For each parameter of the sub-net, the largest's that it is cut from, and its shape."""
    moved = _moved(largest, spec)
    sources = {}
    for name, parameter in skeleton(spec).named_parameters():
        module, _, rest = name.partition(".")
        if moved and module == "features":
            place, _, rest = rest.partition(".")
            sources[name] = (f"features.{moved[int(place)]}.{rest}", parameter.shape)
        else:
            sources[name] = (name, parameter.shape)
    return sources


def _moved(largest: Spec, spec: Spec) -> list[int] | None:
    """For each block of a staged sub-net, its place in the largest net; None where names identify blocks."""
    if not (isinstance(largest, StagedSpec) and isinstance(spec, StagedSpec)):
        return None
    places, start = [0], 1
    for own, stage in zip(spec.widths, largest.widths, strict=True):
        places += range(start, start + len(own))
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
    """The architecture without memory for its parameters."""
    with torch.device("meta"):
        return build(spec)
