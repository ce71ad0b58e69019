from __future__ import annotations

import json
import os
import stat

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from zoo.cli.app import run
from zoo.cli.sweep import levels
from zoo.datasets.base import Split
from zoo.evaluation.evaluate import evaluate
from zoo.evaluation.protocols import EPS, PROTOCOLS
from zoo.evaluation.statistics import wilson
from zoo.evaluation.sweep import GRIDS, at, sweep
from zoo.models import build
from zoo.specs import StagedSpec
from zoo.system.errors import UsageError
from zoo.system.files import write_atomic
from zoo.weights.tensors import save_weights

PIXEL = 1 / 255


class Brightness(nn.Module):
    """Class 0 where an image's mean is over 100/255, class 1 below: what it takes to flip is known."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.bend(100 * (x.mean((1, 2, 3)) - 100 * PIXEL))

    def bend(self, brighter: torch.Tensor) -> torch.Tensor:
        return torch.stack([brighter, -brighter], 1)


class Trap(Brightness):
    """Class 1 from 106/255, behind a maximum of the loss at 101/255 where small steps stay."""

    def bend(self, brighter: torch.Tensor) -> torch.Tensor:
        above = brighter / (100 * PIXEL)
        return torch.stack([torch.where(above > 6, -1.0, 2 + (above - 1).abs()), torch.zeros_like(above)], 1)


class Valley(Brightness):
    """Class 1 only near 100/255: a step that is too long ends on the other side, in class 0 again."""

    def bend(self, brighter: torch.Tensor) -> torch.Tensor:
        return torch.stack([brighter.abs(), torch.full_like(brighter, 100 * PIXEL)], 1)


def grey(*levels: int, size: int = 8) -> Split:
    """Images of one level each, all labelled 0."""
    images = np.zeros((len(levels), size, size, 3), np.uint8) + np.array(levels, np.uint8)[:, None, None, None]
    return Split("test", images, np.zeros(len(levels), np.int64))


def right(points) -> list[int]:
    return [round(point.accuracy.value * point.accuracy.n) for point in points]


@pytest.mark.parametrize("attack", ["fgsm", "pgd20"])
def test_an_image_falls_at_the_eps_that_it_takes_to_flip_it(attack):
    # On a linear model both attacks are the best there is: one level is broken after the other.
    eps = [0.0, *((level + 0.5) * PIXEL for level in range(6))]
    curve = sweep(Brightness(), grey(90, 101, 102, 103, 104, 105), attacks=[attack], eps=eps)[attack]
    assert right(curve) == [5, 5, 4, 3, 2, 1, 0]  # 90 is wrong already
    assert [point.eps for point in curve] == eps
    assert all(point.accuracy.ci95 == wilson(n, 6) for n, point in zip(right(curve), curve, strict=True))


def test_an_image_broken_at_a_small_eps_is_measured_again_at_a_larger_one():
    curve = sweep(Valley(), grey(104), attacks=["fgsm"], eps=[0, 2 * PIXEL, 4 * PIXEL, 8 * PIXEL])["fgsm"]
    assert right(curve) == [1, 1, 0, 1]  # FGSM steps over the valley


def test_an_eps_at_which_one_step_finds_more_than_twenty_is_flagged():
    for model, found in ((Trap(), True), (Brightness(), False)):
        flags: set[str] = set()
        sweep(model, grey(*[100 if found else 104] * 60), eps=[0, 8 * PIXEL], flags=flags)
        assert ("unreliable" in flags) == found


@given(seed=st.integers(0, 2**16), n=st.integers(1, 12), attack=st.sampled_from(["fgsm", "pgd20", "noise", "apgd50"]))
@settings(max_examples=25)
def test_at_eps_zero_the_accuracy_is_the_clean_one(seed, n, attack):
    rng = np.random.default_rng(seed)
    split = Split("test", rng.integers(0, 256, (10, 4, 4, 3), np.uint8), rng.integers(0, 3, 10))
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 3))
    (point,) = sweep(model, split, attacks=[attack], eps=[0.0], n=n)[attack]
    clean = evaluate(model, split.images, split.labels, PROTOCOLS["clean"].model_copy(update={"n": n}))
    assert point.accuracy.n == len(clean) == min(n, 10)
    assert point.accuracy.value == clean.mean()


def test_at_8_255_a_sweep_measures_what_the_protocols_do(toy):
    torch.manual_seed(0)
    net = build(StagedSpec(stem=4, widths=((4,),), resolutions=(16,)))
    test = toy.split("test")
    curves = sweep(net, test, eps=[EPS], n=60, batch_size=7)
    for name, (point,) in curves.items():
        few = PROTOCOLS[name].model_copy(update={"n": 60})
        assert at(few, EPS) == few
        assert point.accuracy.value == evaluate(net, test.images, test.labels, few, batch_size=7).mean()
        assert point.step == PROTOCOLS[name].step


def test_the_step_grows_with_eps():
    assert [at(PROTOCOLS["pgd20"], eps).step for eps in (4 * PIXEL, EPS, 0.1)] == [PIXEL, 2 * PIXEL, 0.025]
    assert at(PROTOCOLS["fgsm"], 0.1).step is None


def test_the_default_grid_goes_from_0_to_a_tenth_by_way_of_8_255():
    assert all(list(grid) == sorted(set(grid)) for grid in GRIDS.values())
    grid = GRIDS["linf"]
    assert (grid[0], grid[-1]) == (0, 0.1)
    assert EPS in grid


def test_eps_are_sorted_and_repeated_ones_measured_once():
    curves = sweep(Brightness(), grey(104), attacks=["fgsm", "fgsm"], eps=[0.1, 0, 0.1])
    assert {name: [point.eps for point in curve] for name, curve in curves.items()} == {"fgsm": [0, 0.1]}


def test_progress_counts_images_over_all_eps_of_an_attack():
    reports: list[tuple[str, int, int]] = []
    sweep(Brightness(), grey(90, 104), eps=[0, 0.1], progress=lambda *report: reports.append(report))
    assert [report for report in reports if report[0] == "pgd20"] == [("pgd20", 2, 4), ("pgd20", 4, 4)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"eps": []}, "at least one eps"),
        ({"eps": [0, 8]}, "each from 0 to 1 on the scale of pixels"),
        ({"eps": [-0.1]}, "each from 0 to 1"),
        ({"eps": [float("nan")]}, "each from 0 to 1"),
        ({"n": 0}, "at least one image"),
        ({"attacks": ["pgd-20"]}, "did you mean 'pgd20'"),
        ({"attacks": ["pgd20-l2-0.5"]}, "name the attack 'pgd20', not 'pgd20-l2-0.5'"),
        ({"attacks": ["cifar100-pgd20"]}, "name the attack 'pgd20', not 'cifar100-pgd20'"),
        ({"attacks": ["clean"]}, "a sweep needs attacks, such as fgsm and pgd20, not clean"),
        ({"attacks": []}, "a sweep needs attacks"),
    ],
)
def test_invalid_sweeps_are_refused(changes, message):
    with pytest.raises(UsageError, match=message):
        sweep(Brightness(), grey(104), **changes)


def test_eps_may_be_written_as_fractions():
    assert levels("0, 2/255,0.1,1e-3") == (0, 2 * PIXEL, 0.1, 0.001)


@pytest.mark.parametrize("text", ["", "0,", "a", "1/0", "nan", "8/255/2", "1e999"])
def test_invalid_eps_are_refused(text):
    with pytest.raises(UsageError, match="--eps takes numbers on the scale of pixels"):
        levels(text)


@pytest.fixture
def folder(tmp_path, toy, found):
    """A model's folder; CIFAR-10 is the toy data."""
    found(toy)
    spec = StagedSpec(stem=4, widths=((4,),), resolutions=(16,))
    (tmp_path / "config.json").write_text(json.dumps({"spec": spec.to_dict()}))
    save_weights(build(spec).state_dict(), tmp_path / "model.safetensors")
    return tmp_path


