"""Attention maps of convolutions, and the loss that draws a student's to its tutors' (RNAS-CL, section 3.1, eq. 1)."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor


def attention_map(activation: Tensor) -> Tensor:
    """F(A) = sum over channels of A^2: [N, C, H, W] to [N, H, W], in float32 (RNAS-CL, section 3.1)."""
    return activation.float().square().sum(1)


def unit_maps(maps: Iterable[Tensor], size: int) -> Tensor:
    """Attention maps [N, H_i, W_i], interpolated to ``size`` x ``size`` and l2-normalised: [N, L, size * size].

    Neighbours of one resolution are interpolated together. A map that is zero everywhere stays zero.
    """
    grouped: list[list[Tensor]] = []
    for one in maps:
        if grouped and grouped[-1][0].shape == one.shape:
            grouped[-1].append(one)
        else:
            grouped.append([one])
    common = [_interpolated(torch.stack(group, 1), size).flatten(2) for group in grouped]
    return F.normalize(torch.cat(common, 1), dim=2)


def _interpolated(maps: Tensor, size: int) -> Tensor:
    """[N, L, H, W] to [N, L, size, size], bilinear."""
    if maps.shape[2:] == (size, size):
        return maps
    return F.interpolate(maps, (size, size), mode="bilinear", align_corners=False)


def distances(student: Tensor, teacher: Tensor) -> Tensor:
    """The l2 distance of every pair of unit maps: [N, n_s, P] and [N, n_t, P] to [N, n_s, n_t].

    ||a - b||^2 = ||a||^2 + ||b||^2 - 2 a.b: one batched matrix product, where pairs would be n_s * n_t differences
    of P pixels. The norms are 1, or 0 of a map without activation. The floor keeps the gradient of the root finite;
    distances below 1e-3 read 1e-3.
    """
    with torch.autocast(student.device.type, enabled=False):  # the terms cancel: bf16 would leave nothing
        a, b = student.float(), teacher.float()
        squares = a.square().sum(2)[:, :, None] + b.square().sum(2)[:, None]  # [N, n_s, n_t]
        return (squares - 2 * a @ b.transpose(1, 2)).clamp_min(1e-6).sqrt()


def attention_loss(student: Tensor, teacher: Tensor, g: Tensor) -> Tensor:
    """L_attn = 1 / (n_s n_t) sum_ij g_ij ||F(A_s^i) - F(A_t^j)||_2, a mean over the batch: RNAS-CL, eq. 1.

    Args:
        student, teacher: unit maps [N, n_s, P] and [N, n_t, P] of :func:`unit_maps`.
        g: weight of every teacher layer for every student layer [n_s, n_t].
    """
    return (g * distances(student, teacher).mean(0)).sum() / g.numel()


def tutored_loss(student: Tensor, tutors: Tensor, n_t: int) -> Tensor:
    """Eq. 1 at one-hot g, where only each student layer's own tutor counts: maps [N, n_s, P] both.

    ``n_t`` is the number of layers that the tutors were chosen from: it keeps the scale that the loss had in
    the search.
    """
    squared = (student - tutors).square().sum(2)  # [N, n_s]
    return squared.clamp_min(1e-6).sqrt().mean() / n_t
