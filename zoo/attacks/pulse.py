"""How far an attack on a batch has come: it reports that by :func:`pulse`, and a progress bar may listen.

AutoAttack takes minutes for a batch, and its images are all done at the end.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

EVERY = 1.0  # seconds between two reports on a batch
Listener = Callable[[float], None]  # the share that is done, from 0 to 1

_LISTENER: ContextVar[Listener | None] = ContextVar("listener", default=None)


def pulse(share: float) -> None:
    """Say what ``share`` of the attack is done."""
    listener = _LISTENER.get()
    if listener is not None:
        listener(share)


@contextmanager
def listening(listener: Listener | None) -> Iterator[None]:
    """Inside, ``listener`` gets the shares of the attack that runs."""
    token = _LISTENER.set(listener)
    try:
        yield
    finally:
        _LISTENER.reset(token)


@contextmanager
def portion(start: float, end: float) -> Iterator[None]:
    """Inside runs a part of the attack: its shares count from ``start`` to ``end`` of the whole."""
    outer = _LISTENER.get()
    with listening(None if outer is None else lambda share: outer(start + share * (end - start))):
        yield
    pulse(end)


def images_done(progress: Callable[[int, int], None], before: int, n: int, total: int) -> Listener:
    """A listener that tells ``progress`` of an attack on ``n`` of ``total`` images, ``before`` of them done already, at
    most once a second."""
    reported, at = 0, time.monotonic()

    def listen(share: float) -> None:
        nonlocal reported, at
        if int(share * n) > reported and time.monotonic() - at >= EVERY:
            reported, at = int(share * n), time.monotonic()
            progress(before + reported, total)

    return listen
