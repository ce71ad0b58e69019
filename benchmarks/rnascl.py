"""A step of RNAS-CL's search, and one of its training, against the same equations written out one by one.

The student is S7's, the teacher a WideResNet-34-2 (random weights: they do not change the speed). Memory is the peak
of a fresh process while it takes two steps, above what it held before the first.
"""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.timing import interleaved, row
from zoo.datasets.base import Dataset
from zoo.datasets.cifar10 import CIFAR10
from zoo.models import build
from zoo.models.staged import ConvBlock
from zoo.specs import WideResNetSpec
from zoo.train.methods.rnascl import CrossLayer, RnasCL
from zoo.train.recipes.phases import load_phases
from zoo.train.recipes.schema import Recipe
from zoo.train.rnascl.search import Searcher
from zoo.train.run.trainer import Trainer
from zoo.weights.load import load
from zoo.weights.tensors import save_weights

STEPS_A_ROUND = 2
OURS, ALGORITHM = "zoo (bf16, compiled)", "zoo (fp32, eager)"  # the latter shows what the algorithm alone is worth
CAREFUL, TEXTBOOK = "textbook, teacher in no_grad", "textbook"
CONTESTANTS = (OURS, ALGORITHM, CAREFUL, TEXTBOOK)
Step = Callable[[], object]


# -- the textbook ------------------------------------------------------------------------------------------------


class Heard:
    """Forward hooks that keep the activations [N, C, H, W] of some layers of a net, by place."""

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        self.activations: list[Tensor] = [torch.empty(0)] * len(layers)
        for place, layer in enumerate(layers):
            layer.register_forward_hook(self._keep(place))

    def _keep(self, place: int) -> Callable[[nn.Module, object, Tensor], None]:
        def hook(module: nn.Module, inputs: object, output: Tensor) -> None:
            self.activations[place] = output

        return hook

    def maps(self, size: int) -> list[Tensor]:
        """F(A) / ||F(A)|| of every layer at ``size`` x ``size``, one after the other: [N, size * size] each."""
        maps = []
        for activation in self.activations:
            one = activation.pow(2).sum(1, keepdim=True)
            one = F.interpolate(one, (size, size), mode="bilinear", align_corners=False).flatten(1)
            maps.append(one / one.norm(dim=1, keepdim=True).clamp_min(1e-12))
        return maps


def attention(student: list[Tensor], teacher: list[Tensor], g: Tensor) -> Tensor:
    """Eq. 1 as it stands: two loops, a norm for every pair that counts."""
    total = torch.zeros((), device=g.device)
    counts = [[True] * len(teacher)] * len(student) if g.requires_grad else (g > 0).tolist()
    for i, one in enumerate(student):
        for j, other in enumerate(teacher):
            if counts[i][j]:
                total = total + g[i, j] * (one - other).norm(dim=1).mean()
    return total / (len(student) * len(teacher))


class ChoiceBlock(nn.Module):
    """Z = sum_k g_k z_k, every z_k from a convolution of its own (section 3.3)."""

    def __init__(self, block: ConvBlock, widths: Sequence[int]) -> None:
        super().__init__()
        self.widest = max(widths)
        self.choices = nn.ModuleList(narrowed(block, width) for width in widths)
        self.heard: list[Tensor] = []
        for choice in self.choices:
            choice.conv.register_forward_hook(lambda module, inputs, output: self.heard.append(output))
        self.activation = nn.Identity()

    def forward(self, x: Tensor, g: Tensor) -> Tensor:
        self.heard.clear()
        z = self._sum(g, [choice(x) for choice in self.choices])
        self.activation(self._sum(g, self.heard))  # A of the block: of all its convolutions, weighted alike
        return z

    def _sum(self, g: Tensor, choices: Sequence[Tensor]) -> Tensor:
        total = torch.zeros((), device=g.device)
        for weight, z in zip(g, choices, strict=True):
            total = total + weight * F.pad(z, (0, 0, 0, 0, 0, self.widest - z.shape[1]))
        return total


def narrowed(block: ConvBlock, width: int) -> ConvBlock:
    """``block`` with its first ``width`` output channels only."""
    conv = block.conv
    narrow = ConvBlock(conv.in_channels, width, conv.stride[0], int(conv.padding[0]), "relu", block.shortcut)
    for key, target in narrow.state_dict().items():
        target.copy_(block.state_dict()[key][tuple(slice(size) for size in target.shape)])
    return narrow


