"""What every engine is: a function from images to logits that can say what runs it, and can be closed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from pathlib import Path
from threading import Lock, Semaphore
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from zoo.export.bundle.manifest import Precision
from zoo.export.engines import Backend
from zoo.export.gradients import artifact_gradients
from zoo.export.gradients.onnx import own_gradients
from zoo.models import Classifier
from zoo.system.errors import IntegrityError, MissingDependency, UsageError, WrongDevice, ZooError, first_line
from zoo.system.toolchain import clash

FLOAT32, UINT32 = np.dtype(np.float32), np.dtype(np.uint32)
ONE = int(np.float32(1).view(np.uint32))
REFUSALS: dict[str, type[ZooError]] = {"missing": MissingDependency, "device": WrongDevice, "usage": UsageError}


@dataclass(frozen=True, kw_only=True)
class Order:
    """What an engine is to be built from.

    Attributes:
        model: the float model, in eval mode, as it was loaded.
        graph: ``model.onnx``: in ``precision`` for engines that start from ONNX, in fp32 for the others.
        batches: batch sizes that will be used; the engine must take these, 1 and 2.
        calibration: images [N, C, H, W] in [0, 1] to choose int8 ranges by; None for the other precisions.
    """

    model: Classifier
    graph: Path
    precision: Precision
    batches: tuple[int, ...]
    calibration: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class Built:
    """What an engine's ``build`` left in the bundle's folder.

    Attributes:
        file: what ``load`` takes, relative to the folder.
        companions: files that ``file`` cannot do without.
        built_for: facts of the device and runtime that it is bound to; empty where it runs anywhere.
        options: how it was built, for the manifest.
    """

    file: str
    companions: tuple[str, ...] = ()
    built_for: dict[str, str] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)


class Engine:
    """A loaded artifact: float32 images [N, C, H, W] in [0, 1] to float32 logits [N, classes], always in new memory.

    Casting to what the artifact computes in is the engine's own business, so that a caller need not know it. Threads
    may share it: some wait for others. Close it when it is no longer needed, or use it in a ``with`` block.

    Args:
        run: checked images to logits, both arrays.
        shape: (C, H, W) of an image.
        facts: of the runtime, see :meth:`describe`.
        gradients: see :meth:`differentiable`.
        callers: how many threads it answers at the same time.
    """

    def __init__(
        self,
        run: Callable[[np.ndarray], np.ndarray],
        shape: tuple[int, int, int],
        facts: dict[str, Any],
        gradients: Callable[[Classifier], nn.Module | None] = lambda model: None,
        callers: int = 1,
    ) -> None:
        self.shape, self.facts = shape, facts
        self._run: Callable[[np.ndarray], np.ndarray] | None = run
        self._gradients = gradients
        self._turn: AbstractContextManager[Any] = Lock() if callers == 1 else Semaphore(callers)

    def __call__(self, images: Tensor | np.ndarray) -> Tensor:
        """Images [N, C, H, W] to logits [N, classes].

        Raises:
            UsageError: not a batch of float32 images in [0, 1], or the engine is closed.
        """
        # Copies, because an engine may write into its images, and an attack into the logits.
        x = checked(images, self.shape)
        with self._turn:
            logits = self.running()(x)
        return torch.from_numpy(np.array(logits, dtype=np.float32))

    def differentiable(self, model: Classifier) -> nn.Module | None:
        """``model`` with the weights that are in the artifact, for gradients; None if there is no such thing.

        Whether it computes what the engine does is for the caller to check.
        """
        return self._gradients(model)

    def describe(self) -> dict[str, Any]:
        """Facts for the manifest: at least ``engine``, its ``version``, and the ``device`` that it runs on."""
        return self.facts

    def running(self) -> Callable[[np.ndarray], np.ndarray]:
        """What runs a batch; UsageError if the engine is closed."""
        if self._run is None:
            raise UsageError("this engine is closed: load it again")
        return self._run

    def close(self) -> None:
        """Free the runtime's session and its memory. Closing twice does nothing."""
        self._run = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def run_locally(
    engine: Backend, parts: Sequence[Path], threads: int | None, graph: Path | None, *, callers: int = 1, **options: Any
) -> Engine:
    """The artifact in the files ``parts``, run by ``zoo/export/runtimes/<engine>.py``.

    Args:
        graph: the ONNX file that it was made from, for gradients; None if they are to be had from the artifact itself.
        callers: of which the runtime answers so many at the same time.

    Raises:
        MissingDependency: the runtime is not installed, or lacks what the options ask for.
        WrongDevice: the options ask for a device that is not here.
        IntegrityError: the files are not a classifier that it can load.
    """
    check_threads(threads)
    runtime = import_module(f"zoo.export.runtimes.{engine.module}")
    version = engine.imported(runtime.PACKAGE).__version__
    try:
        run, shape, facts = runtime.open([str(part) for part in parts], threads, **options)
    except Exception as error:  # the runtimes' exceptions have no base class of their own
        if refused := refusal(error):
            raise refused from None
        raise IntegrityError(f"{engine.title} cannot load '{parts[0]}': {first_line(error)}") from None
    facts = {"engine": engine.name, "version": version, **facts} | ({"callers": callers} if callers > 1 else {})
    read = partial(artifact_gradients, engine.module, parts[0]) if graph is None else partial(own_gradients, graph)
    return Engine(run, shape, facts, read, callers)


