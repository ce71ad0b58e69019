"""Random crop and flip as one gather, on the device that holds the data."""

from __future__ import annotations

import torch
from torch import Tensor

PAD = 4


def padded(images: Tensor) -> Tensor:
    """uint8 [N, H, W, C] with a border of ``PAD`` zeros, made once."""
    return torch.nn.functional.pad(images, (0, 0, PAD, PAD, PAD, PAD))


def crop_and_flip(images: Tensor, index: Tensor, generator: torch.Generator) -> Tensor:
    """The images at ``index``, each cropped at random from its padding and flipped with probability 1/2.

    The flip is folded into the columns that the crop gathers, so it costs nothing.

    Args:
        images: uint8 [N, H + 2 PAD, W + 2 PAD, C] from :func:`padded`.
        index: int64 [B].
        generator: on the same device; two draws for every image.

    Returns:
        float32 [B, C, H, W] in [0, 1], in channels_last strides.
    """
    size, device = images.shape[1] - 2 * PAD, images.device
    offset = torch.randint(2 * PAD + 1, (2, len(index), 1), generator=generator, device=device)
    flip = torch.randint(2, (len(index), 1), generator=generator, device=device, dtype=torch.bool)
    line = torch.arange(size, device=device)[None]  # [1, S]
    rows = offset[0] + line  # [B, S]
    columns = offset[1] + torch.where(flip, line.flip(1), line)  # [B, S]
    crops = images[index[:, None, None], rows[:, :, None], columns[:, None, :]]  # [B, S, S, C]
    return crops.permute(0, 3, 1, 2).float().div_(255)
