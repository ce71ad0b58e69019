"""The Square attack: random search with square patches, from logits alone. Andriushchenko et al. 2020, "Square Attack:
a query-efficient black-box adversarial attack via random search", Algorithms 1 to 3.

The attack only calls ``model(x)``, so exported engines can be attacked like any network. It does not keep the returned
logits, so the model may reuse its output buffer.
"""

from __future__ import annotations

from bisect import bisect_left
from functools import cache

import torch
from torch import Tensor

from zoo.attacks.ball import Ball, norm_of
from zoo.attacks.batch import survivors
from zoo.attacks.foresight import Foresight, is_open
from zoo.attacks.inputs import Kind, Model, Norm, attack, generator
from zoo.attacks.losses import margin
from zoo.attacks.pulse import pulse

# Queries, of 10,000, after which the area of the squares is halved.
HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
TILES = 5  # the l2 attack starts from a grid of 5 x 5 tiles


@attack("square", Kind(gradients=False, queries=True, climbs=False))
def square(
    model: Model,
    x: Tensor,
    y: Tensor,
    *,
    eps: float,
    norm: Norm = "linf",
    queries: int = 5000,
    p_init: float = 0.8,
    seed: int = 0,
    only: Tensor | None = None,
) -> Tensor:
    """Random search that keeps a change unless it raises the margin of the correct class.

    >>> model, x = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 4)).eval(), torch.rand(2, 3, 4, 4)
    >>> y = model(x).argmax(1)
    >>> model(square(model, x, y, eps=0.5, queries=50)).argmax(1) == y
    tensor([False, False])

    Ties of the correct class with another count as misclassified. Broken images are not queried again (except for a
    few that fill the batch). The random numbers of an image depend only on the seed and on its position in the
    batch.

    Args:
        model: any function of images [N, C, H, W] in [0, 1] to logits [N, K], in the type of the images.
        x: images [N, C, H, W]; y: labels [N].
        queries: the total number of model calls; the first is on the original images.
        p_init: the fraction of the pixels that the first squares change.
        only: the images to attack, bool [N]; each finds what it finds in a full batch. The others are returned as they
            are, except for a few that fill the batch.

    Raises:
        UsageError: an argument is not as above, or the model is in train mode.
    """
    source = generator(seed, "square", x.device)
    propose = _propose_linf if norm == "linf" else _propose_l2
    result, index, shape = x.clone(), torch.arange(len(x), device=x.device), x.shape
    if only is not None and (keep := survivors(~only)) is not None:
        index, x, y = index[keep], x[keep], y[keep]
        if not len(index):
            return result
    ball, best, least = Ball(x, eps, norm), x.clone(), _score(model(x), y)  # best [n, C, H, W], least [n]
    foresight = Foresight(model, len(x), x.device)
    for query in range(1, queries):
        pulse(query / queries)
        keep = survivors(least <= 0)
        if keep is not None:
            result[index] = best
            index, y, ball, best, least = index[keep], y[keep], ball.select(keep), best[keep], least[keep]
            foresight.select(keep)
            if not len(index):
                return result
        if query == 1:
            candidate = (_stripes if norm == "linf" else _tiles)(ball, shape, index, source)
        else:
            candidate = propose(ball, best, shape, index, side_at(p_init, query, queries, x), source)
        worthwhile = foresight.worthwhile(candidate, best)
        score = _query(model, candidate, y, None if is_open(query) else worthwhile)
        # The start replaces the image at any margin, because the search is defined to begin there. The paper requires
        # a smaller margin; here an equal one is enough, because the search must cross plateaus of quantised logits.
        better = (score <= least) | ((least > 0) & (query == 1))
        best[better] = candidate[better]
        gained, least = score < least, torch.where(better, score, least)
        if is_open(query):
            foresight.learn(gained, worthwhile, best, y)
    result[index] = best
    return result


def _query(model: Model, candidate: Tensor, y: Tensor, asked: Tensor | None) -> Tensor:
    """The margins [N] of the candidates [N, C, H, W] that are asked, bool [N] or None for all; of others infinity."""
    if asked is None:
        return _score(model(candidate), y)
    score, index = torch.full_like(asked, torch.inf, dtype=candidate.dtype), asked.nonzero().squeeze(1)
    if len(index):
        score[index] = _score(model(candidate[index]), y[index])
    return score


def _score(z: Tensor, y: Tensor) -> Tensor:
    """The margin to minimise, [N]; NaN becomes -inf, which is misclassified."""
    return margin(z, y).nan_to_num(-torch.inf, torch.inf, -torch.inf)


