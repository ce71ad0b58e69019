"""One run of a recipe: the network, its average, the optimizer, and the training steps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, broadcast, set_seed
from torch import Tensor, nn

from zoo.datasets.base import Dataset, check_labels, to_float
from zoo.evaluation.together import alone
from zoo.models import build
from zoo.models.depthwise import thin
from zoo.system.errors import UsageError
from zoo.system.notice import say_once
from zoo.train.data.images import InMemory, source_of
from zoo.train.methods.method import Batch, Method, Step
from zoo.train.recipes.schema import ONLY, Recipe
from zoo.train.run import schedule
from zoo.train.run.batches import Batches
from zoo.train.run.ema import Average, recalibrate
from zoo.train.run.graph import Graphed
from zoo.train.run.judge import accuracies
from zoo.train.run.model_folder import save_model
from zoo.train.run.precision import precision_on
from zoo.train.run.qat import floating, quantised
from zoo.train.teachers.cache import CachedAnswers, Versions
from zoo.train.teachers.teacher import Teacher, record
from zoo.weights.load import find


@dataclass
class Position:
    """The state of a run besides its tensors, as a checkpoint stores it."""

    step: int = 0
    attempt: int = 0  # rollbacks so far; changes the seed of what follows
    seconds: float = 0.0
    best: float = 0.0  # best guarded PGD accuracy of the raw weights
    done: bool = False  # a run that a time budget ended stays done, even if it is resumed without a budget
    history: list[dict[str, Any]] = field(default_factory=list)


class Trainer:
    """A run of a recipe; its result is the same for any number of processes."""

    fused = True  # SGD in one kernel
    steady = True  # every step is the same work

    def __init__(
        self,
        recipe: Recipe,
        dataset: Dataset,
        *,
        start: str | None = None,
        time_budget: float | None = None,
        phase: str = ONLY,
        earlier: Sequence[Mapping[str, Any]] = (),
        teacher: str | None = None,
    ) -> None:
        """Arguments as in :func:`zoo.train.run.loop.fit`."""
        self.recipe, self.dataset, self.time_budget = recipe, dataset, time_budget
        self.phase, self.earlier, self.earlier_model = phase, list(earlier), teacher
        alone()  # refused here where the other processes cannot be found
        # BatchNorm statistics sent at every pass would change under a loss of two passes, which PyTorch 2.11 refuses.
        own_statistics = DistributedDataParallelKwargs(broadcast_buffers=False)
        self.accelerator = Accelerator(cpu=not torch.cuda.is_available(), kwargs_handlers=[own_statistics])
        self.device = self.accelerator.device
        self.precision = precision_on(self.device, recipe.train.precision)
        processes = self.accelerator.num_processes
        if recipe.train.batch_size % processes:
            raise UsageError(
                f"train.batch_size={recipe.train.batch_size} cannot be divided among {processes} processes: "
                f"choose a multiple of {processes}"
            )
        if self.device.type == "cuda":
            torch.backends.cudnn.benchmark = True  # batches keep their shape
        set_seed(recipe.train.seed)

        train, held_out = dataset.split("train"), dataset.split("validation")
        for part in (train, held_out):
            check_labels(part.labels, recipe.arch.classes, f"the {part.name} split in '{dataset.root}'")
        images = source_of(train, self.device, recipe.train.images)
        place = {"process": self.accelerator.process_index, "processes": processes}
        self.batches = Batches(images, recipe.train.batch_size, recipe.train.seed, **place)
        guarded = slice(0, recipe.guard.images)
        self.held_out = (
            to_float(held_out.images[guarded]).to(self.device, memory_format=torch.channels_last),
            torch.from_numpy(held_out.labels[guarded].copy()).to(self.device),
        )

        net = self.network()
        self.started_from: dict[str, Any] | None = None if start is None else find(start, folders=True).reference()
        if start is not None:
            self.begin(net, start)
        if recipe.train.int8:
            net = quantised(net, self.batches.samples())
        if self.precision == "bf16" and self.device.type == "cpu":
            thin(net)
        net = net.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        if processes > 1 and self.device.type == "cuda":
            net = nn.SyncBatchNorm.convert_sync_batchnorm(net)
        self.ema = Average(net, recipe.ema.decay, statistics=not recipe.ema.recalibrate)
        self.net: nn.Module = net
        if recipe.train.compile:
            # Train and eval mode, with and without gradients or taps, for several batch sizes: more than the default.
            torch._dynamo.config.recompile_limit = max(32, torch._dynamo.config.recompile_limit)
            torch._dynamo.config.skip_nnmodule_hook_guards = False  # nets with hooks and without share their code
            self.net.compile(dynamic=False)
            self.ema.module.compile(dynamic=False)
        self.forward = self.parallel(self.net) if processes > 1 else self.net
        options = recipe.optimizer
        self.teacher_record: dict[str, Any] | None = None
        self.teacher = self.named_teacher()
        self.parts = self.own_parts()  # refuses layers that the teacher does not have, before what takes long
        if self.teacher is not None:
            self.consult(self.teacher)
        with self.accelerator.main_process_first():
            self.batches.source = recipe.method.images(self.batches.source, self.teacher)
        self.optimizer = torch.optim.SGD(
            [*self.net.parameters(), *(self.parts.parameters() if self.parts else ())],
            fused=self.fused,
            lr=options.lr,
            momentum=options.momentum,
            nesterov=options.nesterov,
            weight_decay=options.weight_decay,
        )
        self.position = Position()
        self.graph = Graphed(self._gradients) if self.graphs else None
        if recipe.train.graph and self.graph is None:
            say_once(
                "train.graph = true has no effect here: it takes one CUDA GPU and a method with one update from a "
                "batch, without a search, a dynamic net, int8 and cached answers"
            )

    def network(self) -> nn.Module:
        """The network to train, freshly initialised."""
        return build(self.recipe.arch)

    def begin(self, net: nn.Module, start: str) -> None:
        """Give ``net`` the weights of the model ``start``."""
        model = find(start, folders=True)
        if model.spec != self.recipe.arch:
            raise UsageError(f"'{start}' has another architecture than [arch] of the recipe: remove one of the two")
        net.load_state_dict(model.load().state_dict())

    def parallel(self, net: nn.Module) -> nn.Module:
        """``net`` in a data-parallel wrapper, which averages gradients over all processes."""
        return self.accelerator.prepare_model(net)

    @property
    def teacher_name(self) -> str | None:
        """The name or the folder of the frozen teacher, if the method needs one."""
        return self.recipe.teacher.name if self.recipe.teacher and self.recipe.method.needs else None

    def named_teacher(self) -> Teacher | None:
        """The frozen teacher, if the method needs one."""
        name, needs = self.teacher_name, self.recipe.method.needs
        if name is None or needs is None:
            return None
        size = {"size": needs.maps} if needs.maps else {}
        teacher = Teacher(name, self.device, compile=self.recipe.train.compile, **size)
        teacher.check(self.recipe.arch, self.dataset.classes)
        return teacher

    def consult(self, teacher: Teacher) -> None:
        """Record how accurate the teacher is, and cache its answers if the recipe has ``teacher.versions``."""
        name, settings = self.teacher_name, self.recipe.teacher
        assert name is not None
        assert settings is not None
        if self.accelerator.is_main_process:
            self.teacher_record = record(name, self.dataset)
        if settings.versions:
            if not isinstance(self.batches.source, InMemory):
                raise UsageError("answers can be cached for images in memory only: set teacher.versions = 0")
            self.batches.versions = versions = Versions(self.batches.source, settings.versions)
            with self.accelerator.main_process_first():
                teacher.cached = CachedAnswers(teacher, versions, self.autocast(), precision=self.precision)

    def own_parts(self) -> nn.Module | None:
        """Modules that the method trains beside the net."""
        train = self.recipe.train
        how = {"compile": train.compile, "seed": train.seed, "dynamic": self.recipe.supernet is not None}
        return self.recipe.method.parts(self.hooked, self.teacher, **how)

    @property
    def hooked(self) -> nn.Module:
        """The net whose layers the method's modules look at."""
        return self.net

    # -- schedule and steps ----------------------------------------------------------------------------------

    @property
    def steps_per_epoch(self) -> int:
        return self.batches.per_epoch

    @property
    def total_steps(self) -> int:
        return max(1, self.recipe.train.epochs * self.steps_per_epoch // self.recipe.method.replays)

    def progress(self, seconds: float) -> float:
        """The share of the run that is done, by steps or by time budget, whichever is larger. So a time budget
        shortens the schedule and does not cut it off."""
        if self.position.done:
            return 1.0
        share = self.position.step / self.total_steps
        if self.time_budget is None:
            return share
        share = max(share, seconds / self.time_budget)
        if self.accelerator.num_processes > 1:  # one clock for all: they must stop at the same step
            share = broadcast(torch.tensor(share, device=self.device)).item()
        return share

    def rate(self, progress: float) -> float:
        """The learning rate."""
        options = self.recipe.optimizer
        if options.schedule == "onecycle":
            return options.lr * schedule.onecycle(progress, warmup=options.warmup)
        if options.schedule == "cosine":
            return options.lr * schedule.cosine(progress)
        return options.lr * schedule.step(progress, milestones=options.milestones, gamma=options.gamma)

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")

    def batch(self, step: int) -> Batch:
        """This process's share of batch ``step``."""
        return self.batches.batch(step, self.position.attempt)

    def step(self, batch: Batch) -> Step:
        """``batch`` and the net that learns from it, with the teacher's answer on clean images if it is needed."""
        teacher, needs = self.teacher, self.recipe.method.needs
        with self.autocast():
            answer = teacher(batch.x, batch.rows) if teacher and needs and needs.clean else None
        return Step(self.net, self.forward, batch, self.recipe.attack, self.parts, teacher, answer)

    @property
    def on_one_gpu(self) -> bool:
        return self.accelerator.num_processes == 1 and self.device.type == "cuda"

    @property
    def graphs(self) -> bool:
        """Whether a step's attack, loss and gradients are one CUDA graph: they must be the same work in every step."""
        one_update = type(self.recipe.method).updates is Method.updates
        same = self.steady and one_update and self.batches.versions is None and not self.recipe.train.int8
        return self.recipe.train.graph and same and self.on_one_gpu

    def train_step(self) -> Tensor:
        """Update the weights and their average from one batch. The last loss is returned without a synchronisation."""
        batch = self.batch(self.position.step)
        if self.graph:
            last = self.graph(batch.x, batch.y, batch.noise)
            self.update()
        else:
            updates, last = self.recipe.method.updates(self.step(batch)), torch.zeros((), device=self.device)
            while (loss := self._backward(updates)) is not None:
                self.update()
                last = loss
        self.position.step += 1
        return last

    def _gradients(self, x: Tensor, y: Tensor, noise: Tensor) -> Tensor:
        """The loss of a batch, whose gradients are then in the parameters."""
        loss = self._backward(self.recipe.method.updates(self.step(Batch(x, y, noise, None))))
        assert loss is not None
        return loss

    def _backward(self, updates: Iterator[Tensor]) -> Tensor | None:
        """The next loss of a step, if there is one, after its backward pass."""
        with self.autocast():
            loss = next(updates, None)
        if loss is None:
            return None
        self.accelerator.backward(loss)
        if self.parts:
            self.reduce_gradients(self.parts)
        return loss.detach()

    def update(self) -> None:
        """Update the weights by their gradients, and their average."""
        self.optimizer.step()
        if self.graph is None or not self.graph.recorded:
            self.optimizer.zero_grad()
        self.ema.update_parameters(self.net)

    def reduce_gradients(self, module: nn.Module) -> None:
        """Average the gradients of a module without a data-parallel wrapper over all processes."""
        if self.accelerator.num_processes > 1:
            for parameter in module.parameters():
                if parameter.grad is not None:
                    parameter.grad = self.accelerator.reduce(parameter.grad, "mean")

    # -- judging ---------------------------------------------------------------------------------------------

    def averaged(self) -> nn.Module:
        """The averaged network, its BatchNorm statistics recomputed on augmented training images, or averaged as the
        weights are if ``ema.recalibrate`` is 0."""
        if self.recipe.ema.recalibrate:
            with torch.no_grad():
                recalibrate(self.ema.module, self.batches.samples(self.recipe.ema.recalibrate))
        return self.ema.module.eval()

    def guarded_accuracy(self, net: nn.Module) -> tuple[float, float]:
        """Clean and PGD accuracy of ``net`` on the guard's held-out images."""
        steps, size = self.recipe.guard.steps, self.batches.share
        with self.autocast():
            return accuracies(net, *self.held_out, self.recipe.attack, steps=steps, batch_size=size)

    def metrics(self) -> dict[str, Any]:
        """Metrics of an epoch besides loss, rate and accuracies."""
        return {}

    def effort(self) -> dict[str, Any]:
        """The epochs, images and seconds that this phase has taken so far."""
        return {
            "name": self.phase,
            "epochs": round(self.position.step / self.steps_per_epoch, 2),
            "images_seen": self.position.step * self.recipe.train.batch_size,
            "wall_s": round(self.position.seconds, 1),
        }

    def weights(self) -> dict[str, Tensor]:
        """The weights of a finished run, by their names in the architecture."""
        return floating(self.averaged())

    @classmethod
    def leaves(cls, out: Path) -> Path:
        """The path of the result of a finished run in its folder ``out``."""
        return out / "model"

    def finish(self, out: Path) -> Path:
        """Write the averaged network as a model folder in ``out`` and return the folder."""
        weights = self.weights()  # in every process, because SyncBatchNorm waits for all of them
        if self.accelerator.is_main_process:
            save_model(self, weights, self.leaves(out))
        return self.leaves(out)

    # -- state -----------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        return {
            "recipe": self.recipe.model_dump(mode="json"),
            "net": self.net.state_dict(),
            "ema": self.ema.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "parts": self.parts.state_dict() if self.parts else {},
            "position": vars(self.position),
            "start": self.started_from,
        }

    def restore(self, state: dict[str, Any]) -> None:
        self.net.load_state_dict(state["net"])
        self.ema.load_state_dict(state["ema"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.parts:
            self.parts.load_state_dict(state["parts"])
        self.position = Position(**state["position"])
        self.started_from = state.get("start", self.started_from)
