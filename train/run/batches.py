"""The batches of a run: the images of a step, and the generators of everything that is random in it."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from zoo.attacks.inputs import generator
from zoo.system.errors import UsageError
from zoo.train.data.images import InMemory, Streamed
from zoo.train.methods.method import Batch
from zoo.train.teachers.cache import Versions


class Batches:
    """This process's shares of the batches of a run. Any of them can be drawn again by itself: what is random depends
    on the seed, the attempt (rollbacks so far) and the step alone.

    Every process draws the random numbers of the whole batch and takes its own rows. The result is the same for any
    number of processes.

    Args:
        source: the training images; a method may put others in their place. With cached answers, images are taken from
            ``versions``, which is set later.
        size: images of a batch, in all processes; a multiple of ``processes``.
        process: the number of this process.

    Raises:
        UsageError: the images do not fill a batch.
    """

    def __init__(
        self, source: InMemory | Streamed, size: int, seed: int, *, process: int = 0, processes: int = 1
    ) -> None:
        if len(source) < size:
            raise UsageError(f"{len(source)} training images do not fill a batch of {size}: lower train.batch_size")
        self.source, self.size, self.seed = source, size, seed
        self.process, self.processes = process, processes
        self.versions: Versions | None = None
        self._shuffled: tuple[tuple[int, int], Tensor] | None = None

    @property
    def share(self) -> int:
        """Images of a batch for each process."""
        return self.size // self.processes

    @property
    def per_epoch(self) -> int:
        """Batches of an epoch. The images that are left over are others in each epoch."""
        return len(self.source) // self.size

    @property
    def device(self) -> torch.device:
        return self.source.labels.device

    def generator(self, attempt: int, *key: int) -> torch.Generator:
        """A generator for ``key``, such as a step, in this attempt."""
        return generator(self.seed, f"training {(attempt, *key)}", self.device)

    def batch(self, step: int, attempt: int) -> Batch:
        """This process's share of batch ``step``."""
        index, seeded = self._drawn(step, attempt)
        rows = None
        if self.versions is None:
            x, y = self.source.augmented(index, seeded)
            self.source.expect(*self._drawn(step + 1, attempt))
        else:
            rows = self.versions.rows(index, seeded)
            x, y = self.versions[rows]
        noise = torch.empty_like(x).uniform_(-1, 1, generator=seeded)
        # Interleaved: the leading parts of all shares together are the leading part of the batch, as a search needs.
        mine = slice(self.process, None, self.processes)
        return Batch(x[mine], y[mine], noise[mine], None if rows is None else rows[mine])

    def _drawn(self, step: int, attempt: int) -> tuple[Tensor, torch.Generator]:
        """The indices of the images of batch ``step``, and the generator for everything random in it."""
        epoch, place = divmod(step, self.per_epoch)
        if self._shuffled is None or self._shuffled[0] != (attempt, epoch):
            seeded = self.generator(attempt, 0, epoch)
            order = torch.randperm(len(self.source), generator=seeded, device=self.device)
            self._shuffled = (attempt, epoch), order
        _, order = self._shuffled
        return order[place * self.size : (place + 1) * self.size], self.generator(attempt, 1, step)

    def samples(self, n: int = 512) -> Iterator[Tensor]:
        """Batches of ``n`` augmented training images in all, drawn by the run's seed; none is much smaller than the
        others."""
        seeded = torch.Generator(self.device).manual_seed(self.seed)
        chosen = torch.randperm(len(self.source), generator=seeded, device=self.device)[:n]
        parts = chosen.tensor_split(-(-len(chosen) // self.share))
        return (self.source.augmented(part, seeded)[0] for part in parts)
