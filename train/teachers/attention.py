"""Attention maps of convolutions, and the distance of a student's from its tutors' (RNAS-CL, section 3.1, eq. 1)."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor


def attention_map(activation: Tensor) -> Tensor:
    """F(A) = sum over channels of A^2: [N, C, H, W] to [N, H, W], in float32 (RNAS-CL, section 3.1)."""
    return activation.float().square().sum(1)


def unit_maps(maps: Iterable[Tensor], size: int) -> Tensor:
    """Attention maps [N, H_i, W_i], bilinearly interpolated to ``size`` x ``size`` and l2-normalised: [N, L, size^2].

    Consecutive maps of one resolution are interpolated together. A map of zeros stays zero.
    """
    grouped: list[list[Tensor]] = []
    for attention in maps:
        if grouped and grouped[-1][0].shape == attention.shape:
            grouped[-1].append(attention)
        else:
            grouped.append([attention])
    common = []
    for group in grouped:
        stacked = torch.stack(group, 1)  # [N, L, H, W]
        if stacked.shape[2:] != (size, size):
            stacked = F.interpolate(stacked, (size, size), mode="bilinear", align_corners=False)
        common.append(stacked.flatten(2))
    return F.normalize(torch.cat(common, 1), dim=2)


def distances(student: Tensor, teacher: Tensor) -> Tensor:
    """The l2 distance of every pair of unit maps: [N, n_s, P] and [N, n_t, P] to [N, n_s, n_t].

    By ||a - b||^2 = ||a||^2 + ||b||^2 - 2 a.b this is one batched matrix product in place of n_s * n_t differences of P
    pixels. The smallest distance is 1e-3, which keeps the gradient of the root finite.
    """
    with torch.autocast(student.device.type, enabled=False):  # the terms cancel: bf16 is too coarse
        a, b = student.float(), teacher.float()
        squares = a.square().sum(2)[:, :, None] + b.square().sum(2)[:, None]  # [N, n_s, n_t]
        return (squares - 2 * a @ b.transpose(1, 2)).clamp_min(1e-6).sqrt()


def attention_loss(student: Tensor, teacher: Tensor, g: Tensor) -> Tensor:
    """L_attn = 1 / (n_s n_t) sum_ij g_ij ||F(A_s^i) - F(A_t^j)||_2, a mean over the batch: RNAS-CL, eq. 1.

    Args:
        student, teacher: unit maps [N, n_s, P] and [N, n_t, P] of :func:`unit_maps`.
        g: weight of each teacher layer for each student layer [n_s, n_t].
    """
    return (g * distances(student, teacher).mean(0)).sum() / g.numel()


def tutored_loss(student: Tensor, tutors: Tensor, n_t: int) -> Tensor:
    """Eq. 1 for one-hot g: unit maps [N, n_s, P] of the student and of the tutor of each layer.

    ``n_t`` is the number of teacher layers. It keeps the scale of the loss in the search.
    """
    squared = (student - tutors).square().sum(2)  # [N, n_s]
    return squared.clamp_min(1e-6).sqrt().mean() / n_t
