"""Penultimate features of a net, by a forward hook: what RRM compares."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from zoo.system.errors import UsageError, nearest


class Features:
    """A hook that keeps the features [N, C] of a forward pass inside :meth:`recording`.

    Args:
        layer: the module whose output are the features, averaged over height and width where it has them. By default
            they are the input of the last linear layer.
        whose: "student" or "teacher", for messages.

    Raises:
        UsageError: the model has no module of that name.
    """

    def __init__(self, model: nn.Module, layer: str | None = None, *, whose: str) -> None:
        self._on, self._kept = False, None
        self._layer, self._whose = layer, whose
        self._hook(model)

    def _hook(self, model: nn.Module) -> RemovableHandle:
        layer = self._layer
        if layer is None:
            head = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
            return head.register_forward_pre_hook(lambda module, inputs: self._keep(inputs[0]))
        modules = {name: module for name, module in model.named_modules() if name}
        if layer not in modules:
            hint = nearest(layer, modules) or f" (at the top: {', '.join(name for name, _ in model.named_children())})"
            raise UsageError(f"the {self._whose} has no layer '{layer}'{hint}")
        return modules[layer].register_forward_hook(lambda module, inputs, output: self._keep(output))

    def _keep(self, value: Any) -> None:
        if self._on:
            self._kept = value

    @contextmanager
    def recording(self, other: nn.Module | None = None) -> Iterator[None]:
        """Keep the features of the forward passes inside, of ``other`` in place of the model if it is given."""
        handle = None if other is None else self._hook(other)
        self._on = True
        try:
            yield
        finally:
            self._on = False
            if handle is not None:
                handle.remove()

    def taken(self) -> Tensor:
        """The features [N, C] of the last recorded pass; they are then forgotten.

        Raises:
            UsageError: the pass did not call the layer.
        """
        value, self._kept = self._kept, None
        if value is None:
            raise UsageError(
                f"the {self._whose}'s layer '{self._layer}' is never called: choose a layer inside or after it"
            )
        return value.float().mean((2, 3)) if value.dim() == 4 else value.float()