def side_at(p_init: float, query: int, queries: int, x: Tensor) -> int:
    """The side of the squares at a query: their area is a fraction p of the image, which is halved at HALVINGS."""
    p = p_init / 2 ** bisect_left(HALVINGS, query * 10_000 // queries)
    h, w = x.shape[2:]
    return min(max(round((p * h * w) ** 0.5), 1), h, w)


def _signs(shape: tuple[int, ...], source: torch.Generator, like: Tensor) -> Tensor:
    draws = torch.randint(0, 2, shape, generator=source, device=like.device)
    return draws.to(like.dtype).mul_(2).sub_(1)


Window = tuple[Tensor, Tensor, Tensor, Tensor]  # broadcasts to [n, C, side, side]: indexes a square of each image


def _window(top: Tensor, left: Tensor, side: int, channels: int) -> Window:
    """The square of each image whose first row and column are top and left, int64 [n] each."""
    span = torch.arange(side, device=top.device)
    return (
        torch.arange(len(top), device=top.device)[:, None, None, None],
        torch.arange(channels, device=top.device)[:, None, None],
        (top[:, None] + span)[:, None, :, None],
        (left[:, None] + span)[:, None, None, :],
    )


def _random_window(shape: torch.Size, index: Tensor, side: int, source: torch.Generator) -> Window:
    """A square at a uniformly random position in each image."""
    n, c, h, w = shape
    top = torch.randint(0, h - side + 1, (n,), generator=source, device=index.device)
    left = torch.randint(0, w - side + 1, (n,), generator=source, device=index.device)
    return _window(top[index], left[index], side, c)


def _stripes(ball: Ball, shape: torch.Size, index: Tensor, source: torch.Generator) -> Tensor:
    """Vertical stripes of +-eps, one pixel wide."""
    n, c, _, w = shape
    up = _signs((n, c, 1, w), source, ball.x)[index] > 0
    return torch.where(up, ball.upper, ball.lower)


def _propose_linf(
    ball: Ball, best: Tensor, shape: torch.Size, index: Tensor, side: int, source: torch.Generator
) -> Tensor:
    """Algorithm 2: in a square of each image, each channel moves to one end of the ball."""
    square = _random_window(shape, index, side, source)
    up = _signs((*shape[:2], 1, 1), source, best)[index] > 0  # [n, C, 1, 1]
    candidate = best.clone()
    candidate[square] = torch.where(up, ball.upper[square], ball.lower[square])
    return candidate


def _bump(height: int, width: int) -> Tensor:
    """eta^(h1, h2): sum of 1 / (n + 1 - k)^2, n = h1 // 2, over k from 0 to how far from the edge a pixel is."""
    n = height // 2
    rows = (torch.arange(height) - height // 2).abs()
    columns = (torch.arange(width) - width // 2).abs()
    inside = n - torch.maximum(rows[:, None], columns[None, :])  # M(r, s), at least 0
    sums = (1 / (n + 1 - torch.arange(n + 1, dtype=torch.float64)) ** 2).cumsum(0)
    return sums[inside]  # [height, width]


@cache
def pattern(side: int) -> Tensor:
    """The change eta that the l2 attack makes to a square: two bumps of opposite sign side by side, of norm 1.

    Returns float64 [side, side].
    """
    half = side // 2
    eta = torch.cat([_bump(side, half), -_bump(side, side - half)], dim=1)
    return eta / eta.norm()


def _patterns(shape: torch.Size, index: Tensor, side: int, source: torch.Generator, like: Tensor) -> Tensor:
    """eta for each image, upright or transposed, with a sign for each channel: [n, C, side, side]."""
    eta = pattern(side).to(like)
    turned = (_signs((shape[0], 1, 1, 1), source, like) > 0)[index]
    return _signs((*shape[:2], 1, 1), source, like)[index] * torch.where(turned, eta.T, eta)


def _tiles(ball: Ball, shape: torch.Size, index: Tensor, source: torch.Generator) -> Tensor:
    """A grid of patterns, scaled to norm eps."""
    _, c, h, w = shape
    side = max(min(h, w) // TILES, 1)
    down, across = min(TILES, h // side), min(TILES, w // side)
    first_row, first_column = (h - down * side) // 2, (w - across * side) // 2
    delta = torch.zeros_like(ball.x)
    for i in range(down):
        for j in range(across):
            top, left = torch.full_like(index, first_row + i * side), torch.full_like(index, first_column + j * side)
            delta[_window(top, left, side, c)] = _patterns(shape, index, side, source, delta)
    return _on_sphere(ball, delta)


def _propose_l2(
    ball: Ball, best: Tensor, shape: torch.Size, index: Tensor, side: int, source: torch.Generator
) -> Tensor:
    """Algorithm 3: move the norm of delta in a second square, and the unused part of eps, to the first square."""
    side = min(max(side, 3) | 1, (min(shape[2:]) - 1) | 1)  # odd, so that the pattern has a middle
    first = _random_window(shape, index, side, source)  # W_1
    second = _random_window(shape, index, side, source)  # W_2
    delta = best - ball.x
    unused = (ball.eps**2 - norm_of(delta, "l2") ** 2).clamp_(min=0)  # [n, 1, 1, 1]

    before = delta[first]  # [n, C, side, side]
    delta[first] = 0
    moved = _squared_norm(before, delta[second])
    delta[second] = 0
    new = _patterns(shape, index, side, source, delta) + before / _channel_norm(before).clamp_min(1e-12)
    delta[first] = new * ((unused / shape[1] + moved).sqrt() / _channel_norm(new).clamp_min(1e-12))
    return _on_sphere(ball, delta)


def _squared_norm(first: Tensor, rest_of_second: Tensor) -> Tensor:
    """The squared norm of each channel of delta in the union of both squares, [n, C, 1, 1]."""
    return _channel_norm(first) ** 2 + _channel_norm(rest_of_second) ** 2


def _channel_norm(delta: Tensor) -> Tensor:
    return torch.linalg.vector_norm(delta, dim=(2, 3), keepdim=True)


def _on_sphere(ball: Ball, delta: Tensor) -> Tensor:
    """The image plus delta scaled to norm eps, clamped to the box."""
    return (ball.x + delta * (ball.eps / norm_of(delta, "l2").clamp_min(1e-12))).clamp_(0, 1)
