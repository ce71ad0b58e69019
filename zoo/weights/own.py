"""A model of the user's own: the ``nn.Module`` that a function in Python returns, at the address
``package.module:function``, or that is read from a file (:mod:`zoo.export.files`). It can be measured like the models
of the zoo, and nothing else, as it has no spec.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import chdir, contextmanager, redirect_stdout
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from sysconfig import get_paths
from traceback import extract_tb
from typing import TYPE_CHECKING

from zoo.datasets import dataset_called
from zoo.system.errors import UsageError, ZooError, nearest
from zoo.weights.address import FILE, SCHEMES, Address
from zoo.weights.load import Found, Task

if TYPE_CHECKING:
    from torch import nn

    from zoo.datasets.base import Dataset

LONG = 400  # characters of a message of the user's code
LIBRARIES = tuple(f"{get_paths()[kind]}{os.sep}" for kind in ("stdlib", "purelib", "platlib"))
LIBRARIES += (f"{Path(__file__).parents[1]}{os.sep}",)


@dataclass
class Own:
    """A model in Python. Its properties and methods are those of :class:`zoo.weights.load.Found`.

    Attributes:
        address: of the function, or of the file.
        code: the function, or any callable without arguments; a model itself is taken as it is.
        dataset: what the model classifies; after :meth:`images` with its images.
        sha256: of the file; "" of a function, see :func:`own_sha256`.
    """

    address: Address
    code: Callable[..., object]
    dataset: Dataset
    sha256: str = ""

    @property
    def task(self) -> Task:
        """Its data set; l-infinity with 8/255."""
        return Task(self.dataset.name)

    def images(self, data: Path | str | None = None, *, offline: bool = False) -> Dataset:
        """Its data set with the images; arguments and errors are those of :meth:`zoo.datasets.base.Dataset.load`."""
        self.dataset = self.dataset.load(data, offline=offline)
        return self.dataset

    def load(self) -> nn.Module:
        """The model, on the CPU and in eval mode.

        Raises:
            UsageError: the function fails, or does not return a model for the data set.
            ZooError: a file is not what it should be, see :mod:`zoo.export.files`.
        """
        import torch
        from torch import Tensor, nn

        from zoo.models.fold import in_eval_mode

        code, name = self.code, str(self.address)
        if self.address.scheme == FILE:
            model = code()
        else:
            model = code if isinstance(code, nn.Module) else _called(name, f"'{name}' fails", code)
        if not isinstance(model, nn.Module):
            raise UsageError(f"'{name}' returns a value of type {type(model).__name__}, not an nn.Module")
        inner = getattr(model, "_orig_mod", None)  # of torch.compile, which would compile for batches of every size
        model = inner if isinstance(inner, nn.Module) else model
        shape, classes = [2, 3, self.dataset.image_size, self.dataset.image_size], len(self.dataset.classes)
        images = torch.rand(shape, generator=torch.Generator().manual_seed(0))

        def answers(model: nn.Module) -> object:
            with torch.no_grad():
                return in_eval_mode(model.cpu())(images)

        logits = _called(name, f"the model of '{name}' fails on images {shape}", answers, model)
        if not isinstance(logits, Tensor) or logits.ndim != 2 or (classes and logits.shape != (2, classes)):
            got = list(logits.shape) if isinstance(logits, Tensor) else f"a value of type {type(logits).__name__}"
            wrap = "; wrap it in a module that returns its logits" if hasattr(logits, "logits") else ""
            raise UsageError(
                f"the model of '{name}' must map images {shape} to logits [2, {classes or 'classes'}] "
                f"for {self.dataset.title}, not to {got}{wrap}"
            )
        if not logits.is_floating_point():
            raise UsageError(f"the logits of '{name}' must be floats, not {logits.dtype}")
        return model


def own_model(address: Address, dataset: str | None = None) -> Own:
    """The model at ``address``, which classifies the data set called ``dataset``, by default CIFAR-10. Its module is
    imported, from the working folder or an installed package.

    Raises:
        UsageError: no data set is called so, or there is no such function.
    """
    images = dataset_called(dataset or "cifar10")
    name, _, attribute = address.place.partition(":")
    try:
        with _users_code(address.place):
            module = import_module(name)
    except (Exception, SystemExit) as error:
        if isinstance(error, ModuleNotFoundError) and error.name and f"{name}.".startswith(f"{error.name}."):
            hint = f": write {name.removesuffix('.py')}:{attribute}" if name.endswith(".py") else nearest(name, SCHEMES)
            raise UsageError(
                f"'{address}': Python finds no module '{error.name}' in this folder or among installed packages{hint}"
            ) from None
        raise UsageError(f"importing '{name}' fails {_with(error)}") from error
    if not hasattr(module, attribute):
        known = [one for one in vars(module) if not one.startswith("_")]
        where = getattr(module, "__file__", None) or "built in"
        raise UsageError(f"'{address}': the module '{name}' ({where}) has no '{attribute}'{nearest(attribute, known)}")
    if not callable(code := getattr(module, attribute)):
        raise UsageError(f"'{address}' is a value of type {type(code).__name__}, not a function that returns a model")
    return Own(address, code, images)


def own_sha256(model: nn.Module) -> str | None:
    """SHA-256 of all parameters and buffers with their names, in place of that of a file; None if there are none."""
    from zoo.evaluation.ledger import hash_tensors

    digest = hashlib.sha256()
    return digest.hexdigest() if hash_tensors(digest, model) else None


@contextmanager
def watched(model: Found | Own) -> Iterator[None]:
    """Inside, a model is measured; if it is the user's own, what it prints goes to stderr.

    Raises:
        UsageError: something that is no error of this package went wrong with a model of the user's own.
    """
    if not isinstance(model, Own):
        yield
        return
    try:
        with _users_code(str(model.address)):
            yield
    except ZooError:
        raise
    except (Exception, SystemExit) as error:
        raise UsageError(f"measuring the model of '{model.address}' fails {_with(error)}") from error


@contextmanager
def _users_code(name: str) -> Iterator[None]:
    """Inside, modules in the working folder can be imported, what is printed goes to stderr, and the command line is
    that of a program ``name`` without arguments. The working folder and Python's path are the same afterwards."""
    arguments, paths, here = sys.argv, list(sys.path), str(Path.cwd())
    sys.argv = [name]
    sys.path.insert(0, here)
    try:
        with chdir(here), redirect_stdout(sys.stderr):
            yield
    finally:
        sys.argv, sys.path[:] = arguments, paths


def _called(name: str, failing: str, code: Callable[..., object], *arguments: object) -> object:
    """What ``code`` returns; UsageError if it raises an exception or ends the program."""
    try:
        with _users_code(name):
            return code(*arguments)
    except (Exception, SystemExit) as error:
        raise UsageError(f"{failing} {_with(error)}") from error


def _with(error: BaseException) -> str:
    """The error of the user's code in words, with the last line of that code that it passed."""
    text = " ".join(str(error).split())
    text = f": {text[:LONG]}{'...' if len(text) > LONG else ''}" if text else ""
    theirs = [one for one in extract_tb(error.__traceback__) if not one.filename.startswith((*LIBRARIES, "<"))]
    where = f" ({Path(theirs[-1].filename).name}, line {theirs[-1].lineno})" if theirs else ""
    return f"with {type(error).__name__}{text}{where}"
