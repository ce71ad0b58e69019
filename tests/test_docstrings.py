"""Every function that the package exports shows how it is used, and the example works."""

from __future__ import annotations

import doctest
import inspect
import sys

import pytest

import zoo

FUNCTIONS = [name for name in zoo.__all__ if inspect.isfunction(getattr(zoo, name))]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_example_in_the_docstring_works(name):
    function = getattr(zoo, name)
    module = sys.modules[function.__module__]
    (example,) = doctest.DocTestFinder(recurse=False).find(function, name, module=module)
    assert example.examples, f"zoo.{name} has no example"
    assert doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(example).failed == 0
