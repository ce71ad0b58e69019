"""How far an attack on a batch has come: it reports that by :func:`pulse`, and a progress bar may listen.

AutoAttack takes minutes for a batch, and its images are all done at the end.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from threading import Lock

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


class Stopped(Exception):
    """The attack is not needed any more: another one failed, or the program was interrupted."""


class Meter:
    """Counts the images that attacks have done, and tells ``progress``; within a batch at most once a second.

    Several threads may attack at the same time: ``progress`` is called by one of them at a time.

    Args:
        done: images that are done already, of ``total``.
        scale: how many processes do as much as this one.
    """

    def __init__(self, progress: Callable[[int, int], None], done: int, total: int, *, scale: int = 1) -> None:
        self.progress, self.total, self.scale = progress, total, scale
        self.done, self.reported, self.at = float(done), done, time.monotonic()
        self.stopped, self.lock = False, Lock()

    def part(self, n: int) -> Part:
        """The listener for an attack on a batch of ``n`` images."""
        return Part(self, n)

    def stop(self) -> None:
        """Let all attacks stop at their next step, with :class:`Stopped`."""
        self.stopped = True

    def add(self, images: float, every: float) -> None:
        """Count ``images`` more, and report if the last report was ``every`` seconds ago."""
        with self.lock:
            self.done += self.scale * images
            whole = min(int(self.done + 1e-6), self.total)
            if whole > self.reported and time.monotonic() - self.at >= every:
                self.reported, self.at = whole, time.monotonic()
                self.progress(whole, self.total)


class Part:
    """A batch of ``n`` images, of which ``counted`` are done."""

    def __init__(self, meter: Meter, n: int) -> None:
        self.meter, self.n, self.counted = meter, n, 0.0

    def __call__(self, share: float) -> None:
        if self.meter.stopped:
            raise Stopped
        more = max(share * self.n - self.counted, 0.0)
        self.counted += more
        self.meter.add(more, EVERY)

    def finish(self) -> None:
        """Count the whole batch, and report it."""
        self.meter.add(self.n - self.counted, 0.0)
        self.counted = self.n
