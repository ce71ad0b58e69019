"""The dynamic net: the weights of its largest sub-net, which all others share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.func import functional_call

from zoo.models import Classifier, build
from zoo.models.subnet import STATISTICS, TRANSFORM, cut, skeleton
from zoo.specs import Spec
from zoo.system.errors import UsageError
from zoo.train.run.ema import recalibrate
from zoo.train.spaces.dynamic import Space


class Elastic(nn.Module):
    """A space's dynamic net: ``full`` is its largest sub-net, ``transform`` holds the matrices for smaller kernels.

    It stores no BatchNorm statistics. A live sub-net normalises by its batch, a frozen one by statistics computed for
    it, so no sub-net uses the statistics of another.
    """

    def __init__(self, space: Space) -> None:
        super().__init__()
        self.space = space
        self.full = build(space.spec(space.largest[0]))
        self.transform = nn.ModuleDict(
            {
                name.replace(".", "_"): nn.ParameterDict({str(k): nn.Parameter(torch.eye(k * k)) for k in smaller})
                for name, smaller in _kernels(space, self.full).items()
            }
        )

    def parameters_by_name(self) -> dict[str, Tensor]:
        """The source of :func:`zoo.models.subnet.cut`: live parameters of the largest sub-net, and the transforms."""
        transforms = {f"{TRANSFORM}{name}": one for name, one in self.transform.named_parameters()}
        return {**dict(self.full.named_parameters()), **transforms}

    def weights(self, spec: Spec) -> dict[str, Tensor]:
        """The parameters of the sub-net ``spec``, as views that pass gradients on."""
        return cut(self.parameters_by_name(), self.full.spec, spec)

    def subnet(self, spec: Spec, *, attacked: bool = False) -> Live:
        """The live sub-net; if ``attacked``, without weight gradients, which saves a third of the backward pass."""
        weights = self.weights(spec)
        if attacked:
            weights = {name: tensor.detach() for name, tensor in weights.items()}
        return Live(spec, {**weights, "mean": self.full.mean, "std": self.full.std})

    def forward(self, x: Tensor, spec: Spec | None = None) -> Tensor:
        """Images [N, 3, H, W] in [0, 1] to logits [N, K] of a live sub-net, by default the largest."""
        return self.subnet(spec or self.full.spec)(x)

    @torch.no_grad()
    def freeze(self, spec: Spec, images: Iterable[Tensor]) -> Classifier:
        """The static sub-net in eval mode, its BatchNorm statistics those of ``images`` (batches [N, 3, H, W])."""
        frozen = build(spec).to(self.full.mean.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        state = frozen.state_dict()
        for name, tensor in self.weights(spec).items():
            state[name].copy_(tensor)
        recalibrate(frozen, images)
        return frozen.eval()

    def released(self, images: Iterable[Tensor]) -> dict[str, Tensor]:
        """The stored tensors: the state of the largest sub-net, frozen with ``images``, and the transforms."""
        largest = self.freeze(self.full.spec, images).state_dict()
        return {**largest, **{f"{TRANSFORM}{name}": one.detach() for name, one in self.transform.named_parameters()}}

    def load_released(self, tensors: Mapping[str, Tensor]) -> None:
        """Load the tensors of :meth:`released`.

        Raises:
            UsageError: they belong to another space.
        """
        own = self.full.state_dict().keys() | {f"{TRANSFORM}{name}" for name, _ in self.transform.named_parameters()}
        shapes = {name: one.shape for name, one in self.parameters_by_name().items()}
        if tensors.keys() != own or any(tensors[name].shape != shape for name, shape in shapes.items()):
            raise UsageError(f"these weights do not fit the dynamic net of space {self.space.name}: choose others")
        with torch.no_grad():
            for name, parameter in self.parameters_by_name().items():
                parameter.copy_(tensors[name])


class Live(nn.Module):
    """A sub-net with borrowed weights and batch statistics: images [N, 3, H, W] in [0, 1] to logits [N, K]."""

    def __init__(self, spec: Spec, weights: dict[str, Tensor]) -> None:
        super().__init__()
        self.borrowed = weights  # in a plain dictionary, so they are not parameters of this module
        self._net = (_by_batch(spec),)  # in a tuple for the same reason: all sub-nets of this architecture share it

    @property
    def layers(self) -> nn.Module:
        """The module whose layers a pass runs, for hooks. All sub-nets of this architecture share it."""
        return self._net[0]

    def forward(self, x: Tensor) -> Tensor:
        return functional_call(self._net[0], self.borrowed, (x,))


@lru_cache(maxsize=64)
def _by_batch(spec: Spec) -> Classifier:
    """The architecture on the meta device; its BatchNorms always use batch statistics."""
    with torch.device("meta"):
        net = build(spec)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.track_running_stats = False
            for name in STATISTICS:
                setattr(module, name, None)
    return net.train()


def _kernels(space: Space, full: Classifier) -> dict[str, range]:
    """The smaller kernel sizes of each convolution of the largest sub-net that has some."""
    narrow = {gene.name: gene.choices[-1 if gene.name.endswith(".depth") else 0] for gene in space.genes}
    least = {name: one.shape for name, one in skeleton(space.architecture(narrow)).named_parameters()}
    return {
        name.removesuffix(".weight"): range(least[name][3], one.shape[3], 2)
        for name, one in full.named_parameters()
        if one.dim() == 4 and least[name][3] < one.shape[3]
    }
