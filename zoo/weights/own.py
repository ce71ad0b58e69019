"""A model of the user's own: the ``nn.Module`` that a function in Python returns, at the address
``package.module:function``. It can be measured like the models of the zoo, and nothing else, as it has no spec.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from zoo.datasets import dataset_called
from zoo.system.errors import UsageError, first_line, nearest
from zoo.weights.address import Address
from zoo.weights.load import ORIGIN, Task
from zoo.weights.tensors import tensors_sha256

if TYPE_CHECKING:
    from torch import nn

    from zoo.datasets.base import Dataset


@dataclass(frozen=True)
class Own:
    """A model in Python. Its properties and methods are those of :class:`zoo.weights.load.Found`.

    Attributes:
        address: of the function.
        code: the function, or any callable without arguments; a model itself is taken as it is.
        dataset: what the model classifies; its images need not be here yet.
    """

    address: Address
    code: Callable[..., object]
    dataset: Dataset

    @property
    def task(self) -> Task:
        """Its data set; l-infinity with 8/255."""
        return Task(self.dataset.name)

    def images(self, data: Path | str | None = None, *, offline: bool = False) -> Dataset:
        """Its data set with the images; arguments and errors are those of :meth:`zoo.datasets.base.Dataset.load`."""
        return self.dataset.load(data, offline=offline)

    def load(self) -> nn.Module:
        """The model, on the CPU and in eval mode.

        Raises:
            UsageError: the function fails, or does not return a model for the data set.
        """
        import torch
        from torch import Tensor, nn

        code = self.code
        model = code if isinstance(code, nn.Module) else _called(f"'{self.address}' fails", code)
        if not isinstance(model, nn.Module):
            raise UsageError(f"'{self.address}' returns a value of type {type(model).__name__}, not an nn.Module")
        model = model.cpu().eval()
        shape, classes = (1, 3, self.dataset.image_size, self.dataset.image_size), len(self.dataset.classes)
        with torch.no_grad():
            logits = _called(f"the model of '{self.address}' fails on images {list(shape)}", model, torch.zeros(shape))
        if not isinstance(logits, Tensor) or logits.ndim != 2 or (classes and logits.shape != (1, classes)):
            got = list(logits.shape) if isinstance(logits, Tensor) else f"a value of type {type(logits).__name__}"
            raise UsageError(
                f"the model of '{self.address}' must map images {list(shape)} to logits [1, {classes or 'classes'}] "
                f"for {self.dataset.title}, not to {got}"
            )
        vars(model)[ORIGIN] = tensors_sha256(model)
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
        with _users_code():
            module = import_module(name)
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and error.name and f"{name}.".startswith(f"{error.name}."):
            raise UsageError(
                f"'{address}': Python finds no module '{error.name}' in this folder or among the installed packages"
            ) from None
        raise UsageError(f"importing '{name}' fails with {type(error).__name__}: {first_line(error)}") from error
    if not hasattr(module, attribute):
        known = [one for one in vars(module) if not one.startswith("_")]
        raise UsageError(f"'{address}': the module '{name}' has no '{attribute}'{nearest(attribute, known)}")
    if not callable(code := getattr(module, attribute)):
        raise UsageError(f"'{address}' is a value of type {type(code).__name__}, not a function that returns a model")
    return Own(address, code, images)


@contextmanager
def _users_code() -> Iterator[None]:
    """Inside, modules in the working folder can be imported, and what is printed goes to stderr."""
    sys.path.insert(0, here := str(Path.cwd()))
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        sys.path.remove(here)


def _called(failing: str, code: Callable[..., object], *arguments: object) -> object:
    """What ``code`` returns; UsageError if it raises an exception."""
    try:
        with _users_code():
            return code(*arguments)
    except Exception as error:
        raise UsageError(f"{failing} with {type(error).__name__}: {first_line(error)}") from error
