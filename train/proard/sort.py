"""Sort the channels of a dynamic net by importance: its sub-nets take the leading ones, which should be the best.

To be done before sub-nets with fewer channels are trained: it changes which channels a smaller sub-net has.
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
    """Channels that some layers share: permuted in all of them, they leave the function as it is."""

    out: list[Any]  # put the channels out: dimension 0 of all their tensors
    into: list[Any]  # take them in: dimension 1 of the weight, whose L1 norm is a channel's importance
    beside: tuple[Any, ...] = ()  # take them in too, but have no say in the importance


@torch.no_grad()
def sort_hidden(net: Elastic) -> None:
    """Permute, in place, the hidden channels of every block (of a plain net, the channels of every stage) by descending
    L1 norm of the weights that take them in. The largest sub-net computes what it did, up to rounding.

    Raises:
        UsageError: shortcuts tie channels of blocks that have different numbers of them.
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
    """The channels of plain blocks: a shortcut makes those that a block puts out the ones that it takes in."""
    axes: list[Axis] = []
    for block, reader in zip(blocks, [*(after.conv for after in blocks[1:]), head], strict=False):
        if not block.shortcut:
            axes.append(Axis([], []))
        elif block.conv.in_channels != block.conv.out_channels:
            raise UsageError(
                f"channels cannot be sorted: a shortcut ties {block.conv.in_channels} of them to "
                f"{block.conv.out_channels}, so choose a space with one width for a stage"
            )
        axes[-1].out.extend((block.conv, block.bn))
        axes[-1].into.append(reader)
    return axes
