"""Every BatchNorm as a convolution, for engines that are built from the float model itself."""

from __future__ import annotations

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from zoo.models.fold import fold_batchnorm


def without_batchnorm(model: nn.Module) -> nn.Module:
    """A copy of ``model`` in eval mode with frozen parameters: each BatchNorm is folded into the convolution before it,
    or, where a pre-activation net has none there, made a depthwise 1x1 convolution. Logits agree up to rounding.

    A BatchNorm that is left in, PyTorch's quantisation (PT2E) folds into a convolution whose output a shortcut takes
    too; and a converter's product and sum are rounded twice in int8, where a convolution is rounded once.
    """
    plain = fold_batchnorm(model)
    for module in list(plain.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.BatchNorm2d):
                setattr(module, name, _convolution(child))
    return plain.requires_grad_(False)


def _convolution(norm: nn.BatchNorm2d) -> nn.Module:
    channels = norm.num_features
    identity = nn.Conv2d(channels, channels, 1, groups=channels, bias=False, device=next(norm.buffers()).device).eval()
    nn.init.ones_(identity.weight)
    return fuse_conv_bn_eval(identity, norm)
