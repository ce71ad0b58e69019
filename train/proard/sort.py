"""Sort the channels of a dynamic net by importance, because its sub-nets take the leading channels.

Sort before sub-nets with fewer channels are trained: sorting changes their channels.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import nn

from zoo.models import Classifier
from zoo.models.bottleneck import Bottleneck
from zoo.models.mobilenetv3 import InvertedResidual, SqueezeExcitation
from zoo.models.staged import ConvBlock
from zoo.system.errors import UsageError
from zoo.train.proard.elastic import Elastic


class Axis(NamedTuple):
    """Layers that share channels: the same permutation in all of them keeps the function of the net."""

    out: list[Any]  # layers that output the channels: dimension 0 of all their tensors
    into: list[Any]  # layers that read them: dimension 1 of the weight, whose L1 norm is a channel's importance
    beside: tuple[Any, ...] = ()  # layers that read them without a part in the importance


@torch.no_grad()
def sort_hidden(net: Elastic) -> None:
    """Sort the hidden channels of every block, or the channels of every stage of a plain net, in place.

    The order is by descending L1 norm of the weights that read a channel. The largest sub-net keeps its function, up
    to rounding.

    Raises:
        UsageError: a shortcut connects blocks with different numbers of channels.
    """
    for axis in _axes(net.full):
        importance = torch.stack([module.weight.abs().transpose(0, 1).flatten(1).sum(1) for module in axis.into]).sum(0)
        order = importance.argsort(descending=True, stable=True)
        for module in axis.out:
            for tensor in (*module.parameters(), *module.buffers()):
                if tensor.dim():  # BatchNorm's count of batches has none
                    tensor.copy_(tensor[order])
        for module in (*axis.into, *axis.beside):
            module.weight.copy_(module.weight[:, order])


def _axes(full: Classifier) -> Iterator[Axis]:
    for module in full.modules():
        match module:
            case Bottleneck():
                yield Axis([*module.reduce], [module.spatial.conv])
                yield Axis([*module.spatial], [module.expand.conv])
            case InvertedResidual(se=SqueezeExcitation() as se):
                yield Axis([*module.expand, *module.depthwise, se.expand], [module.project.conv], (se.reduce,))
                yield Axis([se.reduce], [se.expand])
            case InvertedResidual():
                yield Axis([*module.expand, *module.depthwise], [module.project.conv])
    yield from _stages([module for module in full.modules() if isinstance(module, ConvBlock)], full.head)


def _stages(blocks: list[ConvBlock], head: nn.Linear) -> list[Axis]:
    """The axes of plain blocks; blocks with a shortcut share the axis of their input."""
    axes: list[Axis] = []
    for block, reader in zip(blocks, [*(after.conv for after in blocks[1:]), head], strict=False):
        if not block.shortcut:
            axes.append(Axis([], []))
        elif block.conv.in_channels != block.conv.out_channels:
            raise UsageError(
                f"channels cannot be sorted: a shortcut connects {block.conv.in_channels} to "
                f"{block.conv.out_channels} channels, so choose a space with one width for a stage"
            )
        axes[-1].out.extend((block.conv, block.bn))
        axes[-1].into.append(reader)
    return axes
