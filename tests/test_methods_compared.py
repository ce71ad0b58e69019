"""The comparison of training methods: docs/methods.py and its recipe."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

from zoo.train.recipes.phases import load_recipe

DOCS = Path(__file__).parents[1] / "docs"


@pytest.fixture(scope="module")
def methods():
    sys.path.insert(0, str(DOCS))
    try:
        yield importlib.import_module("methods")
    finally:
        sys.path.remove(str(DOCS))


def test_every_row_costs_the_same_passes_within_3_percent(methods):
    for cell in methods.cells():
        recipe = load_recipe(methods.RECIPE, preset=cell.preset, overrides=methods.settings(cell, Path("runs")))
        cost = recipe.train.epochs * recipe.method.passes(recipe.attack)
        assert cost == pytest.approx(methods.PASSES, rel=0.03), cell.name


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
        assert differs <= {"method", "teacher", "attack", "train"}
        assert {**control["train"], "epochs": 0} == {**other["train"], "epochs": 0}
        assert control["attack"]["eps"] == other["attack"]["eps"]
