"""Several batches are attacked at the same time, and nothing else changes."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_fold import SPECS
from torch import nn

from zoo.attacks.pulse import Meter, Stopped, pulse
from zoo.evaluation import workers
from zoo.evaluation.evaluate import evaluate, prepare
from zoo.evaluation.protocols import protocol
from zoo.evaluation.workers import Crew, batches_done, equal_parts, limited
from zoo.models import build

N = 60
BATCHES = {start: np.arange(start, start + 10) for start in range(0, N, 10)}


def silent(done: int, total: int) -> None:
    pass


@pytest.fixture(autouse=True)
def two_threads():
    with limited(2):
        yield


@pytest.fixture
def pixels(split):
    return split.images[:N], split.labels[:N]


@given(st.integers(0, 700), st.integers(1, 300), st.booleans())
def test_parts_are_equal_and_an_even_number_of_them_where_that_costs_little(n, largest, paired):
    parts = equal_parts(n, largest, paired=paired)
    sizes = [len(part) for part in parts]
    assert np.array_equal(np.concatenate([*parts, []]), np.arange(n))
    assert all(0 < size <= largest for size in sizes)
    assert max(sizes, default=0) - min(sizes, default=0) <= 1
    fewest = -(-n // largest)
    assert len(parts) - fewest in ((0, 1) if paired else (0,))
    assert not paired or n < 64 or largest == 1 or len(parts) % 2 == 0


def test_images_may_be_attacked_one_by_one(fragile, pixels):
    images, labels = (np.concatenate([one, one[:5]]) for one in pixels)  # 65: odd, and enough for two workers
    few = protocol("fgsm").model_copy(update={"n": 65})
    assert len(evaluate(fragile, images, labels, few, batch_size=1)) == 65


WEAK = {  # each breaks some of the images
    "pgd20": {"steps": 3, "eps": 2 / 255, "step": 1 / 255},
    "autoattack": {"steps": 3, "queries": 5, "eps": 2 / 255},
    "square": {"attack": "square", "steps": None, "step": None, "loss": None, "queries": 30, "eps": 32 / 255},
}


@pytest.mark.parametrize("name", WEAK)
def test_two_workers_find_the_bits_and_counts_of_one(name, fragile, pixels):
    weak = protocol("pgd20" if name == "square" else name).model_copy(update={"n": N, **WEAK[name]})
    found, counts = [], [{}, {}]
    for threads, count in zip((1, 2), counts, strict=True):
        with limited(threads):
            found.append(evaluate(fragile, *pixels, weak, batch_size=10, counts=count))
    assert 0 < found[0].sum() < N
    assert np.array_equal(*found)
    assert counts[0] == counts[1]


def test_workers_are_threads_of_one_thread_and_the_caller_gets_its_own_back():
    seen: set[tuple[int, int]] = set()
    both = threading.Barrier(2, timeout=30)

    def work(number: int, index: np.ndarray) -> int:
        both.wait()  # fails unless two are at work at once
        seen.add((threading.get_ident(), torch.get_num_threads()))
        return number

    done = list(batches_done(work, BATCHES, Meter(silent, 0, N), Crew(2, 1)))
    assert sorted(done) == [(number, number) for number in BATCHES]
    assert {threads for _, threads in seen} == {1}
    assert threading.get_ident() not in {ident for ident, _ in seen}


def test_the_number_of_threads_is_given_back(fragile, pixels):
    weak = protocol("pgd20").model_copy(update={"n": N, "steps": 1})
    evaluate(fragile, *pixels, weak, batch_size=10)
    assert torch.get_num_threads() == 2


def test_progress_counts_every_image_once(fragile, pixels):
    told: list[int] = []
    weak = protocol("pgd20").model_copy(update={"n": N, "steps": 1})
    evaluate(fragile, *pixels, weak, batch_size=10, progress=lambda done, total: told.append(done))
    assert told == sorted(set(told))
    assert told[-1] == N


class Endless:
    """Work that ends in batch ``last``, by ``error`` if there is one; the others go on until they are stopped."""

    def __init__(self, last: int, error: type[BaseException] | None = None) -> None:
        self.last, self.error = last, error
        self.stopped, self.others = threading.Event(), threading.Event()

    def __call__(self, number: int, index: np.ndarray) -> int:
        if number == self.last:
            self.others.wait(30)
            if self.error:
                raise self.error
            return number
        self.others.set()
        try:
            while True:
                pulse(0.5)
        except Stopped:
            self.stopped.set()
            raise


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_if_one_fails_the_others_stop_at_their_next_step(error):
    work = Endless(10, error)
    with pytest.raises(error):
        list(batches_done(work, BATCHES, Meter(silent, 0, N), Crew(2, 1)))
    assert work.stopped.is_set()


def test_no_worker_goes_on_when_its_results_are_not_wanted_any_more():
    work = Endless(0)
    results = batches_done(work, BATCHES, Meter(silent, 0, N), Crew(2, 1))
    assert next(results) == (0, 0)
    results.close()
    assert work.stopped.is_set()


class Foreign(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)


def test_a_net_with_layers_of_others_has_one_worker(fragile):
    x = torch.rand(8, 3, 32, 32)
    assert Crew.of(fragile, x, 6, 10) == Crew(2, 1)
    assert Crew.of(Foreign(fragile), x, 6, 10) == Crew(1, 1)
    for hook in (fragile.head.register_forward_hook, fragile.head.register_forward_pre_hook):
        hooked = hook(lambda *given: None)
        assert Crew.of(fragile, x, 6, 10).workers == 1
        hooked.remove()


@pytest.mark.parametrize("name", SPECS)
def test_every_architecture_of_ours_gets_all_workers(name):
    spec = SPECS[name]
    model, x = prepare(build(spec)), torch.rand(2, 3, spec.image_size, spec.image_size)
    assert Crew.of(model, x, 6, 2).workers == 2


def test_slow_operators_are_shared_by_threads_that_would_be_idle(fragile, monkeypatch):
    monkeypatch.setattr(workers, "SLOW", 0.0)
    x = torch.rand(8, 3, 32, 32)
    assert Crew.of(fragile, x, 6, 10) == Crew(2, 1)
    assert Crew.of(fragile, x, 1, 10) == Crew(1, 2)
    with limited(1):
        assert Crew.of(fragile, x, 6, 10) == Crew(1, 1)
