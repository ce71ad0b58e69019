"""Fold BatchNorm into the convolution before it: the same function, fewer passes over memory."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.nn.utils.parametrize import is_parametrized

from zoo.models import ARCHS, Classifier, family
from zoo.system.errors import UsageError, first_line

SAME = 1e-3  # of the spread of the logits: what rounding may change
ROUNDING = 5e-6  # of the largest logit: what it changes in float32 at least


def fold_batchnorm(model: nn.Module, images: Tensor | None = None) -> nn.Module:
    """A copy of ``model`` in eval mode with frozen parameters, each BatchNorm that directly follows a convolution
    folded into it.

    In the architectures here this removes every BatchNorm, except in pre-activation nets those that only precede a
    convolution. Only plain layers are folded: no subclasses, parametrisations or hooks. Logits before and after are
    compared; if they differ by more than rounding, the copy has nothing folded.

    Args:
        images: [N, 3, H, W], to compare on; by default noise for a :class:`Classifier`. Without any, nothing is folded.
    """
    plain = _copy(model)
    if images is None and isinstance(model, Classifier):
        size = model.spec.image_size
        images = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0)).to(model.mean.device)
    if images is None or images.is_meta:
        return plain
    images = images.to(next((tensor.device for tensor in plain.state_dict().values()), images.device))
    folded = _copy(plain)
    for module in list(folded.modules()):
        for conv_name, norm_name in _followers(module):
            conv, norm = getattr(module, conv_name), getattr(module, norm_name)
            if as_built(conv, nn.Conv2d) and as_built(norm, nn.BatchNorm2d) and norm.running_mean is not None:
                setattr(module, conv_name, fuse_conv_bn_eval(conv, norm))
                setattr(module, norm_name, nn.Identity())
    folded = _frozen(folded)  # the new modules too
    with torch.no_grad():
        before, after = plain(images.clone()), folded(images.clone())
    return folded if same(after, before) else plain


def same(a: Tensor, b: Tensor) -> bool:
    """Whether logits a and b [N, K] are equal up to rounding, and finite in the same places.

    What all classes have in common does not count as spread: next to a large offset, every difference would be small.
    """
    finite = torch.isfinite(b)
    if a.shape != b.shape or not torch.equal(finite, torch.isfinite(a)):
        return False
    whole = b[finite.all(1)]
    spread = (whole - whole.mean(1, keepdim=True) if len(whole) else b[finite]).std(correction=0)
    if not finite.any():
        return True
    allowed = max(SAME * float(spread), ROUNDING * float(b[finite].abs().max()))
    return bool((a - b)[finite].abs().max() <= allowed)


def _copy(model: nn.Module) -> nn.Module:
    """A frozen copy in eval mode, also of a model that keeps results of earlier calls (as old weight_norm does)."""
    kept = (value for module in model.modules() for value in vars(module).values())
    copied = {id(value): value.detach().clone() for value in kept if isinstance(value, Tensor) and not value.is_leaf}
    try:
        with torch.no_grad():  # parameters of scripted modules would be recorded as copies
            return _frozen(copy.deepcopy(model, copied))
    except (TypeError, RuntimeError, pickle.PicklingError) as error:
        raise UsageError(f"the model cannot be copied, as an attack needs it: {first_line(error)}") from error


def in_eval_mode(model: nn.Module) -> nn.Module:
    """``model`` in eval mode. An exported program has no modes, and refuses to be put into one: not any more."""
    for module in model.modules():
        if isinstance(module, GraphModule):
            try:
                module.eval()
            except NotImplementedError:
                for name in ("train", "eval"):
                    vars(module).pop(name, None)
    return model.eval()


def _frozen(model: nn.Module) -> nn.Module:
    """``model``, in eval mode and with frozen parameters; scripted modules have no ``requires_grad_`` of their own."""
    for parameter in in_eval_mode(model).parameters():
        parameter.requires_grad_(False)
    return model


def as_built(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether ``module`` computes what PyTorch's ``kind`` does: not a subclass, no parametrisation, no hooks."""
    hooks = (value for name, value in vars(module).items() if name.endswith("_hooks"))
    return type(module) is kind and not is_parametrized(module) and "forward" not in vars(module) and not any(hooks)


def _followers(module: nn.Module) -> Iterator[tuple[str, str]]:
    """Pairs of children's names: only the second module is applied to the output of the first."""
    if isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward:
        yield from pairwise(module._modules)  # with repetitions, which named_children leaves out
    for arch in ARCHS:
        declared = getattr(family(arch), "followers", None)
        yield from declared(module) if declared else ()
