"""Batches attacked at the same time by workers: threads that each compute alone.

PyTorch's threads share each operator, and wait for each other at its end. The operators of a small net take less than a
millisecond. If another process is busy on the same cores, waiting takes far longer than computing: PGD-20 on 500 images
in batches of 50 (14.8 M MACs, two cores, three busy processes beside) took 54 s of processor time with two threads, and
5.6 s with one. Workers wait for each other only at the end. A batch does not depend on the others, so the bits are the
same.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from zoo.attacks.pulse import Meter, Part, listening

T = TypeVar("T")
Work = Callable[[int, np.ndarray], T]  # the number of a batch, and the indices of its images

OURS = ("torch.nn.modules.", "torchvision.", "zoo.")  # layers that keep nothing while they answer
EACH = 32  # with fewer than twice as many images no batch is added
SLOW = 0.02  # s: operators that take longer lose little by waiting, and are shared by threads that would be idle


def equal_parts(n: int, largest: int, *, paired: bool = True) -> list[np.ndarray]:
    """The numbers below ``n`` in order, in parts of at most ``largest`` whose sizes differ by at most one.

    Args:
        paired: their number is even if there are enough images, so that two workers end at the same time. It must not
            depend on how many workers there are, because the noise of an image depends on its batch.
    """
    parts = -(-n // largest)
    if paired and parts % 2 and max(2 * EACH, parts + 1) <= n:
        parts += 1
    return np.array_split(np.arange(n), parts) if n else []


def batches_done(
    work: Work[T], batches: Mapping[int, np.ndarray], meter: Meter, crew: Crew
) -> Generator[tuple[int, T], None, None]:
    """Do ``work`` on each of ``batches``, and yield its number and result as soon as it is done.

    If one fails, or the generator is closed, the other attacks stop at their next step.
    """

    def done(number: int) -> tuple[Part, T]:
        part = meter.part(len(batches[number]))
        with listening(part):
            return part, work(number, batches[number])

    def in_order() -> Generator[tuple[int, tuple[Part, T]], None, None]:
        for number in batches:
            yield number, done(number)

    def at_once() -> Generator[tuple[int, tuple[Part, T]], None, None]:
        waiting, running = iter(batches), dict[Future[tuple[Part, T]], int]()
        with ThreadPoolExecutor(crew.workers, initializer=torch.set_num_threads, initargs=(crew.threads,)) as pool:
            try:
                while True:
                    free = range(crew.workers - len(running))
                    running |= {pool.submit(done, number): number for _, number in zip(free, waiting, strict=False)}
                    if not running:
                        return
                    for future in wait(running, return_when=FIRST_COMPLETED).done:
                        yield running.pop(future), future.result()
            finally:
                meter.stop()

    with closing(in_order() if min(crew.workers, len(batches)) < 2 else at_once()) as results:
        for number, (part, result) in results:
            yield number, result
            part.finish()  # when the caller has stored it


@dataclass(frozen=True)
class Crew:
    """How many batches are attacked at the same time, each by how many of PyTorch's threads."""

    workers: int
    threads: int

    @classmethod
    def of(cls, model: nn.Module, x: Tensor, batches: int, size: int) -> Crew:
        """The crew for an attack on ``model`` in ``batches`` of ``size`` images, with as many threads as PyTorch has.

        Where one is enough, as on a GPU, nothing changes. A worker has one thread, or, if the operators of the net are
        slow, its share of all. A net with layers of others has one worker, because these may keep something while they
        answer.

        Args:
            x: a few images [N, C, H, W] to time the net with.
        """
        available = torch.get_num_threads()
        if available == 1 or x.device.type != "cpu":
            return cls(1, available)
        modules = list(model.modules())
        hooked = any(one._forward_hooks or one._forward_pre_hooks for one in modules)
        ours = not hooked and all(type(one).__module__.startswith(OURS) for one in modules)
        workers = min(available, max(batches, 1)) if ours else 1
        with limited(1), torch.no_grad():
            model(x.clone())
            since = time.perf_counter()
            model(x.clone())
            seconds = (time.perf_counter() - since) * size / len(x) / len(modules)
        return cls(workers, available // workers if seconds > SLOW else 1)


@contextmanager
def limited(threads: int) -> Iterator[None]:
    """Inside, PyTorch computes with so many threads in this thread, and in those that begin to compute meanwhile."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
