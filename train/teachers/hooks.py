"""Layer taps: attention maps of the convolutions of any network, by forward hooks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType

from torch import Tensor, nn

from zoo.system.errors import UsageError, nearest
from zoo.train.teachers.attention import attention_map


def conv_names(model: nn.Module) -> list[str]:
    """The dotted names of the convolutions of ``model`` in the order of definition. This is forward order, except for
    1x1 shortcuts, which come after the convolutions that they bypass."""
    return [name for name, module in model.named_modules() if isinstance(module, nn.Conv2d)]


class Taps:
    """Hooks on the convolutions of a model that store attention maps while recording.

    A forward pass outside :meth:`recording` has no extra cost, compiled or not.

    Args:
        names: the convolutions to tap; all by default.

    Raises:
        UsageError: the model has no convolution of that name.
    """

    def __init__(self, model: nn.Module, names: Iterable[str] | None = None) -> None:
        known = conv_names(model)
        self.names = known if names is None else list(names)
        for name in self.names:
            if name not in known:
                raise UsageError(f"the network has no convolution '{name}'{nearest(name, known)}")
        self._on = False
        self._maps: dict[str, Tensor] = {}
        self._scales: dict[str, Tensor] = {}
        self._handles = [model.get_submodule(name).register_forward_hook(self._keep(name)) for name in self.names]

    def _keep(self, name: str):  # type: ignore[no-untyped-def]
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            if self._on:
                scale = self._scales.get(name)
                self._maps[name] = attention_map(output if scale is None else output * scale[:, None, None])

        return hook

    @contextmanager
    def recording(self, scales: Mapping[str, Tensor] = MappingProxyType({})) -> Iterator[None]:
        """Store the maps of the forward passes inside; each pass replaces the maps of the pass before.

        Args:
            scales: factors [C] of the channels of some convolutions, applied before the map.
        """
        self._on, self._scales = True, dict(scales)
        try:
            yield
        finally:
            self._on, self._scales = False, {}

    def maps(self) -> list[Tensor]:
        """The maps [N, H_i, W_i] of the last recorded pass in the order of ``names``; they are then forgotten."""
        taken = [self._maps[name] for name in self.names]
        self._maps.clear()
        return taken

    def remove(self) -> None:
        """Remove the hooks from the model."""
        for handle in self._handles:
            handle.remove()
