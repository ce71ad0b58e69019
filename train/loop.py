"""The one training loop, on Accelerate: a CPU, one GPU, many GPUs, many machines."""

from __future__ import annotations

import json
import math
import os
import platform
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast, set_seed
from torch import Tensor, nn
from zoo.train import adversary, losses, schedule
from zoo.train.augment import crop_and_flip, padded
from zoo.train.checkpoint import load_checkpoint, save_checkpoint
from zoo.train.ema import ema_of, recalibrate
from zoo.train.recipe import Recipe

from zoo.data import Dataset, to_float
from zoo.errors import TrainingDiverged, UsageError
from zoo.models import build

Report = Callable[[dict[str, Any]], None]


class Interrupted(KeyboardInterrupt):
    """SIGTERM or SIGINT came; the checkpoint on disk holds everything up to the last step."""


@dataclass
class Position:
    """Where a run stands: what a checkpoint stores besides tensors."""

    step: int = 0
    attempt: int = 0  # rollbacks so far; changes the seed of what follows
    seconds: float = 0.0
    best: float = 0.0  # best guarded PGD accuracy of the raw weights
    history: list[dict[str, Any]] = field(default_factory=list)


def batch_loss(
    recipe: Recipe, net: nn.Module, forward: Callable[[Tensor], Tensor], x: Tensor, y: Tensor, noise: Tensor
) -> Tensor:
    """The recipe's loss on one batch: attack ``net``, then score what ``forward`` (``net``, or its data-parallel
    wrapper) makes of it.

    Shapes: x and noise [N, C, H, W], noise uniform in [-1, 1]; y [N]; the loss is a mean over N.
    """
    train, attack = recipe.train, recipe.attack
    method = train.method
    if method == "n-fgsm":
        x_adv = adversary.n_fgsm(net, x, y, noise, eps=attack.eps, step=attack.step)
    else:
        kl = method == "trades"
        x_adv = adversary.pgd(net, x, y, noise, eps=attack.eps, step=attack.step, steps=attack.steps, kl=kl)
    logits_adv = forward(x_adv).float()
    if method == "trades":
        return losses.trades(forward(x).float(), logits_adv, y, beta=train.beta, label_smoothing=train.label_smoothing)
    if method == "mart":
        return losses.mart(forward(x).float(), logits_adv, y, beta=train.beta)
    return losses.pgd_at(logits_adv, y, label_smoothing=train.label_smoothing)


