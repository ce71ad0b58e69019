"""Every public function refuses a value of a wrong type in one sentence that names the argument."""

from __future__ import annotations

import inspect
from dataclasses import fields
from typing import Any

import pytest
import torch

import zoo
import zoo.export
from zoo.export.bundle.manifest import Report
from zoo.export.ladder.terms import Terms
from zoo.export.options import ExportOptions
from zoo.registry.constraints import Limits

FUNCTIONS = {
    name: getattr(place, name)
    for place in (zoo, zoo.export)
    for name in place.__all__
    if inspect.isfunction(getattr(place, name))
}
FLAGS = {
    "flagged",
    "pretrained",
    "local_files_only",
    "offline",
    "write",
    "uint8",
    "force",
    "keep_failed",
}  # any value has a truth
MORE = {
    "pick": Limits.__annotations__,
    "export_model": [option.name for option in fields(ExportOptions)],
    "verify_bundle": Terms.__dataclass_fields__,
}
NEEDED: dict[str, dict[str, Any]] = {
    "load": {"name": "trades-s3"},
    "info": {"name": "trades-s3"},
    "pareto": {"entries": ()},
    "export_model": {"name": "trades-s3", "out": "never"},
    "read_bundle": {"folder": "nowhere"},
    "verify_bundle": {"folder": "nowhere"},
    "sign_off": {"report": Report.model_construct(rungs=())},
}
WRONG = (object(), [object()], b"x")
BUDGETS = {"flops", "params", "size", "max_flops", "max_params", "min_clean", "min_robust"}  # these are told by value


def arguments() -> list[tuple[str, str]]:
    found = []
    for name, function in FUNCTIONS.items():
        own = [key for key, one in inspect.signature(function).parameters.items() if one.kind != one.VAR_KEYWORD]
        found += [(name, key) for key in dict.fromkeys([*own, *MORE.get(name, ())]) if key not in FLAGS]
    return [one for one in found if one != ("load", "progress")]  # a flag too


@pytest.mark.parametrize(("function", "argument"), arguments())
def test_a_value_of_a_wrong_type_is_refused_by_the_arguments_name(function, argument, monkeypatch):
    monkeypatch.setattr("zoo.weights.load.read_tensors", lambda path: pytest.fail(f"{path} was opened"))
    for value in WRONG:
        with pytest.raises((zoo.ZooError, TypeError)) as caught:
            FUNCTIONS[function](**NEEDED.get(function, {}) | {argument: value})
        message = str(caught.value)
        assert "\n" not in message
        word = (
            str(value)
            if argument in BUDGETS and function not in ("export_model", "verify_bundle")
            else {"batches": "batch sizes", "spec": "ArchSpec"}.get(argument, argument)
        )
        assert word in message


def test_a_module_is_not_a_model_by_name(monkeypatch):
    for refuses in (zoo.load, zoo.info, lambda module: zoo.export.export_model(module, out="never")):
        with pytest.raises(zoo.UsageError, match=r"must be a string, .*not a value of type Identity"):
            refuses(torch.nn.Identity())
    for refuses in (zoo.build, zoo.cost):
        with pytest.raises(TypeError, match=r"takes an ArchSpec.*, not dict"):
            refuses({})


def test_no_bool_is_a_number():
    for wrong in ({"flops": True}, {"n": True}, {"min_clean": True}):
        with pytest.raises(zoo.UsageError):
            zoo.pick(**wrong)
