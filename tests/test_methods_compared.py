"""The comparison of training methods: docs/methods.py and its recipe."""

from __future__ import annotations

import importlib
import math
import sys
from pathlib import Path

import numpy as np
import pytest

from zoo.train.recipes.phases import load_recipe

DOCS = Path(__file__).parents[1] / "docs"


@pytest.fixture(scope="module")
def methods():
    sys.path.insert(0, str(DOCS))
    try:
        yield importlib.import_module("methods")  # and the modules beside it
    finally:
        sys.path.remove(str(DOCS))


def test_every_row_costs_the_same_passes_as_far_as_whole_epochs_allow(methods):
    for cell in methods.cells():
        recipe = load_recipe(methods.RECIPE, preset=cell.preset, overrides=methods.settings(cell, Path("runs")))
        epoch = recipe.method.passes(recipe.attack)
        assert abs(recipe.train.epochs * epoch - methods.PASSES) <= epoch * recipe.method.replays / 2, cell.name


def test_a_preset_alone_reruns_its_row(methods):
    for row in methods.ROWS:
        (cell,) = (one for one in methods.cells() if one.name == f"methods/s3/{row}/0")
        rerun = load_recipe(methods.RECIPE, preset=row)
        assert rerun == load_recipe(methods.RECIPE, preset=row, overrides=methods.settings(cell, Path("runs")))


def test_rows_share_all_but_method_teacher_attack_and_epochs(methods):
    control = load_recipe(methods.RECIPE).model_dump()
    for row in methods.ROWS:
        other = load_recipe(methods.RECIPE, preset=row).model_dump()
        differs = {key for key in control if control[key] != other[key]}
        if row == "n-fgsm-twice":  # steps of twice the loss, with as much decay
            rates = [(one["optimizer"]["lr"], one["optimizer"]["weight_decay"]) for one in (control, other)]
            assert rates == [(0.2, 5e-4), (0.4, 2.5e-4)]
            differs -= {"optimizer"}
        assert differs <= {"method", "teacher", "attack", "train"}
        assert {**control["train"], "epochs": 0} == {**other["train"], "epochs": 0}
        assert control["attack"]["eps"] == other["attack"]["eps"]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["train", "methods/s3/rrm/0", "methods/s9/*"], "no run is called 'methods/s9/*': they have names such as"),
        (["measure", "methods/s3/rrm/0", "--protocols", "clean,pgd21"], "no protocol is called 'pgd21'"),
        (["train", "methods/s3/rrm/0", "--set", "method.lam=-1"], "'method.lam' is wrong"),
    ],
    ids=" ".join,
)
def test_what_cannot_be_run_is_refused_in_one_sentence(methods, arguments, told, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["methods.py", *arguments, "--out", str(tmp_path / "runs")])
    with pytest.raises(SystemExit) as refused:
        methods.main()
    assert told in str(refused.value.code)
    assert not (tmp_path / "runs").exists()


def test_a_cell_that_fails_stops_no_other(methods, capsys):
    todo = [("four", (4.0,)), ("negative", (-1.0,)), ("nine", (9.0,)), ("waits", (1.0,))]
    found = dict(importlib.import_module("workers").work(1, math.inf, math.sqrt, todo, lambda name: name != "waits"))
    assert found == {"four": 2, "nine": 3}
    said = capsys.readouterr().out
    assert "negative  FAILED" in said
    assert "waits  left out" in said


def stored(bits) -> dict:
    packed = np.packbits(np.array(bits, bool)).tobytes().hex()
    return {"results": {"clean": {"n": len(bits), "bits": packed}}}


def test_differences_are_paired_over_images_and_seeds(methods):
    page = importlib.import_module("methods_page")
    runs = {"m/s/a/0": stored([1, 1, 1, 0]), "m/s/b/0": stored([1, 0, 1, 0])}
    value, half, k = page.difference(runs, "m/s/a", "m/s/b", "clean")
    assert (value, k) == (25, 1)
    assert half == pytest.approx(3.182446 * 50 / math.sqrt(4))  # Student's quantile, and the deviation of 0 100 0 0
    runs |= {"m/s/a/1": stored([0, 0, 0, 0]), "m/s/b/1": stored([1, 0, 1, 0]), "m/s/a/2": stored([1, 1, 1, 1])}
    value, wider, k = page.difference(runs, "m/s/a", "m/s/b", "clean")
    assert (value, k) == (-12.5, 2)  # seed 2 has no control
    assert wider > half
