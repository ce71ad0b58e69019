"""The study of shapes: docs/shapes.py, and what docs/shapes.json holds."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

from zoo.specs import cost
from zoo.train.recipes.phases import load_recipe

DOCS = Path(__file__).parents[1] / "docs"
TRAINED = {"smooth0", "eps8.8", "batch128", "batch512", "lr0.1", "lr0.4", "wd1e-4", "longer", "pretrained"}


@pytest.fixture(scope="module")
def shapes():
    sys.path.insert(0, str(DOCS))
    try:
        yield importlib.import_module("shapes")
    finally:
        sys.path.remove(str(DOCS))


def variant(run) -> str:
    return run.name.split("/")[1]


def test_a_run_differs_from_its_base_in_one_thing(shapes):
    recipes = {run.name: load_recipe(shapes.RECIPE, overrides=run.overrides) for run in shapes.runs()}
    for run in shapes.runs():
        base = recipes[run.name.replace(f"/{variant(run)}/", "/base/")].model_dump()
        other = recipes[run.name].model_dump()
        differs = {
            (part, key)
            for part in ("train", "attack", "optimizer", "method")
            for key in {**base[part], **other[part]}
            if base[part].get(key) != other[part].get(key)
        }
        if variant(run) in ("base", "pretrained"):
            assert base == other
        elif variant(run) == "natural":
            assert base["arch"] == other["arch"]
        elif variant(run) in TRAINED:
            assert base["arch"] == other["arch"]
            assert len(differs - {("attack", "step")}) == 1
        else:
            assert base["arch"] != other["arch"]
            assert not differs


def test_shapes_cost_what_their_base_costs(shapes):
    for run in shapes.runs():
        base = load_recipe(shapes.RECIPE, overrides=shapes.staged(shapes.BASES[run.name.split("/")[0]])).arch
        share = cost(load_recipe(shapes.RECIPE, overrides=run.overrides).arch).macs / cost(base).macs
        assert abs(share - 1) < (0.09 if variant(run) == "stem16" else 0.06), run.name


def test_results_are_of_the_runs_that_the_table_names(shapes):
    runs = {run.name: run for run in shapes.runs()}
    stored = shapes.stored(shapes.STORE)["runs"]
    assert stored
    for name, result in stored.items():
        recipe = load_recipe(shapes.RECIPE, overrides=runs[name].overrides)
        assert result["macs"] == cost(recipe.arch).macs, name
        assert result["epochs"] == recipe.train.epochs
        assert result["cw20"] <= result["clean"]
