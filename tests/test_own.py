"""Models of the user's own, at ``package.module:function``: measured like the others, refused by all other verbs."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from tiny import same_function

from zoo import load
from zoo.cli.app import run
from zoo.system.errors import UsageError
from zoo.weights.address import OWN, Address
from zoo.weights.load import find, weights_sha256
from zoo.weights.own import own_model

CODE = """
import torch
from torch import nn
from zoo.models import build
from zoo.specs import StagedSpec

print("imported")

class Net(nn.Sequential):
    def __init__(self, classes=10):
        torch.manual_seed(classes)
        super().__init__(nn.Flatten(), nn.Linear(3 * 32 * 32, classes))

    def forward(self, x):
        print("called")
        return super().forward(x)

def make():
    return Net().train()

net, number = Net(), 5

def hundred():
    return Net(100)

def double():
    return make().double()

def pictures():
    return nn.Identity()

def pair():
    return nn.LSTM(32, 2)

def nothing():
    pass

def fails():
    raise ValueError("no weights here\\nsecond line")

def another():
    torch.seed()
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 10))
    return net
"""


@pytest.fixture
def nets(tmp_path, monkeypatch):
    (tmp_path / "mynets").mkdir()
    (tmp_path / "mynets" / "__init__.py").touch()
    (tmp_path / "mynets" / "robust.py").write_text(CODE)
    (tmp_path / "mynets" / "incomplete.py").write_text("import no_such_package")
    (tmp_path / "mynets" / "wrong.py").write_text("1 / 0")
    monkeypatch.chdir(tmp_path)
    yield "mynets.robust"
    for name in [name for name in sys.modules if name.partition(".")[0] == "mynets"]:
        del sys.modules[name]


def own(place: str, dataset: str | None = None):
    return own_model(Address.parse(place), dataset)


def test_a_function_is_an_address():
    assert Address.parse("mynets.robust:make") == Address(OWN, "mynets.robust:make")
    assert str(Address.parse("mynets:make")) == "mynets:make"


def test_a_function_a_class_and_a_model_give_the_same_frozen_model(nets):
    models = [own(f"{nets}:{name}").load() for name in ("make", "Net", "net")]
    assert not any(model.training for model in models)
    assert all(same_function(model, models[0]) for model in models)
    assert len({weights_sha256(model) for model in models}) == 1
    assert weights_sha256(own(f"{nets}:hundred", "cifar100").load()) != weights_sha256(models[0])


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("nowhere:make", r"finds no module 'nowhere' in this folder"),
        ("mynets.nowhere:make", r"finds no module 'mynets\.nowhere'"),
        ("mynets.incomplete:make", r"importing 'mynets\.incomplete' fails with ModuleNotFoundError: .*no_such_package"),
        ("mynets.wrong:make", r"importing 'mynets\.wrong' fails with ZeroDivisionError"),
        ("mynets.robust:maek", r"has no 'maek'; did you mean 'make'"),
        ("mynets.robust:number", r"is a value of type int, not a function"),
    ],
)
def test_what_is_not_there_is_refused_before_the_images_are_looked_for(nets, place, message, capsys):
    assert run(["eval", place, "--data", "no/such/folder"]) == 2
    with pytest.raises(UsageError, match=message):
        own(place)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("fails", r"'mynets\.robust:fails' fails with ValueError: no weights here$"),
        ("nothing", r"returns a value of type NoneType, not an nn\.Module"),
        ("hundred", r"logits \[1, 10\] for CIFAR-10, not to \[1, 100\]"),
        ("pictures", r"not to \[1, 3, 32, 32\]"),
        ("pair", r"fails on images \[1, 3, 32, 32\] with (ValueError|RuntimeError)"),
        ("double", r"fails on images \[1, 3, 32, 32\] with RuntimeError"),
    ],
)
def test_what_is_no_classifier_of_the_data_set_is_refused(nets, name, message):
    with pytest.raises(UsageError, match=message):
        own(f"{nets}:{name}").load()


@pytest.mark.parametrize("verb", [["eval", "-p", "clean", "-p", "fgsm"], ["sweep", "--eps", "0,8/255"]])
def test_it_is_measured_as_a_model_folder_is(nets, folder, toy, found, verb, capsys):
    asked = found(toy)
    Path("mynets/folder.py").write_text(
        f"from zoo import load\nprint()\n\ndef net():\n    return load('local-dir:{folder}')\n"
    )
    measured = []
    for name in (f"local-dir:{folder}", "mynets.folder:net"):
        assert run([verb[0], name, *verb[1:], "-n", "50", "--json", "--data", "there"]) == 0
        measured.append(json.loads(capsys.readouterr().out))
    assert asked == [("cifar10", Path("there"), False)] * 2
    whole, function = ({key: one.get(key) for key in ("results", "curves")} for one in measured)
    assert bare(whole) == bare(function)
    assert measured[1]["name"] == "mynets.folder:net"
    assert measured[1]["weights_sha256"] == weights_sha256(own("mynets.folder:net").load())


def bare(results: Any) -> Any:
    """``results`` without times and hashes of weights."""
    if not isinstance(results, dict):
        return results
    return {key: bare(one) for key, one in results.items() if key not in ("measured_at", "wall_s", "weights_sha256")}


def test_only_eval_and_sweep_take_a_function_and_no_other_verb_runs_it(nets, capsys):
    place = f"{nets}:make"
    for other in (lambda: load(place), lambda: find(place, folders=True)):
        with pytest.raises(UsageError, match=r"only zoo eval and zoo sweep take: here, a model is a registry name"):
            other()
    for verb in (["export", place], ["bench", place], ["compare", place, "nfgsm-w4"], ["push", place, "--dry-run"]):
        assert run(verb) in (2, 3)
    assert nets not in sys.modules
    assert run(["eval", place, "--write"]) == 2
    assert "has no spec, which an entry of the registry has" in capsys.readouterr().err


def test_a_model_of_the_zoo_has_its_own_data_set(capsys):
    assert run(["eval", "ard-w4", "--dataset", "cifar100"]) == 2
    assert "'ard-w4' is measured on its own data set" in capsys.readouterr().err


TOGETHER = """
import os
os.chdir({folder!r})
from zoo.cli.app import run

type(CIFAR10).load = lambda self, data=None, *, offline=False: dataset
codes = [run(["eval", "mynets.robust:" + name, "-p", "clean", "-n", "20", "-q"]) for name in ("make", "another")]
if os.environ["RANK"] == "0":
    Path({out!r}).write_text(json.dumps([2, codes]))
"""


def test_processes_with_different_weights_are_refused(nets, toy, on_processes, tmp_path):
    assert on_processes(TOGETHER, 2, toy.root, folder=str(tmp_path)) == [0, 2]
