"""Int8 with robustness as the metric: as few layers stay in float as keep the accuracy under attack.

The search is greedy. Layers are ranked by the rounding noise that each puts into the logits, for the work that it takes
in float; how many of the first must stay in float is then found by halving. What is lost is measured as on the rung
"targeted" of the ladder, on training images that no model is trained on: under walks along the gradients of the
quantised graph, which ONNX Runtime runs whatever engine it is for; what another engine computes otherwise is left to
the sign-off.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from math import ceil, log2
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch import Tensor

from zoo.attacks import margin
from zoo.datasets.base import Split, to_float
from zoo.evaluation.evaluate import prepare
from zoo.evaluation.perturb import perturb
from zoo.evaluation.protocols import Protocol
from zoo.evaluation.statistics import Paired
from zoo.export.bundle.manifest import Search
from zoo.export.engines import onnxruntime
from zoo.export.engines.interface import Engine
from zoo.export.engines.twin import Twin
from zoo.export.ladder.climb import WIDE_FOR_WALKS, Progress, silent, wide
from zoo.export.ladder.rungs import PARITY_IMAGES, Tick, spread, survivors
from zoo.export.ladder.surrogate import surrogate
from zoo.export.onnx.int8 import Layer, layers_of
from zoo.models import Classifier
from zoo.system.errors import ExportFailed

RANKED_ON = 250  # images
Quantise = Callable[..., None]  # to_int8 but for its path, kept and ranges


def search(
    model: Classifier,
    graph: Path,
    quantise: Quantise,
    held_out: Split,
    protocol: Protocol,
    *,
    allowed: float,
    inputs_only: bool = False,
    progress: Progress = silent,
) -> Search:
    """Quantise the float graph at ``graph`` with as few layers in float as keep the accuracy under attack.

    Args:
        model: the float twin, in eval mode.
        held_out: images that the model was not trained on and is not tested on.
        protocol: PGD with a step size and steps, towards targets or not, on the first n of them.
        allowed: the accuracy under attack that may be lost, as a share (0.005 is half a point): the observed
            difference, not its upper 95 % bound, which is higher by about as much at 1,000 images.
        inputs_only: whether ``quantise`` rounds the inputs of convolutions alone.

    Raises:
        ExportFailed: more is lost with any layer in int8, or the graph has no gradients.
    """
    layers = layers_of(graph, inputs_only=inputs_only)
    most = 1 + ceil(log2(len(layers)))
    with TemporaryDirectory() as folder:
        trials = Trials(model, graph, quantise, held_out, protocol, Path(folder) / graph.name)

        def lost(kept: Sequence[Layer], number: int) -> Paired:
            return trials.lost(kept, lambda done, total: progress("search", number * total + done, most * total))

        before = found = lost([], 0)
        order: list[Layer] = []
        fewest, measured = 0, 1
        if before.difference > allowed:
            order = sorted(layers, key=lambda layer: trials.noise(layer, layers) / layer.work, reverse=True)
            low, fewest = 0, len(order)  # with so many in float too much is lost, and nothing
            while fewest - low > 1:
                middle = (low + fewest) // 2
                pair = lost(order[:middle], measured)
                measured += 1
                if pair.difference > allowed:
                    low = middle
                else:
                    fewest, found = middle, pair
        if fewest == len(order) > 0:
            raise ExportFailed(
                f"with a single layer in int8, more than {100 * allowed:g} points of accuracy under attack are lost: "
                "allow more, or take fp16"
            )
        kept = order[:fewest]
        trials.engine(kept).close()
        shutil.copy(trials.attempt, graph)
    progress("search", 1, 1)
    return Search(
        kept=tuple(names(kept)),
        macs=sum(layer.macs for layer in kept) / sum(layer.macs for layer in layers),
        allowed=allowed,
        before=before.difference,
        lost=found.difference,
        upper95=found.upper(),
        only_twin_right=found.b,
        only_engine_right=found.c,
        protocol=protocol.model_dump(exclude_none=True),
        graphs=measured,
    )


def names(layers: Iterable[Layer]) -> list[str]:
    """The names of all nodes of these layers."""
    return [name for layer in layers for name in layer.nodes]


class Trials:
    """Measures quantised graphs, one after the other in the file ``attempt``.

    An image from which the walks on one graph left wide margins is not attacked on the next. That assumes that graphs
    of one model, which differ by their rounding alone, have about the same gradients: a weakness of the next that the
    first has not is missed there, and left to the sign-off.
    """

    def __init__(
        self, model: Classifier, graph: Path, quantise: Quantise, held_out: Split, protocol: Protocol, attempt: Path
    ) -> None:
        self.model, self.graph, self.quantise, self.protocol, self.attempt = model, graph, quantise, protocol, attempt
        self.images, self.labels = held_out.images[: protocol.n], held_out.labels[: protocol.n]
        self.twin = Twin.of(model)
        self.least = WIDE_FOR_WALKS * spread(self.twin(to_float(self.images[:PARITY_IMAGES])))
        self.wide = np.zeros(len(self.labels), bool)

    def lost(self, kept: Iterable[Layer], tick: Tick) -> Paired:
        """What is lost under attack with these layers in float."""
        with self.engine(kept) as engine:
            own = engine.differentiable(self.model)
            if own is None:
                raise ExportFailed("no gradients can be had of the int8 graph, so that no search can attack it")
            attack, right = surrogate(prepare(own), self.twin, engine, self.protocol), np.ones(len(self.labels), bool)
            margins = np.full((2, len(self.labels)), np.nan, np.float32)
            given = self.images, self.labels, (right, right), self.protocol.seed, tick, margins
            bits = survivors(attack, self.twin, engine, *given, np.stack([self.wide] * 2))
            self.wide |= wide(margins, bits, self.least)
            return Paired.of(*bits)

    def noise(self, layer: Layer, layers: Sequence[Layer]) -> float:
        """The power of the noise in the margins of attacked images with this one of the ``layers`` in int8."""
        x, y, exact = self.attacked
        with self.engine(one for one in layers if one is not layer) as engine:
            return (margin(engine(x), y) - exact).abs().median().item() ** 2  # few are clipped, and those far off

    @cached_property
    def attacked(self) -> tuple[Tensor, Tensor, Tensor]:
        """Attacked images, their labels, and the twin's margins."""
        y = torch.from_numpy(self.labels[:RANKED_ON].astype(np.int64))
        x = perturb(self.protocol, self.twin.model, to_float(self.images[:RANKED_ON]), y, early_stop=False)
        return x, y, margin(self.twin(x), y)

    def engine(self, kept: Iterable[Layer]) -> Engine:
        """The graph with these layers in float and all others in int8."""
        shutil.copy(self.graph, self.attempt)
        self.quantise(self.attempt, kept=names(kept), ranges=self.attempt.with_suffix(".json"))
        return onnxruntime.load(self.attempt, threads=torch.get_num_threads(), **onnxruntime.PATIENT)