def refusal(error: Exception) -> ZooError | None:
    """What a runtime in ``zoo/export/runtimes`` means by ``error``, if it says of which kind the trouble is."""
    kind = REFUSALS.get(getattr(error, "kind", ""))
    if kind is None:
        return None
    return kind(f"{error}; {also}" if kind is MissingDependency and (also := clash()) else str(error))


def check_threads(threads: int | None) -> None:
    """Raise UsageError unless ``threads`` is 1 or more, or None."""
    if threads is not None and threads < 1:
        raise UsageError(f"an engine runs on 1 thread or more, not on {threads}")


def checked(images: Tensor | np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """A copy of ``images`` as an array [N, C, H, W].

    Raises:
        UsageError: not a batch of float32 images of ``shape`` (C, H, W) with all values in [0, 1].
    """
    if not isinstance(images, np.ndarray) and isinstance(images, Tensor) and images.dtype is torch.float32:
        images = images.detach().cpu().numpy()
    if isinstance(images, np.ndarray) and images.dtype is FLOAT32 and images.shape[1:] == shape and len(images):
        x = images.copy()
        # Read as integers, the floats in [0, 1] are those up to 1.0. argmax is the fastest pass: 2 us, aminmax takes 9.
        bits = x.view(UINT32)
        if bits.item(bits.argmax()) <= ONE:
            return x
    if found := _fault(images, shape):
        raise UsageError(f"an image batch {found}")
    return np.array(images, FLOAT32, order="C")  # there is a -0.0


def _fault(images: Any, shape: tuple[int, int, int]) -> str | None:
    """Why these are no image batch; None if they are."""
    if not isinstance(images, Tensor | np.ndarray):
        return f"is a tensor or an array, not {type(images).__name__}"
    if images.ndim != 4 or images.shape[1:] != shape or not len(images):
        return f"has shape [N, {', '.join(map(str, shape))}] with N >= 1, not {list(images.shape)}"
    kind = str(images.dtype).removeprefix("torch.")
    if kind != "float32":
        return f"is float32, not {kind}{'; divide by 255 first' if kind == 'uint8' else ''}"
    low, high = float(images.min()), float(images.max())
    if low >= 0 and high <= 1:  # neither is NaN
        return None
    found = "holds NaN" if low != low else f"spans [{low:.6g}, {high:.6g}]"
    return f"lies in [0, 1] (normalisation is inside the model), this one {found}"
