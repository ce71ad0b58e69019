"""Long runs speak: within a batch, for every part of an attack, and without a terminal too."""

from __future__ import annotations

import itertools
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from zoo.attacks import autoattack, square
from zoo.attacks import pulse as pulses
from zoo.attacks.pulse import Meter, Stopped, listening, portion, pulse
from zoo.cli import output
from zoo.cli.output import Output
from zoo.datasets.base import to_float
from zoo.evaluation.evaluate import evaluate_split, prepare
from zoo.evaluation.protocols import PROTOCOLS

EPS = 8 / 255


@pytest.fixture(scope="module")
def batch(split):
    return to_float(split.images[:8]), torch.from_numpy(np.asarray(split.labels[:8]))


@pytest.mark.parametrize(
    "attack",
    [
        lambda *given: square(*given, eps=EPS, queries=50),
        lambda *given: autoattack(*given, eps=EPS, steps=4, targets=3, queries=20),
    ],
)
def test_an_attack_says_how_far_it_has_come_and_is_the_same_where_nobody_listens(attack, robust, batch):
    shares: list[float] = []
    with listening(shares.append):
        told = attack(prepare(robust), *batch)
    assert len(shares) > 20
    assert shares == sorted(shares)
    assert shares[0] >= 0
    assert shares[-1] <= 1
    assert torch.equal(told, attack(prepare(robust), *batch))


def test_parts_within_parts_count_from_start_to_end():
    shares: list[float] = []
    with listening(shares.append), portion(0.5, 1):
        for k in range(2):
            with portion(k / 2, (k + 1) / 2):
                pulse(0.5)
    assert shares == [0.625, 0.75, 0.875, 1.0, 1.0]
    pulse(0.5)  # nobody listens
    assert len(shares) == 5


@pytest.mark.parametrize(("scale", "expected"), [(1, [11, 12, 14, 16]), (2, [13, 14, 18, 20])])
def test_images_are_counted_once_and_within_a_batch_at_most_every_second(scale, expected, monkeypatch):
    assert pulses.EVERY == 1
    clock = [0.0]
    monkeypatch.setattr(pulses, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    told: list[int] = []
    meter = Meter(lambda done, total: told.append(done), 10, 20, scale=scale)
    first, second = meter.part(4), meter.part(2)
    for now, share in ((2.0, 0.0), (2.0, 0.4), (2.5, 0.6), (3.5, 0.2), (3.6, 1.0)):
        clock[0] = now
        first(share)
    second(0.0)
    first.finish()
    second.finish()
    assert told == expected


def test_attacks_stop_at_their_next_step():
    meter = Meter(lambda done, total: None, 0, 8)
    part = meter.part(8)
    part(0.5)
    meter.stop()
    with pytest.raises(Stopped):
        part(0.6)


def test_an_evaluation_of_one_batch_is_heard_of_within_it(robust, split, monkeypatch):
    monkeypatch.setattr(pulses, "EVERY", 0.0)
    told: list[int] = []
    protocol = PROTOCOLS["autoattack"].model_copy(update={"n": 40, "steps": 3, "queries": 30})
    evaluate_split(robust, split, protocol, progress=lambda done, total: told.append(done))
    assert told == sorted(told)
    assert len(set(told)) > 10
    assert told[-1] == 40


def test_without_a_terminal_a_line_is_written_every_half_minute(capsys, monkeypatch):
    assert output.EVERY == 30
    monkeypatch.setattr(output, "EVERY", 0.02)
    heard_of, deadline = "", time.monotonic() + 20
    with Output().progress() as advance:
        time.sleep(0.1)
        advance("pgd20", 0, 1000)
        advance("pgd20", 250, 1000)
        while "left" not in heard_of and time.monotonic() < deadline:
            time.sleep(0.02)
            heard_of += capsys.readouterr().err
    assert heard_of.startswith("pgd20: 250 of 1,000, about ")
    capsys.readouterr()
    with Output(quiet=True).progress() as advance:
        advance("pgd20", 250, 1000)
        time.sleep(0.1)
    assert capsys.readouterr().err == ""


def test_the_time_left_is_told_from_what_was_done_since(monkeypatch):
    clock = itertools.count(100.0, 10.0)
    monkeypatch.setattr(output.time, "monotonic", lambda: next(clock))
    assert output._line("x", 300, 1000, 0.0, 200) == "x: 300 of 1,000, about 12 min left"
    assert output._line("x", 900, 1000, 100.0, 200) == "x: 900 of 1,000, about 1 s left"
    assert output._line("x", 200, 1000, 0.0, 200) == "x: 200 of 1,000"
    assert output._line("x", 1000, 1000, 0.0, 200) == "x: 1,000 of 1,000"


WRITER = """
import sys, time
from pathlib import Path
from zoo.export.bundle.folder import staged

with staged(Path(sys.argv[1])) as scratch:
    print("writing", flush=True)
    sys.stdin.read()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="nothing is locked there")
def test_a_second_export_into_one_target_is_refused(tmp_path):
    from zoo.export.bundle.folder import check_free, staged
    from zoo.system.errors import UsageError

    final = tmp_path / "bundle"
    command = [sys.executable, "-c", WRITER, str(final)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout is not None
        assert first.stdin is not None
        assert first.stdout.readline() == "writing\n"
        for refuses in (lambda: check_free(final, force=False), lambda: staged(final, force=True).__enter__()):
            with pytest.raises(UsageError, match=f"another export writes '{final}'"):
                refuses()
        first.stdin.close()
    assert first.returncode == 0
    assert final.is_dir()
    check_free(tmp_path / "other", force=False)
