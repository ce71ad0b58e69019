"""Models of the user's own, at ``package.module:function``: measured like the others, refused by all other verbs."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from test_imagefolder import draw
from tiny import same_function

from zoo import load
from zoo.cli.app import run
from zoo.system.errors import UsageError
from zoo.weights.address import OWN, Address
from zoo.weights.load import find
from zoo.weights.own import own_model, own_sha256

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
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 10))

def ends():
    raise SystemExit(0)

def named():
    import argparse
    argparse.ArgumentParser().parse_args()
    return make()

def elsewhere():
    import os, sys
    os.chdir("/")
    sys.path.pop(0)
    return make()

class Blind(Net):
    def forward(self, x):
        with torch.no_grad():
            return super().forward(x)

class Tuple(Net):
    def forward(self, x):
        from types import SimpleNamespace
        return SimpleNamespace(logits=super().forward(x))

class Whole(Net):
    def forward(self, x):
        return super().forward(x).long()

class Leaves(Net):
    def forward(self, x):
        if len(x) > 2:
            raise SystemExit(0)
        return super().forward(x)

class Fixed(Net):
    def forward(self, x):
        return super().forward(x.reshape(2, 3, 32, 32))

def unknown():
    from zoo import load
    return load("no-such-model")

class Sparse(Net):
    def __init__(self):
        super().__init__()
        self.register_buffer("mask", torch.eye(10).to_sparse())

    def forward(self, x):
        return torch.sparse.mm(self.mask, super().forward(x).T).T

class Hidden(nn.Module):
    def forward(self, x):
        return x.flatten(1)[:, :10]
"""


@pytest.fixture
def nets(tmp_path, monkeypatch):
    (tmp_path / "mynets").mkdir()
    (tmp_path / "mynets" / "__init__.py").touch()
    (tmp_path / "mynets" / "robust.py").write_text(CODE)
    (tmp_path / "single.py").touch()
    (tmp_path / "mynets" / "incomplete.py").write_text("import no_such_package")
    (tmp_path / "mynets" / "wrong.py").write_text("1 / 0")
    monkeypatch.chdir(tmp_path)
    yield "mynets.robust"
    for name in [name for name in sys.modules if name.partition(".")[0] in ("mynets", "single")]:
        del sys.modules[name]


def own(place: str, dataset: str | None = None):
    return own_model(Address.parse(place), dataset)


def test_a_function_is_an_address():
    assert Address.parse("mynets.robust:make") == Address(OWN, "mynets.robust:make")
    assert str(Address.parse("mynets:make")) == "mynets:make"


def test_a_function_a_class_and_a_model_give_the_same_model_in_eval_mode(nets):
    models = [own(f"{nets}:{name}").load() for name in ("make", "Net", "net")]
    assert not any(model.training for model in models)
    assert all(same_function(model, models[0]) for model in models)
    assert len({own_sha256(model) for model in models}) == 1
    assert own_sha256(own(f"{nets}:hundred", "cifar100").load()) != own_sha256(models[0])
    assert own_sha256(own(f"{nets}:Hidden").load()) is None
    assert own_sha256(own(f"{nets}:Sparse").load()) != own_sha256(models[0])