class Textbook:
    """What search and training have in common: a teacher, tapped at every convolution, and the loss around it."""

    def __init__(self, ours: Trainer, *, teacher_gradients: bool) -> None:
        assert isinstance(ours.recipe.method, RnasCL)
        self.ours, self.settings, self.device = ours, ours.recipe.method, ours.device
        self.teacher = load(f"local-dir:{ours.teacher_name}").to(self.device)
        self.taught = Heard([module for module in self.teacher.modules() if isinstance(module, nn.Conv2d)])
        self.asking: Callable[[], AbstractContextManager] = nullcontext if teacher_gradients else torch.no_grad
        generator, n = torch.Generator().manual_seed(0), ours.recipe.train.batch_size
        self.x = torch.rand(n, 3, 32, 32, generator=generator).to(self.device)
        self.y = torch.randint(10, (n,), generator=generator).to(self.device)

    def sgd(self, net: nn.Module) -> torch.optim.SGD:
        return torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=2e-4)

    def distilled(self, x: Tensor, y: Tensor, logits: Tensor, student: Heard, g: Tensor) -> Tensor:
        """CE + kl KL(p, q) + gamma L_attn."""
        with self.asking():
            q = self.teacher(x).softmax(1)
        p = logits.softmax(1)
        kl = (p * (p / q).log()).sum(1).mean()
        size = self.settings.map_size
        attended = attention(student.maps(size), self.taught.maps(size), g)
        return F.cross_entropy(logits, y) + self.settings.kl * kl + self.settings.gamma * attended


class TextbookSearch(Textbook):
    """Eq. 2: a convolution for every width choice, and two updates a step."""

    def __init__(self, ours: Searcher, *, teacher_gradients: bool = True) -> None:
        super().__init__(ours, teacher_gradients=teacher_gradients)
        stem, *blocks, self.pool = build(ours.space.largest).to(self.device).features.children()
        for block, source in zip((stem, *blocks), ours.net.features, strict=False):
            block.load_state_dict(source.state_dict())
        self.blocks = [
            ChoiceBlock(block, widths)  # type: ignore[arg-type]
            for block, widths in zip(blocks, ours.space.blocks, strict=True)
        ]
        self.head = nn.Linear(ours.net.head.in_features, ours.net.head.out_features)
        self.head.load_state_dict(ours.net.head.state_dict())
        self.stem, self.mean, self.std = stem, ours.net.mean, ours.net.std
        self.net = nn.ModuleList([stem, *self.blocks, self.head]).to(self.device)
        self.heard = Heard([stem.get_submodule("conv"), *(block.activation for block in self.blocks)])
        self.v = [torch.zeros(len(widths), device=self.device, requires_grad=True) for widths in ours.space.blocks]
        self.tutors = [
            torch.zeros(len(self.taught.activations), device=self.device, requires_grad=True)
            for _ in self.heard.activations
        ]
        self.optimizer = self.sgd(self.net)
        self.choices_optimizer = torch.optim.Adam([*self.v, *self.tutors], lr=0.01)

    def loss(self, x: Tensor, y: Tensor, g: Sequence[Tensor], tutors: Tensor) -> Tensor:
        z = self.stem((x - self.mean) / self.std)
        for block, weights in zip(self.blocks, g, strict=True):
            z = block(z, weights)
        loss = self.distilled(x, y, self.head(self.pool(z)), self.heard, tutors)
        assert isinstance(self.ours, Searcher)
        return loss * self.ours.latency(list(g))

    def step(self) -> Tensor:
        cut = round(0.8 * len(self.x))
        for part, optimizer in ((slice(0, cut), self.optimizer), (slice(cut, None), self.choices_optimizer)):
            g = [F.gumbel_softmax(v, tau=5.0, dim=0) for v in self.v]
            tutors = torch.stack([F.gumbel_softmax(v, tau=5.0, dim=0) for v in self.tutors])
            loss = self.loss(self.x[part], self.y[part], g, tutors)
            self.optimizer.zero_grad()
            self.choices_optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return loss.detach()


class TextbookTraining(Textbook):
    """Eq. 3: one tutor a layer."""

    def __init__(self, ours: Trainer, *, teacher_gradients: bool = True) -> None:
        super().__init__(ours, teacher_gradients=teacher_gradients)
        self.net = build(ours.recipe.arch).to(self.device)
        self.net.load_state_dict(ours.net.state_dict())
        self.heard = Heard([module for module in self.net.modules() if isinstance(module, nn.Conv2d)])
        assert ours.teacher is not None
        assert isinstance(ours.parts, CrossLayer)
        layers = ours.teacher.layers
        self.g = torch.zeros(len(self.heard.activations), len(layers), device=self.device)
        for i, tutor in enumerate(ours.parts.tutors.values()):
            self.g[i, layers.index(tutor)] = 1
        self.optimizer = self.sgd(self.net)

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        return self.distilled(x, y, self.net(x), self.heard, self.g)

    def step(self) -> Tensor:
        loss = self.loss(self.x, self.y)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.detach()


