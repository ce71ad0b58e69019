from __future__ import annotations

import pytest

from zoo.specs import cost
from zoo.system.errors import UsageError
from zoo.train.recipes.phases import load_phases, load_recipe, published_recipes

MINIMAL = """
name = "at-tiny"
description = "for tests"
family = "at"
[arch]
arch = "staged"
widths = [[4]]
resolutions = [16]
[train]
method = "pgd-at"
epochs = 2
[attack]
step = 0.01
steps = 2
[preset.smoke]
"train.epochs" = 1
"""


@pytest.fixture
def minimal(tmp_path):
    path = tmp_path / "at-tiny.toml"
    path.write_text(MINIMAL)
    return path


@pytest.mark.parametrize("name", published_recipes())
def test_a_published_recipe_is_valid_is_named_as_its_file_and_has_a_smoke_preset(name):
    phases = load_phases(name, preset="smoke")
    assert next(iter(phases.values())).name == name
    assert all(recipe.train.images is not None for recipe in phases.values())


@pytest.mark.parametrize("name", ["trades-s7", "nfgsm-w15"])
def test_the_15m_students_fit_their_budget(name):
    assert cost(load_recipe(name).arch).macs <= 15_000_000


def test_overrides_win_over_the_preset_which_wins_over_the_file(minimal):
    assert load_recipe(minimal).train.epochs == 2
    assert load_recipe(minimal, preset="smoke").train.epochs == 1
    assert load_recipe(minimal, preset="smoke", overrides=["train.epochs=7"]).train.epochs == 7


def test_bare_words_are_strings(minimal):
    assert load_recipe(minimal, overrides=["train.method=mart"]).train.method == "mart"


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("train.epoch=3", "train.epoch.*did you mean 'epochs'"),
        ("optimiser.lr=0.1", "optimiser.*did you mean 'optimizer'"),
        ("arch.width=[[4]]", "did you mean 'widths'"),
        ("train.epochs=none", "train.epochs"),
        ("train.epochs=0", "greater than or equal to 1"),
        ("train.epochs", "KEY=VALUE"),
        ("name.x=1", "'name' is a value"),
        ("train.method=n-fgsm", "one attack step"),
        ("attack.objective=cw", "'ce' or 'kl'"),
        ("guard.images=2000", "guard.images"),
    ],
)
def test_a_bad_override_is_one_sentence_that_names_the_key(minimal, override, says):
    with pytest.raises(UsageError, match=says) as caught:
        load_recipe(minimal, overrides=[override])
    assert "\n" not in str(caught.value)


def test_what_is_not_there_is_named_with_its_neighbours(minimal, tmp_path):
    with pytest.raises(UsageError, match="did you mean 'trades-s7'"):
        load_recipe("trades-s77")
    with pytest.raises(UsageError, match="it has: smoke"):
        load_recipe(minimal, preset="quick")
    (tmp_path / "broken.toml").write_text("name = ")
    with pytest.raises(UsageError, match="not TOML"):
        load_recipe(tmp_path / "broken.toml")