class Trainer:
    """A run of a recipe: its network, average, optimizer and position, and the steps that move them.

    Every process draws the same random numbers for the whole batch and takes its own rows, so a run does not
    depend on how many processes share it.
    """

    def __init__(self, recipe: Recipe, dataset: Dataset, *, time_budget: float | None = None) -> None:
        self.recipe, self.time_budget = recipe, time_budget
        self.accelerator = Accelerator(cpu=not torch.cuda.is_available())
        self.device = self.accelerator.device
        processes = self.accelerator.num_processes
        if recipe.train.batch_size % processes:
            raise UsageError(
                f"train.batch_size={recipe.train.batch_size} cannot be shared by {processes} processes: "
                f"choose a multiple of {processes}"
            )
        set_seed(recipe.train.seed)

        train, held_out = dataset.split("train"), dataset.split("validation")
        n = recipe.train.images or len(train)
        if n < recipe.train.batch_size:
            raise UsageError(
                f"{n} training images do not fill a batch of {recipe.train.batch_size}: lower train.batch_size"
            )
        self.images = padded(torch.from_numpy(train.images[:n].copy()).to(self.device))
        self.labels = torch.from_numpy(train.labels[:n].copy()).to(self.device)
        guarded = slice(0, recipe.guard.images)
        self.held_out = (
            to_float(held_out.images[guarded]).to(self.device, memory_format=torch.channels_last),
            torch.from_numpy(held_out.labels[guarded].copy()).to(self.device),
        )

        net = build(recipe.arch).to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        if processes > 1 and self.device.type == "cuda":
            net = nn.SyncBatchNorm.convert_sync_batchnorm(net)
        self.ema = ema_of(net, recipe.ema.decay)
        self.net: nn.Module = net
        if recipe.train.compile:
            self.net.compile()
            self.ema.module.compile()
        self.forward = self.accelerator.prepare_model(self.net) if processes > 1 else self.net
        options = recipe.optimizer
        self.optimizer = torch.optim.SGD(
            self.net.parameters(),
            fused=True,
            lr=options.lr,
            momentum=options.momentum,
            nesterov=options.nesterov,
            weight_decay=options.weight_decay,
        )
        self.position = Position()

    # -- what a run is made of -------------------------------------------------------------------------------

    @property
    def share(self) -> int:
        """Images of a batch that fall to one process."""
        return self.recipe.train.batch_size // self.accelerator.num_processes

    @property
    def steps_per_epoch(self) -> int:
        return len(self.labels) // self.recipe.train.batch_size

    @property
    def total_steps(self) -> int:
        return self.recipe.train.epochs * self.steps_per_epoch

    def progress(self, seconds: float) -> float:
        """Share of the run that is done: of its steps, or of its time budget where that is nearer its end, so
        that a budget shortens the schedule instead of cutting it off."""
        share = self.position.step / self.total_steps
        if self.time_budget is None:
            return share
        share = max(share, seconds / self.time_budget)
        if self.accelerator.num_processes > 1:  # one clock, or the processes would part
            share = broadcast(torch.tensor(share, device=self.device)).item()
        return share

    def rate(self, progress: float) -> float:
        options = self.recipe.optimizer
        if options.schedule == "onecycle":
            return options.lr * schedule.onecycle(progress, warmup=options.warmup)
        return options.lr * schedule.step(progress, milestones=options.milestones, gamma=options.gamma)

    def generator(self, *key: int) -> torch.Generator:
        """Seeded by the recipe, the attempt and ``key``: any step can be repeated without those before it."""
        seed = hash((self.recipe.train.seed, self.position.attempt, *key)) & 0x7FFF_FFFF_FFFF_FFFF
        return torch.Generator(self.device).manual_seed(seed)

    def autocast(self) -> torch.autocast:
        bf16 = self.recipe.train.precision == "bf16"
        return torch.autocast(self.device.type, torch.bfloat16, enabled=bf16)

    def batch(self, step: int) -> tuple[Tensor, Tensor, Tensor]:
        """Images, labels and start noise of this process's share of batch ``step``."""
        size = self.recipe.train.batch_size
        epoch, place = divmod(step, self.steps_per_epoch)
        if getattr(self, "_shuffled", None) != (epoch, self.position.attempt):
            generator = self.generator(0, epoch)
            self._order = torch.randperm(len(self.labels), generator=generator, device=self.device)
            self._shuffled = (epoch, self.position.attempt)
        index = self._order[place * size : (place + 1) * size]
        generator = self.generator(1, step)
        x = crop_and_flip(self.images, index, generator)
        noise = torch.empty_like(x).uniform_(-1, 1, generator=generator)
        first = self.accelerator.process_index * self.share
        mine = slice(first, first + self.share)
        return x[mine], self.labels[index][mine], noise[mine]

    def train_step(self) -> Tensor:
        """One update of the weights and of their average; returns the loss, without waiting for it."""
        x, y, noise = self.batch(self.position.step)
        with self.autocast():
            loss = batch_loss(self.recipe, self.net, self.forward, x, y, noise)
        self.accelerator.backward(loss)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.ema.update_parameters(self.net)
        self.position.step += 1
        return loss.detach()

    # -- judging ---------------------------------------------------------------------------------------------

    def averaged(self) -> nn.Module:
        """The averaged network, its BatchNorm statistics recomputed on augmented training images."""
        count = min(self.recipe.ema.recalibrate, len(self.labels))
        generator = torch.Generator(self.device).manual_seed(self.recipe.train.seed)
        chosen = torch.randperm(len(self.labels), generator=generator, device=self.device)[:count]
        batches = (crop_and_flip(self.images, part, generator) for part in chosen.split(self.share))
        with torch.no_grad():
            recalibrate(self.ema.module, batches)
        return self.ema.module.eval()

    def guarded_accuracy(self, net: nn.Module) -> tuple[float, float]:
        """Clean and PGD accuracy of ``net`` on the guard's held-out images."""
        steps, eps = self.recipe.guard.steps, self.recipe.attack.eps
        generator = torch.Generator(self.device).manual_seed(0)
        hits = torch.zeros(2, device=self.device)
        with self.autocast(), adversary.frozen(net):
            for x, y in zip(*(part.split(self.share) for part in self.held_out), strict=True):
                noise = torch.empty_like(x).uniform_(-1, 1, generator=generator)
                x_adv = adversary.pgd(net, x, y, noise, eps=eps, step=eps / 4, steps=steps)
                with torch.no_grad():
                    hits += torch.stack([(net(seen).argmax(1) == y).sum() for seen in (x, x_adv)])
        clean, robust = (hits / len(self.held_out[1])).tolist()
        return clean, robust

    # -- state -----------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        return {
            "recipe": self.recipe.model_dump(mode="json"),
            "net": self.net.state_dict(),
            "ema": self.ema.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "position": vars(self.position),
        }

    def restore(self, state: dict[str, Any]) -> None:
        self.net.load_state_dict(state["net"])
        self.ema.load_state_dict(state["ema"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.position = Position(**state["position"])


def fit(
    recipe: Recipe,
    dataset: Dataset,
    out: Path,
    *,
    resume: bool = False,
    time_budget: float | None = None,
    report: Report = lambda metrics: None,
    tick: Callable[[int, int, float], None] = lambda step, total, loss: None,
) -> Path:
    """Train ``recipe`` and leave its averaged weights as a model folder ``out/model`` (config and safetensors).

    Args:
        dataset: what to train on; its validation split guards the run, its test split is never touched.
        out: the run's folder: checkpoint, metrics (JSON lines and TensorBoard), resolved recipe, model.
        resume: go on from the checkpoint in ``out``; without one, start.
        time_budget: seconds of training in all, earlier sessions of the run included; the schedule is brought
            forward to end by then.
        report: called with the metrics of every epoch; ``tick`` with step, total and loss as the run goes.

    Raises:
        UsageError: ``out`` holds a run and ``resume`` is off, or holds the run of another recipe.
        TrainingDiverged: robustness collapsed more often than ``guard.rollbacks``.
        Interrupted: a signal came; the checkpoint holds everything.
    """
    trainer = Trainer(recipe, dataset, time_budget=time_budget)
    accelerator, main = trainer.accelerator, trainer.accelerator.is_main_process
    checkpoint = out / "checkpoint.pt"
    if checkpoint.exists():
        if not resume:
            raise UsageError(f"'{out}' already holds a run: pass --resume to go on with it, or choose another --out")
        state = load_checkpoint(checkpoint)
        if state["recipe"] != recipe.model_dump(mode="json"):
            raise UsageError(f"'{out}' holds a run of another recipe or other settings: choose another --out")
        trainer.restore(state)
    elif main:
        out.mkdir(parents=True, exist_ok=True)
        (out / "recipe.json").write_text(json.dumps(recipe.model_dump(mode="json"), indent=2) + "\n")
    accelerator.wait_for_everyone()

    with _signals() as stopped, _tensorboard(out, enabled=main) as board:
        _run(trainer, checkpoint, stopped, report, board, tick)
    model = out / "model"
    if main:
        save_model(trainer, model)
    accelerator.wait_for_everyone()
    return model


def _run(
    trainer: Trainer,
    checkpoint: Path,
    stopped: threading.Event,
    report: Report,
    board: Callable[[dict[str, Any]], None],
    tick: Callable[[int, int, float], None],
) -> None:
    """Steps until the run is done, a checkpoint after every epoch and whenever the run is stopped."""
    recipe, main = trainer.recipe, trainer.accelerator.is_main_process
    clock = time.monotonic() - trainer.position.seconds
    running, since = 0.0, time.monotonic()
    progress = trainer.progress(trainer.position.seconds)
    while progress < 1:
        for group in trainer.optimizer.param_groups:
            group["lr"] = trainer.rate(progress)
        trainer.net.train()
        loss = trainer.train_step()
        position = trainer.position
        position.seconds = time.monotonic() - clock
        progress = trainer.progress(position.seconds)
        if _anyone(trainer, stopped.is_set()):
            if main:
                save_checkpoint(trainer.state(), checkpoint)
            trainer.accelerator.wait_for_everyone()
            raise Interrupted(f"stopped at step {position.step} of {trainer.total_steps}")
        in_epoch = position.step % trainer.steps_per_epoch
        if in_epoch % 20 == 0 or progress >= 1:
            running = loss.item()
            tick(position.step, trainer.total_steps, running)
        if in_epoch and progress < 1:
            continue

        raw_clean, raw = trainer.guarded_accuracy(trainer.net)
        if raw < recipe.guard.drop * position.best or math.isnan(running):
            _roll_back(trainer, checkpoint)
            continue
        position.best = max(position.best, raw)
        clean, robust = trainer.guarded_accuracy(trainer.averaged())
        images = (in_epoch or trainer.steps_per_epoch) * recipe.train.batch_size
        metrics = {
            "epoch": round(position.step / trainer.steps_per_epoch, 3),
            "step": position.step,
            "loss": running,
            "lr": trainer.optimizer.param_groups[0]["lr"],
            "clean": clean,
            "pgd": robust,
            "raw_clean": raw_clean,
            "raw_pgd": raw,
            "images_per_s": images / (time.monotonic() - since),
            "seconds": position.seconds,
        }
        position.history.append(metrics)
        if main:
            save_checkpoint(trainer.state(), checkpoint)
            board(metrics)
            report(metrics)
        since = time.monotonic()


def _roll_back(trainer: Trainer, checkpoint: Path) -> None:
    """Return to the last epoch that held, and go on with other random numbers (Rice et al. 2020 stop there)."""
    attempt, seconds = trainer.position.attempt + 1, trainer.position.seconds
    if attempt > trainer.recipe.guard.rollbacks or not checkpoint.exists():
        raise TrainingDiverged(
            f"robust accuracy collapsed at step {trainer.position.step} after {attempt - 1} rollbacks: "
            f"lower optimizer.lr, or take more attack steps"
        )
    trainer.restore(load_checkpoint(checkpoint))
    trainer.position.attempt, trainer.position.seconds = attempt, seconds


def save_model(trainer: Trainer, folder: Path) -> None:
    """The averaged weights with their spec and the facts of the run: a folder for ``load("local-dir:...")``."""
    from zoo.weights import save_weights

    folder.mkdir(parents=True, exist_ok=True)
    recipe, position = trainer.recipe, trainer.position
    config = {
        "name": recipe.name,
        "family": recipe.family,
        "description": recipe.description,
        "paper": recipe.paper,
        "spec": recipe.arch.to_dict(),
        "train": {
            "recipe": recipe.name,
            "settings": recipe.model_dump(mode="json"),
            "seed": recipe.train.seed,
            "teacher": None,
            "epochs": round(position.step / trainer.steps_per_epoch, 2),
            "images_seen": position.step * recipe.train.batch_size,
            "wall_s": round(position.seconds, 1),
            "device": device_name(trainer.device),
            "torch": torch.__version__,
            "history": position.history,
        },
    }
    weights = {key: value.contiguous() for key, value in trainer.averaged().state_dict().items()}
    save_weights(weights, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{os.cpu_count()} CPU cores ({platform.machine()})"


def _anyone(trainer: Trainer, stop: bool) -> bool:
    """Whether any process was told to stop, so that all stop after the same step."""
    if trainer.accelerator.num_processes == 1:
        return stop
    told = torch.tensor(int(stop), device=trainer.device)
    return bool(trainer.accelerator.reduce(told, "sum").item())


@contextmanager
def _signals() -> Iterator[threading.Event]:
    """An event that SIGTERM and SIGINT set, so that a run ends between two steps. A second SIGINT ends it at once."""
    stopped = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stopped
        return

    def stop(signum: int, frame: Any) -> None:
        if stopped.is_set() and signum == signal.SIGINT:
            raise KeyboardInterrupt
        stopped.set()

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stopped
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _tensorboard(out: Path, *, enabled: bool) -> Iterator[Callable[[dict[str, Any]], None]]:
    """A function that appends an epoch's metrics to TensorBoard and to ``metrics.jsonl``."""
    if not enabled:
        yield lambda metrics: None
        return
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(out / "tensorboard")) as writer, open(out / "metrics.jsonl", "a") as lines:

        def write(metrics: dict[str, Any]) -> None:
            for key, value in metrics.items():
                writer.add_scalar(key, value, metrics["step"])
            lines.write(json.dumps(metrics) + "\n")
            lines.flush()

        yield write
