"""What the page of the API shows says how it is used, and the example works."""

from __future__ import annotations

import doctest
import inspect
import re
import sys
from pathlib import Path

import pytest

import zoo
import zoo.export
from zoo.attacks import ATTACKS
from zoo.evaluation.evaluate import evaluate, worst_case
from zoo.evaluation.protocols import protocol
from zoo.evaluation.statistics import Paired, wilson

SHOWN = [
    *(one for name in zoo.__all__ if inspect.isfunction(one := getattr(zoo, name))),
    *ATTACKS.values(),
    *(evaluate, worst_case, protocol, wilson, Paired),
]


@pytest.mark.parametrize("shown", SHOWN, ids=lambda one: one.__name__)
def test_the_example_in_the_docstring_works(shown):
    name, module = shown.__name__, sys.modules[shown.__module__]
    (example,) = doctest.DocTestFinder(recurse=False).find(shown, name, module=module)
    assert example.examples, f"{module.__name__}.{name} has no example"
    assert doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(example).failed == 0


def test_the_page_of_the_api_has_every_name_that_is_exported():
    page = (Path(__file__).parents[1] / "docs" / "api.md").read_text(encoding="utf-8")
    shown = set(re.findall(r"^\.\. auto\w+:: ([\w.]+)$", page, re.MULTILINE))
    assert not {*zoo.__all__, *zoo.export.__all__} - {"__version__"} - shown, "name them in docs/api.md"
    assert "zoo.attacks" in shown
    assert {one.__name__ for one in ATTACKS.values()} <= {*zoo.attacks.__all__}, "name them in zoo/attacks/__init__.py"
