"""One evaluation by several processes, which torchrun or ``accelerate launch`` started, on one machine or many."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

import torch.distributed as dist

from zoo.system.errors import UsageError

T = TypeVar("T")
PATIENCE = timedelta(days=30)  # how long a process waits for one with more to do


def alone() -> bool:
    """Whether this process is the only one.

    Raises:
        UsageError: ``WORLD_SIZE`` says that there are others, and the other variables do not say where.
    """
    size = os.environ.get("WORLD_SIZE", "1")
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if size != "1" and missing:
        raise UsageError(
            f"WORLD_SIZE is '{size}' and {missing[0]} is not set: start the processes with torchrun, "
            "or unset WORLD_SIZE for one alone"
        )
    return size == "1"


@contextmanager
def joined() -> Iterator[bool]:
    """Inside, this process and the others can exchange results; False if it is the only one.

    Raises:
        UsageError: as :func:`alone`.
    """
    if alone() or dist.is_initialized():  # the same processes cannot meet twice
        yield not alone()
        return
    dist.init_process_group("gloo", timeout=PATIENCE)
    try:
        yield True
    finally:
        dist.destroy_process_group()


def place() -> tuple[int, int]:
    """The number of this process, from 0, and how many there are."""
    return dist.get_rank(), dist.get_world_size()


def gathered(mine: T) -> list[T]:
    """What every process gives, in their order; all must call this."""
    everyone = [mine] * dist.get_world_size()
    dist.all_gather_object(everyone, mine)
    return everyone
