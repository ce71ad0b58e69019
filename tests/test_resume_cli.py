"""A run is continued by its folder alone, with the settings that it was started with."""

from __future__ import annotations

import json
import re
import shutil

import pytest
from test_recipe import MINIMAL

from zoo.cli.app import run
from zoo.system.errors import TrainingDiverged
from zoo.train.pipeline import asked_of
from zoo.train.run.trainer import Trainer

SMALL = """
[ema]
recalibrate = 50
[guard]
images = 20
steps = 1
"""
SETTINGS = ("train.images=100", "train.batch_size=50", "train.compile=false", "train.epochs=1")


def test_the_last_epoch_that_is_said_is_the_recipes_last_with_replays_too(tmp_path, capsys, found, toy):
    recipe = tmp_path / "at-tiny.toml"
    recipe.write_text(MINIMAL.replace('method = "pgd-at"\n', "") + SMALL)
    found(toy)
    replays = ("method.name=free-at", "method.m=2", "attack.steps=1", *SETTINGS[:3], "train.epochs=4")
    settings = [part for one in replays for part in ("--set", one)]
    assert run(["train", str(recipe), "--out", str(tmp_path / "run"), *settings]) == 0
    assert re.findall(r"epoch (\d+)/4", capsys.readouterr().err) == ["2", "4"]


@pytest.fixture
def call(tmp_path, capsys, found, toy):
    recipe, out = tmp_path / "at-tiny.toml", tmp_path / "run"
    recipe.write_text(MINIMAL + SMALL)
    found(toy)

    def called(*arguments: str):
        code = run(["train", str(recipe), "--out", str(out), "-q", *arguments])
        return code, capsys.readouterr().err

    return called


def test_a_run_is_resumed_without_its_settings_and_not_with_others(call, tmp_path, monkeypatch):
    settings = [part for one in SETTINGS for part in ("--set", one)]
    assert call("--preset", "smoke", *settings) == (0, "")
    assert asked_of(tmp_path / "run") == {"preset": "smoke", "overrides": list(SETTINGS)}
    assert call(*settings)[0] == 2  # without --resume
    monkeypatch.setattr(Trainer, "__init__", lambda *arguments, **options: pytest.fail("trained again"))
    assert call("--resume") == (0, "")
    assert call("--resume", "--set", "train.epochs=1") == (0, "")
    code, err = call("--resume", "--set", "train.epochs=2")
    assert (code, "holds a run with other settings" in err) == (2, True)
    damaged = ([], {"preset": 3, "overrides": []}, {"preset": None, "overrides": [1]}, {"preset": None})
    for asked in damaged:
        (tmp_path / "run" / "asked.json").write_text(json.dumps(asked))
        code, err = call("--resume")
        assert (code, "asked.json' is damaged" in err) == (5, True)
    code, err = call("--resume")
    assert (code, "is damaged" in err) == (5, True)


def test_a_run_that_is_refused_leaves_nothing_to_resume(call, tmp_path):
    settings = [part for one in SETTINGS for part in ("--set", one)]
    code, err = call(*settings, "--set", "train.batch_size=1000")
    assert (code, "do not fill a batch" in err) == (2, True)
    assert not (tmp_path / "run").exists()
    assert call(*settings, "--set", "train.batch_size=1000", "--out", str(tmp_path / "runs" / "deep"))[0] == 2
    assert not (tmp_path / "runs").exists()
    (tmp_path / "run").mkdir()
    assert call(*settings, "--set", "train.batch_size=1000")[0] == 2
    assert list((tmp_path / "run").iterdir()) == []  # made by hand, and still there
    assert call("--resume", *settings) == (0, "")


def test_a_run_that_is_stopped_before_its_first_step_keeps_its_settings(call, tmp_path, monkeypatch):
    settings = [part for one in SETTINGS for part in ("--set", one)]

    def interrupted(*arguments, **options):  # while what takes long is made, such as robust data
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "__init__", interrupted)
        assert call(*settings)[0] == 130
    assert asked_of(tmp_path / "run")["overrides"] == list(SETTINGS)
    assert call("--resume", "--set", "train.batch_size=1000")[0] == 2
    assert asked_of(tmp_path / "run")["overrides"] == list(SETTINGS)  # the refused one is taken back
    assert call("--resume") == (0, "")


def test_a_run_that_diverges_before_its_first_checkpoint_keeps_its_settings(call, tmp_path, monkeypatch):
    settings = [part for one in SETTINGS for part in ("--set", one)]

    def diverges(*arguments):
        raise TrainingDiverged("robust accuracy collapsed")

    monkeypatch.setattr("zoo.train.run.loop._run", diverges)
    code, said = call(*settings)
    assert code == TrainingDiverged.exit_code == 11
    assert "collapsed" in said
    assert asked_of(tmp_path / "run")["overrides"] == list(SETTINGS)


def test_settings_may_change_until_a_run_has_a_checkpoint(call, tmp_path):
    settings = [part for one in SETTINGS for part in ("--set", one)]
    assert call(*settings) == (0, "")
    (tmp_path / "run" / "checkpoint.pt").unlink()
    code, said = call("--resume")
    assert code == 2
    assert "is the result of a run whose checkpoint is gone: choose another --out" in said
    shutil.rmtree(tmp_path / "run" / "model")
    assert call("--resume", "--set", "train.batch_size=25") == (0, "")
    assert asked_of(tmp_path / "run")["overrides"] == [*SETTINGS, "train.batch_size=25"]