def test_its_code_sees_no_command_line_and_moves_no_folder(nets, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", arguments := ["zoo", "eval", "x", "-n", "5"])
    before = list(sys.path)
    for name in ("named", "elsewhere"):
        assert own(f"{nets}:{name}").load() is not None
        assert Path.cwd() == tmp_path
    assert sys.argv is arguments
    assert sys.path == before


def test_a_compiled_model_is_attacked_as_it_was(nets):
    (Path(nets.replace(".", "/")).with_name("quick.py")).write_text(
        "import torch\nfrom mynets.robust import make\n\ndef fast():\n    return torch.compile(make())\n"
    )
    assert type(own("mynets.quick:fast").load()).__name__ == "Net"


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("nowhere:make", r"finds no module 'nowhere' in this folder"),
        ("localdir:model", r"finds no module 'localdir' .*; did you mean 'local-dir'"),
        ("mynets.nowhere:make", r"finds no module 'mynets\.nowhere'"),
        ("mynets/robust.py:make", r"unknown scheme 'mynets/robust\.py:'.*; for zoo eval .* package\.module:function"),
        ("single.py:make", r"finds no module 'single\.py' .*: write single:make"),
        ("mynets.incomplete:make", r"importing 'mynets\.incomplete' fails with ModuleNotFoundError: .*no_such_package"),
        ("mynets.wrong:make", r"importing 'mynets\.wrong' fails with ZeroDivisionError: .* \(wrong\.py, line 1\)"),
        ("mynets.robust:maek", r"\(.*robust\.py\) has no 'maek'; did you mean 'make'"),
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
        ("fails", r"robust:fails' fails with ValueError: no weights here second line \(robust\.py, line \d+\)$"),
        ("ends", r"robust:ends' fails with SystemExit: 0 \(robust\.py, line \d+\)$"),
        ("unknown", r"fails with UnknownModel: .* \(robust\.py, line \d+\)$"),
        ("nothing", r"returns a value of type NoneType, not an nn\.Module"),
        ("hundred", r"logits \[2, 10\] for CIFAR-10, not to \[2, 100\]"),
        ("pictures", r"not to \[2, 3, 32, 32\]"),
        ("Tuple", r"not to a value of type SimpleNamespace; wrap it in a module that returns its logits"),
        ("Whole", r"must be floats, not torch\.int64"),
        ("pair", r"fails on images \[2, 3, 32, 32\] with (ValueError|RuntimeError)"),
        ("double", r"fails on images \[2, 3, 32, 32\] with RuntimeError"),
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
    assert measured[1]["weights_sha256"] == own_sha256(own("mynets.folder:net").load())


def bare(results: Any) -> Any:
    """``results`` without times and hashes of weights."""
    if not isinstance(results, dict):
        return results
    return {key: bare(one) for key, one in results.items() if key not in ("measured_at", "wall_s", "weights_sha256")}


def test_only_eval_and_sweep_take_a_function_and_no_other_verb_runs_it(nets, capsys):
    place = f"{nets}:make"
    for other in (lambda: load(place), lambda: find(place, folders=True)):
        with pytest.raises(UsageError, match=r"only zoo eval and zoo sweep take: a model here is a registry name"):
            other()
    for verb in (["export", place], ["bench", place], ["compare", place, "nfgsm-w4"]):
        assert run(verb) == 2
        assert "would be a function in Python" in capsys.readouterr().err
    assert run(["push", place, "--repo-id", "o/r", "--dry-run"]) == 3
    assert nets not in sys.modules
    assert run(["eval", place, "--write"]) == 2
    assert "has no spec, which an entry of the registry has" in capsys.readouterr().err


def test_a_model_of_the_zoo_has_its_own_data_set(capsys):
    assert run(["eval", "ard-w4", "--dataset", "cifar100"]) == 2
    assert "'ard-w4' is measured on its own data set" in capsys.readouterr().err


def test_what_a_model_prints_is_no_result_and_what_was_measured_is_told_before_an_error(nets, toy, found, capsys):
    found(toy)
    assert run(["eval", f"{nets}:make", "-p", "clean", "-n", "20", "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["name"] == f"{nets}:make"
    assert "called" in err
    assert run(["eval", f"{nets}:Blind", "-p", "clean", "-p", "pgd20", "-n", "200", "--json"]) == 2
    assert "measured before that: clean" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["Leaves", "Fixed"])
@pytest.mark.parametrize("verb", [["eval", "-p", "clean"], ["sweep", "--eps", "0"]])
def test_a_model_that_fails_while_it_is_measured_is_the_users(nets, toy, found, verb, name, capsys):
    found(toy)
    assert run([verb[0], f"{nets}:{name}", *verb[1:], "-n", "21"]) == 2
    assert f"measuring the model of '{nets}:{name}' fails with" in capsys.readouterr().err


def test_the_classes_of_an_image_folder_are_those_of_the_model(nets, tmp_path):
    images = draw(tmp_path / "images", classes=3, train=2, val=1)
    (tmp_path / "mynets" / "large.py").write_text(
        "from torch import nn\n\ndef made(n):\n"
        "    return nn.Sequential(nn.AvgPool2d(56), nn.Flatten(), nn.Linear(3 * 16, n))\n\n"
        "def three():\n    return made(3)\n\ndef ten():\n    return made(10)\n"
    )
    for name, code in (("three", 0), ("ten", 2)):
        place = f"mynets.large:{name}"
        assert run(["eval", place, "--dataset", "imagefolder", "--data", str(images), "-p", "clean", "-q"]) == code


TOGETHER = """
import contextlib, io, os
os.chdir({folder!r})
from zoo.cli.app import run

type(CIFAR10).load = lambda self, data=None, *, offline=False: dataset
with contextlib.redirect_stderr(io.StringIO()) as said:
    code = run(["eval", "mynets.robust:{name}", "-p", "clean", "-n", "20", "-q"])
if os.environ["RANK"] == "0":
    Path({out!r}).write_text(json.dumps([2, [code, said.getvalue()]]))
"""


@pytest.mark.parametrize(
    ("name", "why"), [("make", None), ("another", "other weights in every process"), ("Hidden", "no parameters")]
)
def test_processes_that_may_have_different_models_are_refused(nets, toy, on_processes, tmp_path, name, why):
    code, said = on_processes(TOGETHER, 2, toy.root, folder=str(tmp_path), name=name)
    assert (code, why is None or why in said) == (2 if why else 0, True)