def test_the_command_prints_and_writes_the_same_with_its_provenance(folder, toy, capsys):
    out = folder / "sweep.json"
    ask = ["sweep", f"local-dir:{folder}", "--eps", "8/255,0", "-n", "50", "--out", str(out)]
    assert run([*ask, "--json", "-q"]) == 0
    printed = capsys.readouterr().out
    record = json.loads(printed)
    assert record == json.loads(out.read_text())
    assert record["dataset_sha256"] == toy.split("test").fingerprint
    assert len(record["weights_sha256"]) == 64
    assert record["toolchain"]["torch"]
    assert {name: [point["eps"] for point in curve] for name, curve in record["curves"].items()} == {
        "fgsm": [0, EPS],
        "pgd20": [0, EPS],
    }
    assert all(point["accuracy"]["n"] == 50 for curve in record["curves"].values() for point in curve)
    assert not list(folder.glob(".sweep.json.*"))

    assert run(ask) == 0
    header, _, clean, attacked, *_ = capsys.readouterr().out.splitlines()
    assert header.split() == ["eps", "fgsm", "pgd20"]
    assert (clean.split()[0], attacked.split()[0]) == ("0/255", "8/255")


def test_an_output_that_cannot_be_written_is_refused_before_the_work(folder, capsys, monkeypatch):
    monkeypatch.setattr("zoo.evaluation.sweep.sweep", lambda *arguments, **options: pytest.fail("worked"))
    os.mkfifo(folder / "pipe")
    for out in (folder, folder / "pipe"):
        assert run(["sweep", f"local-dir:{folder}", "--out", str(out)]) == 2
        assert "--out takes a file in a folder that is there" in capsys.readouterr().err
    with pytest.raises(UsageError, match="is a named pipe, not a file"):
        write_atomic(folder / "pipe", "text")
    assert stat.S_ISFIFO((folder / "pipe").stat().st_mode)
