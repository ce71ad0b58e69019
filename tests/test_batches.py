from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from zoo.datasets.base import Split
from zoo.system.errors import UsageError
from zoo.train.data.images import InMemory
from zoo.train.run.batches import Batches
from zoo.train.teachers.cache import Versions

COUNT = 50
PIXELS = np.random.default_rng(0).integers(0, 256, (COUNT, 8, 8, 3), dtype=np.uint8)
SOURCE = InMemory(Split("train", PIXELS, np.arange(COUNT)), torch.device("cpu"))  # each image has a label of its own
VERSIONS = Versions(SOURCE, 3)


def batches(*, size: int = 12, seed: int = 0, cached: bool = False, **place: int) -> Batches:
    made = Batches(SOURCE, size, seed, **place)
    made.versions = VERSIONS if cached else None
    return made


def same(one, other) -> bool:
    return all(a is b is None or torch.equal(a, b) for a, b in zip(one, other, strict=True))


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 2)), min_size=1, max_size=5), st.booleans())
def test_a_batch_depends_on_its_step_and_attempt_and_not_on_what_was_drawn_before(asked, cached):
    together = batches(cached=cached)
    for step, attempt in asked:
        assert same(together.batch(step, attempt), batches(cached=cached).batch(step, attempt))


@given(st.integers(0, 9), st.sampled_from([1, 2, 3, 4, 6, 12]), st.booleans())
def test_the_shares_of_all_processes_are_the_batch_of_one(step, processes, cached):
    whole = batches(cached=cached).batch(step, 0)
    for process in range(processes):
        one = batches(cached=cached, process=process, processes=processes)
        assert len(one.batch(step, 0).x) == one.share == 12 // processes
        assert same(one.batch(step, 0), [part if part is None else part[process::processes] for part in whole])


@pytest.mark.parametrize("cached", [False, True])
def test_an_epoch_has_no_image_twice_and_every_epoch_seed_and_attempt_has_another_order(cached):
    def epoch(number: int, attempt: int = 0, seed: int = 0) -> tuple[int, ...]:
        drawn = batches(cached=cached, seed=seed)
        steps = range(number * drawn.per_epoch, (number + 1) * drawn.per_epoch)
        return tuple(label for step in steps for label in drawn.batch(step, attempt).y.tolist())

    orders = [epoch(0), epoch(1), epoch(0, attempt=1), epoch(0, seed=1)]
    assert [len(set(order)) for order in orders] == [48] * 4  # two of the fifty do not fill a batch
    assert len(set(orders)) == 4


def test_cached_versions_are_what_the_rows_say():
    x, y, _, rows = batches(cached=True).batch(3, 0)
    assert torch.equal(x, VERSIONS[rows][0])
    assert torch.equal(y, rows % COUNT)


@given(st.integers(12, COUNT))
def test_samples_are_images_of_about_one_size_and_the_same_every_time(n):
    parts = list(batches().samples(n))
    sizes = [len(part) for part in parts]
    assert (sum(sizes), max(sizes) <= 12, max(sizes) - min(sizes) <= 1) == (n, True, True)
    assert torch.equal(torch.cat(parts), torch.cat(list(batches().samples(n))))


def test_images_that_do_not_fill_a_batch_are_refused():
    with pytest.raises(UsageError, match=r"50 training images do not fill a batch of 51: lower train\.batch_size"):
        batches(size=51)


DRAW = """
import torch
from test_batches import batches

for seed, attempt in ((0, 0), (0, 1), (1, 0), (1, 1)):
    for key in ((0, 1), (1, 0), (2, 1, 0)):
        print(torch.rand(2, generator=batches(seed=seed).generator(attempt, *key)).tolist())
"""


def test_random_streams_depend_on_their_keys_and_not_on_the_process(capfd):
    others = os.environ | {"PYTHONHASHSEED": "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1"}
    others["PYTHONPATH"] = os.pathsep.join(sys.path)
    drawn = subprocess.run([sys.executable, "-c", DRAW], env=others, capture_output=True, text=True, check=True)
    exec(DRAW, {})
    assert capfd.readouterr().out == drawn.stdout
    assert len(set(drawn.stdout.splitlines())) == 12