# -- the race ----------------------------------------------------------------------------------------------------


@contextmanager
def scene() -> Iterator[tuple[Path, Dataset]]:
    """A teacher's model folder, and images: neither weights nor pixels change the speed."""
    with tempfile.TemporaryDirectory() as name:
        root, spec, rng = Path(name), WideResNetSpec(depth=34, widen=2), np.random.default_rng(0)
        save_weights(build(spec).state_dict(), root / "model.safetensors")
        (root / "config.json").write_text(json.dumps({"spec": spec.to_dict()}), encoding="utf-8", newline="\n")
        for split, n in (("train", 3000), ("test", 1)):
            np.save(root / f"{split}_images.npy", rng.integers(0, 256, (n, 32, 32, 3), np.uint8))
            np.save(root / f"{split}_labels.npy", rng.integers(0, 10, n))
        yield root, replace(CIFAR10, root=root)


def contestant(phase: str, name: str, teacher: Path, dataset: Dataset, batch: int) -> Step:
    """A function that takes one step and waits for it."""
    ours = _ours(_recipe(phase, teacher, batch, plain=name != OURS), dataset)
    if name in (OURS, ALGORITHM):
        ours.net.train()
        return lambda: ours.train_step().item()
    gradients = name == TEXTBOOK
    textbook = (
        TextbookSearch(ours, teacher_gradients=gradients)
        if isinstance(ours, Searcher)
        else TextbookTraining(ours, teacher_gradients=gradients)
    )
    return lambda: textbook.step().item()


def _recipe(phase: str, teacher: Path, batch: int, *, plain: bool) -> Recipe:
    settings = [f"teacher.name={teacher}", "method.tutors=depth", "teacher.versions=0", f"train.batch_size={batch}"]
    settings += ["train.precision=fp32", "train.compile=false"] if plain else []
    return load_phases("rnascl-s7-wrt34-2", overrides=settings)[phase]


def _ours(recipe: Recipe, dataset: Dataset) -> Trainer:
    return (Searcher if recipe.search else Trainer)(recipe, dataset)


def race(phase: str, teacher: Path, dataset: Dataset, *, rounds: int, batch: int, steps: int) -> dict:
    def round_of(step: Step) -> Step:
        return lambda: [step() for _ in range(steps)]

    runners = {name: round_of(contestant(phase, name, teacher, dataset, batch)) for name in CONTESTANTS}
    seconds = interleaved(runners, rounds=rounds)
    what = f"RNAS-CL, a {phase} step, S7 of a WRN-34-2, {steps} batches of {batch}"
    result = row(what, OURS, seconds, goal={TEXTBOOK: 3.0})
    result["images_per_s"] = {name: steps * batch / median for name, median in result["median_s"].items()}
    result["peak_mib"] = {name: _peak_of_a_process(phase, name, batch) for name in CONTESTANTS}
    return result


def run(*, rounds: int = 5, batch: int = 128, steps: int = STEPS_A_ROUND) -> list[dict]:
    with scene() as (teacher, dataset):
        return [race(phase, teacher, dataset, rounds=rounds, batch=batch, steps=steps) for phase in ("search", "train")]


# -- memory ------------------------------------------------------------------------------------------------------


def _peak_of_a_process(phase: str, name: str, batch: int) -> float:
    command = [sys.executable, "-m", "benchmarks.rnascl", phase, name, str(batch)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def peak_mib(step: Step) -> float:
    """MiB that two steps need above what is held before the first; one before them compiles and fills caches.

    On a GPU what its allocator hands out; on Linux the resident set. What compilation leaves behind counts.
    """
    if torch.cuda.is_available():
        before = torch.cuda.memory_allocated()
        step()
        torch.cuda.reset_peak_memory_stats()
        step(), step()
        return round((torch.cuda.max_memory_allocated() - before) / 2**20, 1)
    ctypes.CDLL(None).malloc_trim(0)  # what set-up freed is not at hand for the steps
    before = _status()["VmRSS"]
    step()
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8", newline="\n")  # the peak starts anew
    step(), step()
    return round((_status()["VmHWM"] - before) / 2**10, 1)


def _status() -> Mapping[str, int]:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return {key: int(value.split()[0]) for key, value in (line.split(":") for line in lines if line.startswith("Vm"))}


if __name__ == "__main__":
    with scene() as (folder, images):
        print(json.dumps(peak_mib(contestant(sys.argv[1], sys.argv[2], folder, images, int(sys.argv[3])))))
