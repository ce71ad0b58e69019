"""Work on the GPU that the processor starts as one: a CUDA graph.

A training step of a small net is hundreds of kernels of a few microseconds each. To start them one by one takes the
processor longer than the GPU takes to run them.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

WARM_UP = 3  # calls before the capture: libraries choose their kernels, buffers are made


class Graphed:
    """``run(*inputs)``, recorded once and replayed from then on, with the same results.

    Inputs must keep their shapes and types. ``run`` must not wait for the GPU, and what it reads and writes beside its
    inputs must stay where it is in memory. Gradients are an exception: the recording makes them, and each replay
    overwrites them, so they must be None before the recording and must not be set to None after it.

    Args:
        run: returns a tensor. A replay overwrites what the replay before returned.
    """

    def __init__(self, run: Callable[..., Tensor]) -> None:
        self._run = run
        self._calls = 0
        self._stream = torch.cuda.Stream()  # a recording must not be made on the default stream
        self._graph: torch.cuda.CUDAGraph | None = None
        self._inputs: tuple[Tensor, ...] = ()
        self._output = torch.empty(0)

    @property
    def recorded(self) -> bool:
        return self._graph is not None

    def __call__(self, *inputs: Tensor) -> Tensor:
        self._calls += 1
        if self._calls <= WARM_UP:
            return self._beside(inputs)
        if self._graph is None:
            self._record(inputs)
        else:
            for kept, new in zip(self._inputs, inputs, strict=True):
                kept.copy_(new)
        assert self._graph is not None
        self._graph.replay()
        return self._output

    def _beside(self, inputs: tuple[Tensor, ...]) -> Tensor:
        """The result without a recording, on the stream of the recording."""
        current = torch.cuda.current_stream()
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            output = self._run(*inputs)
        current.wait_stream(self._stream)
        return output

    def _record(self, inputs: tuple[Tensor, ...]) -> None:
        self._inputs = tuple(one.clone() for one in inputs)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self._stream):
            self._output = self._run(*self._inputs)
        self._graph = graph
