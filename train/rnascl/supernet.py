"""The supernet of a search space: one convolution per block at the largest width, with a masked output (FBNetV2)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from zoo.models import Classifier, build
from zoo.specs import StagedSpec
from zoo.train.spaces.rnascl import SearchSpace


class SuperNet(Classifier):
    """The largest network of ``space``, each block's output multiplied by a mask over its channels.

    With weights g_k of the choices f_k, a block outputs sum_k g_k mask_k * z: a channel has the weight of the choices
    that contain it (FBNetV2, Wan et al. 2020, eq. 5; RNAS-CL, section 3.3). One forward pass at the largest width
    computes all choices. The masks are an argument of the call, by default the buffer ``masks``.
    """

    masks: Tensor
    prefix: Tensor

    def __init__(self, space: SearchSpace) -> None:
        largest = build(space.largest)
        super().__init__(largest.spec, largest.features, largest.head)
        self.space = space
        self.widest = [max(choices) for choices in space.blocks]
        # Row k of a block is 1 on its first f_k channels; each block has its own columns.
        rows = [
            torch.tensor([[float(channel < f) for channel in range(max(choices))] for f in choices])
            for choices in space.blocks
        ]
        self.register_buffer("prefix", torch.block_diag(*rows), persistent=False)  # [sum K_b, sum C_b]
        self.register_buffer("masks", torch.ones(sum(self.widest)), persistent=False)

    def mask(self, g: Sequence[Tensor]) -> Tensor:
        """The concatenated masks of all blocks [sum C_b] for weights g_b [K_b] of the choices of each block."""
        return torch.cat(list(g)) @ self.prefix

    def choose(self, choices: Sequence[int]) -> None:
        """Set the masks for choice ``choices[b]`` in each block b, until the next call."""
        self.masks.copy_(self.mask(self.one_hot(choices)))

    def one_hot(self, choices: Sequence[int]) -> list[Tensor]:
        """One-hot weights g_b [K_b] of the choice in each block."""
        return [
            torch.eye(len(known), device=self.prefix.device)[choice]
            for known, choice in zip(self.space.blocks, choices, strict=True)
        ]

    def penultimate(self, x: Tensor, masks: Tensor | None = None) -> Tensor:
        """Images [N, 3, H, W] in [0, 1] to the input [N, C] of the head."""
        stem, *blocks, pool = self.features.children()
        x = stem((x - self.mean) / self.std)
        for block, mask in zip(blocks, (self.masks if masks is None else masks).split(self.widest), strict=True):
            x = block(x) * mask.to(x.dtype)[:, None, None]
        return pool(x)

    def forward(self, x: Tensor, masks: Tensor | None = None) -> Tensor:
        """Images [N, 3, H, W] in [0, 1] and concatenated masks [sum C_b] to logits [N, classes]."""
        return self.head(self.penultimate(x, masks))

    @torch.no_grad()
    def freeze(self, choices: Sequence[int]) -> tuple[StagedSpec, dict[str, Tensor]]:
        """The static architecture of the choices, and its weights: the leading channels of every layer."""
        widths = [known[choice] for known, choice in zip(self.space.blocks, choices, strict=True)]
        spec = self.space.spec(widths)
        frozen = build(spec)
        weights = self.state_dict()
        for key, target in frozen.state_dict().items():
            target.copy_(weights[key][tuple(slice(size) for size in target.shape)])
        return spec, frozen.state_dict()


def expected_macs(space: SearchSpace, g: Sequence[Tensor]) -> Tensor:
    """Expected multiply-accumulates of the space under weights g_b [K_b], a differentiable scalar.

    The MACs of a convolution are bilinear in its input and output width, and the choices of blocks are independent. So
    the expected widths give the exact expectation.
    """
    before, macs = torch.tensor(float(space.stem)), torch.tensor(float(_stem_macs(space)))
    before, macs = before.to(g[0]), macs.to(g[0])
    for choices, weights, resolution in zip(space.blocks, g, _resolutions(space), strict=True):
        width = weights @ torch.tensor(choices, dtype=weights.dtype, device=weights.device)
        macs = macs + before * width * 9 * resolution**2
        before = width
    return macs + before * space.classes


def _stem_macs(space: SearchSpace) -> int:
    return 3 * space.stem * 9 * space.stem_resolution**2


def _resolutions(space: SearchSpace) -> Iterator[int]:
    for depth, resolution in zip(space.depths, space.resolutions, strict=True):
        yield from [resolution] * depth


State = tuple[int, float, tuple[int, ...]]  # MACs, log-probability, choices so far


def most_probable(space: SearchSpace, logits: Sequence[Tensor], budget: int) -> list[int]:
    """The most probable choices, one per block, whose network has at most ``budget`` MACs.

    This is dynamic programming over the blocks. The states of a block are its widths, each with its Pareto front of
    MACs and log-probability. Costs in the same ten-thousandth of the budget share one entry, the more probable.

    Raises:
        ValueError: the smallest network is not within the budget.
    """
    log_p = [one.detach().double().log_softmax(0).tolist() for one in logits]
    grain = max(1, budget // 10_000)
    states: dict[int, list[State]] = {space.stem: [(_stem_macs(space), 0.0, ())]}
    for choices, chances, resolution in zip(space.blocks, log_p, _resolutions(space), strict=True):
        following: dict[int, list[State]] = {}
        for choice, (width, chance) in enumerate(zip(choices, chances, strict=True)):
            reached = [
                (macs + before * width * 9 * resolution**2, p + chance, (*taken, choice))
                for before, front in states.items()
                for macs, p, taken in front
            ]
            following[width] = _undominated((one for one in reached if one[0] <= budget), grain)
        states = following
    ends = [
        (p, -macs, taken)
        for width, front in states.items()
        for macs, p, taken in front
        if macs + width * space.classes <= budget
    ]
    if not ends:
        raise ValueError(f"no network of space {space.name} costs at most {budget:,} MACs")
    return list(max(ends)[2])


def _undominated(reached: Iterable[State], grain: int) -> list[State]:
    """The states that are more probable than all cheaper ones; only the most probable within one grain of cost."""
    front: list[State] = []
    for state in sorted(reached, key=lambda state: (state[0], -state[1])):
        if front and state[1] <= front[-1][1]:
            continue
        if front and state[0] // grain == front[-1][0] // grain and len(front) > 1:
            front.pop()
        front.append(state)
    return front
