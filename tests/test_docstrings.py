"""Every function that the package exports shows how it is used, and the example works."""

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

FUNCTIONS = [name for name in zoo.__all__ if inspect.isfunction(getattr(zoo, name))]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_example_in_the_docstring_works(name):
    function = getattr(zoo, name)
    module = sys.modules[function.__module__]
    (example,) = doctest.DocTestFinder(recurse=False).find(function, name, module=module)
    assert example.examples, f"zoo.{name} has no example"
    assert doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(example).failed == 0


def test_the_page_of_the_api_has_every_name_that_is_exported():
    page = (Path(__file__).parents[1] / "docs" / "api.md").read_text(encoding="utf-8")
    shown = set(re.findall(r"^\.\. auto\w+:: ([\w.]+)$", page, re.MULTILINE))
    exported = {*zoo.__all__, *zoo.export.__all__, *(one.__name__ for one in ATTACKS.values())} - {"__version__"}
    assert not exported - shown, "name them in docs/api.md"
