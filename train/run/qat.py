"""Quantisation-aware training: a network with the rounding of int8 and straight-through gradients.

Weights are rounded per output channel, symmetrically. Activations are rounded per tensor to 8 bits with a zero point,
where int8 engines store a tensor: after the BatchNorm and ReLU of a convolution, and after a sum (OpenVINO's rounds
less). The head stays in float. The backward pass treats rounding as the identity (Jacob et al. 2018, section 3). So an
attack on this network is a BPDA attack on its int8 engine, and adversarial training hardens the deployed network.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

LEVELS = 255  # steps between the ends of a range
MOMENTUM = 0.01
FUSED = (nn.BatchNorm2d, nn.ReLU, nn.ReLU6)  # engines fuse these with the convolution or sum before
ROUNDED = (nn.Conv2d, *FUSED, nn.SiLU, nn.AdaptiveAvgPool2d)
FUNCTIONS = (operator.add, operator.truediv, operator.mul, torch.add, F.relu, F.silu)


def quantised(model: nn.Module, images: Iterable[Tensor]) -> fx.GraphModule:
    """A copy of ``model`` with rounded weights and activations; its parameters keep their names.

    The ranges of activations are means, over batches, of the least and the largest value. Train mode updates them.

    Args:
        model: a model of :func:`zoo.models.build`.
        images: batches [N, C, H, W] in [0, 1] for the first ranges.
    """
    net = copy.deepcopy(model)
    for module in net.modules():
        if type(module) is nn.Conv2d:
            module.__class__ = RoundedConv2d
    traced = _Tracer().trace(net)
    roundings = nn.ModuleList()
    net.roundings = roundings
    for node in list(traced.nodes):
        if _rounds(node, net):
            with traced.inserting_after(node):
                after = traced.call_module(f"roundings.{len(roundings)}", (node,))
            node.replace_all_uses_with(after, delete_user_cb=lambda user, after=after: user is not after)
            roundings.append(Rounding())
    result = fx.GraphModule(net, traced).eval()
    for rounding in roundings:
        rounding.train()
    with torch.no_grad():
        for batch in images:
            result(batch)
    return result.train(model.training)


def floating(model: nn.Module) -> dict[str, Tensor]:
    """The unrounded weights of a network of :func:`quantised`: a state dict for the original model."""
    return {key: value for key, value in model.state_dict().items() if not key.startswith("roundings.")}


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, RoundedConv2d) or super().is_leaf_module(m, module_qualified_name)


def _rounds(node: fx.Node, net: nn.Module) -> bool:
    """Whether engines store the result of ``node``, which they do not if all its users are fused with it."""
    if not _computes(node, net, ROUNDED, FUNCTIONS):
        return False
    return not all(_computes(user, net, (*FUSED, nn.Linear), (F.relu,)) for user in node.users)


def _computes(node: fx.Node, net: nn.Module, modules: tuple[type, ...], functions: tuple[object, ...]) -> bool:
    match node.op:
        case "call_module":
            return isinstance(net.get_submodule(str(node.target)), modules)
        case "call_function":
            return node.target in functions
    return False


class Rounding(nn.Module):
    """Round activations to the nearest of 256 values, evenly spaced over a range and with zero among them."""

    low: Tensor
    high: Tensor
    seen: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("low", torch.zeros(()))
        self.register_buffer("high", torch.zeros(()))
        self.register_buffer("seen", torch.zeros(()))  # batches

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            with torch.no_grad():
                self.seen += 1
                low, high = torch.aminmax(x.float())
                share = (1 / self.seen).clamp(min=MOMENTUM)
                self.low.lerp_(low.clamp(max=0), share)
                self.high.lerp_(high.clamp(min=0), share)
        step = ((self.high - self.low) / LEVELS).clamp(min=1e-8)
        least = (self.low / step).round()
        bounded = x.float().clamp(least * step, (least + LEVELS) * step)
        return _straight_through(bounded, (bounded / step).round() * step)


class RoundedConv2d(nn.Conv2d):
    """A convolution whose weights are rounded to 255 values, evenly spaced for each output channel, zero among them."""

    def forward(self, x: Tensor) -> Tensor:
        step = (self.weight.detach().abs().amax((1, 2, 3), keepdim=True) / (LEVELS // 2)).clamp(min=1e-12)
        rounded = _straight_through(self.weight, (self.weight / step).round() * step)
        return self._conv_forward(x, rounded, self.bias)


def _straight_through(x: Tensor, rounded: Tensor) -> Tensor:
    return x + (rounded - x).detach()
