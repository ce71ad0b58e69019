from __future__ import annotations

import copy
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from zoo.attacks.ball import Ball
from zoo.datasets.cifar10 import CIFAR10
from zoo.system.errors import IntegrityError, TrainingDiverged, UsageError
from zoo.train.data.augment import PAD, crop_and_flip, padded
from zoo.train.methods import adversary
from zoo.train.methods.method import Attack
from zoo.train.recipes.schema import parse_recipe
from zoo.train.run import judge, loop, model_folder, schedule
from zoo.train.run.checkpoint import load_checkpoint, save_checkpoint
from zoo.train.run.ema import Average, recalibrate
from zoo.train.run.loop import Interrupted, fit
from zoo.train.run.precision import precision_on
from zoo.train.run.trainer import Trainer
from zoo.weights.load import find, load
from zoo.weights.tensors import save_weights


def test_the_commit_is_that_of_this_code_and_not_of_a_project_that_it_is_installed_in(tmp_path, monkeypatch):
    git = ["git", "-C", str(tmp_path), "-c", "user.name=A", "-c", "user.email=a@b.c"]
    (tmp_path / "ours.py").touch()
    (tmp_path / "installed.py").touch()
    for command in (["init", "-q"], ["add", "ours.py"], ["commit", "-q", "-m", "theirs"]):
        subprocess.run([*git, *command], check=True)
    monkeypatch.setattr(model_folder, "__file__", str(tmp_path / "ours.py"))
    assert re.fullmatch("[0-9a-f]{40}", model_folder.commit())
    monkeypatch.setattr(model_folder, "__file__", str(tmp_path / "installed.py"))
    assert model_folder.commit() is None


def test_weights_that_are_not_finite_are_a_diverged_training_and_no_model(toy, tmp_path):
    trainer = Trainer(recipe(), toy)
    weights = trainer.averaged().state_dict()
    weights["head.bias"] = weights["head.bias"] + torch.inf
    with pytest.raises(TrainingDiverged, match=r"'head.bias' are not finite: lower optimizer.lr"):
        model_folder.save_model(trainer, weights, tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_a_label_that_no_class_has_is_refused_before_a_step(toy, tmp_path):
    root = shutil.copytree(toy.root, tmp_path / "data")
    labels = np.load(root / "train_labels.npy")
    labels[5] = 10
    np.save(root / "train_labels.npy", labels)
    with pytest.raises(IntegrityError, match=r"the train split in '.*data' has labels from 0 to 10, .* 10 classes"):
        Trainer(recipe(), replace(toy, root=root))


@pytest.mark.parametrize("logits", [[0.0] * 10, [torch.nan] * 10, [torch.inf] + [0.0] * 9])
def test_ties_and_answers_that_are_not_finite_are_wrong_on_held_out_images(logits):
    class Constant(torch.nn.Module):
        def forward(self, x):
            return torch.tensor(logits).expand(len(x), 10) + 0 * x.mean()

    x, y = torch.rand(20, 3, 8, 8), torch.zeros(20, dtype=torch.int64)
    assert judge.accuracies(Constant(), x, y, Attack(), steps=2, batch_size=10) == (0.0, 0.0)


def recipe(**sections):
    """A recipe for a tiny net that runs an epoch on the toy data in a second or two."""
    data = {
        "name": "at-tiny",
        "description": "for tests",
        "family": "at",
        "arch": {"arch": "staged", "stem": 6, "widths": [[8], [16]], "resolutions": [16, 8]},
        "method": {"name": "n-fgsm"},
        "train": {
            "epochs": 3,
            "compile": False,
            "precision": "fp32",
            "batch_size": 100,
            "images": 1000,
        },
        "attack": {"step": 8 / 255},
        "ema": {"recalibrate": 500, "decay": 0.9},
        "guard": {"images": 100, "steps": 3},
    }
    for section, values in sections.items():
        data[section] = {**data.get(section, {}), **values} if values else {}
    return parse_recipe(data, "test")


# -- the inner maximisation ------------------------------------------------------------------------------------


def test_the_attack_leaves_mode_gradients_and_statistics_as_they_were():
    net = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Flatten(), torch.nn.LazyLinear(3)
    )
    net(torch.rand(2, 3, 8, 8))
    net[0].bias.requires_grad_(False)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    x = torch.rand(4, 3, 8, 8)
    away = adversary.divergence(torch.zeros(4, 3))
    adversary.pgd(net, Ball(x, 0.1, "linf"), x, away, step=0.1, steps=2)
    assert net.training
    assert not net[0].bias.requires_grad
    assert net[0].weight.requires_grad
    assert net[0].weight.grad is None
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


# -- augmentation, schedules, averages, checkpoints --------------------------------------------------------------


def test_every_augmented_image_is_a_crop_of_its_own_padded_original_flipped_or_not():
    images = torch.randint(1, 256, (6, 8, 8, 3), dtype=torch.uint8)
    index = torch.tensor([0, 5, 5, 2])
    out = crop_and_flip(padded(images), index, torch.Generator().manual_seed(3))
    assert out.is_contiguous(memory_format=torch.channels_last)
    for one, source in zip((out * 255).round().byte().permute(0, 2, 3, 1), padded(images)[index], strict=True):
        crops = [source[i : i + 8, j : j + 8] for i in range(2 * PAD + 1) for j in range(2 * PAD + 1)]
        assert any(torch.equal(one, crop) or torch.equal(one, crop.flip(1)) for crop in crops)


def test_augmentation_uses_every_offset_and_flips_half_the_images():
    images = torch.arange(1, 65, dtype=torch.uint8).view(1, 8, 8, 1)
    out = crop_and_flip(padded(images), torch.zeros(4000, dtype=torch.long), torch.Generator().manual_seed(0))
    assert len(out.flatten(1).unique(dim=0)) == 2 * (2 * PAD + 1) ** 2
    centre = out[:, 0, 4, 3:5]
    inside = (centre > 0).all(1)
    assert 0.45 < (centre[inside, 0] > centre[inside, 1]).float().mean() < 0.55


def test_schedules_peak_and_end_where_they_should():
    rates = [schedule.onecycle(p / 100, warmup=0.3) for p in range(101)]
    assert max(rates) == rates[30] == 1
    assert rates[100] == 0
    assert rates == sorted(rates[:31]) + sorted(rates[31:], reverse=True)
    cosine = [schedule.cosine(p) for p in (0.0, 0.5, 1.0, 1.1)]
    assert cosine == pytest.approx([1, 0.5, 0, 0])
    steps = [schedule.step(p, milestones=(0.5, 0.75), gamma=0.1) for p in (0.0, 0.49, 0.5, 0.8)]
    assert steps == pytest.approx([1, 1, 0.1, 0.01])


def test_the_average_follows_its_decay_and_forgets_its_start():
    net = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.zeros_(net.weight)
    ema = Average(net, 0.5)
    values, expected = [8.0, 4.0, 2.0], 8.0
    for n, value in enumerate(values):
        torch.nn.init.constant_(net.weight, value)
        ema.update_parameters(net)
        decay = min(0.5, (1 + n) / (10 + n))
        expected = value if n == 0 else decay * expected + (1 - decay) * value
    assert ema.module.weight.item() == pytest.approx(expected)


def test_an_odd_last_batch_does_not_distort_the_statistics():
    net = torch.nn.Sequential(torch.nn.BatchNorm2d(3, momentum=0.3), torch.nn.ReLU()).eval()
    images = torch.rand(65, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    images[64] += 10  # a batch of its own
    recalibrate(net, images.split(64))
    norm = net[0]
    assert torch.allclose(norm.running_mean, images.mean((0, 2, 3)), atol=1e-5)
    apart = [part.transpose(0, 1).flatten(1).var(1) for part in images.split(64)]
    assert torch.allclose(norm.running_var, (64 * apart[0] + apart[1]) / 65, atol=1e-5)
    assert (norm.momentum, norm.training, norm.num_batches_tracked.item()) == (0.3, False, 2)


def test_without_recalibration_the_statistics_are_averaged_as_the_weights_are(toy, tmp_path):
    folder = fit(
        recipe(method={"name": "natural"}, attack={}, train={"epochs": 5}, ema={"recalibrate": 0}), toy, tmp_path
    )
    last = json.loads((folder / "config.json").read_text())["train"]["history"][-1]
    assert last["clean"] > 0.6


def test_the_guard_is_not_deceived_by_large_logits(world, robust, fragile):
    trainer = Trainer(recipe(train={"images": None}), world)
    for net, factor in itertools.product((robust, fragile), (1e-3, 1e3)):
        scaled = copy.deepcopy(net)
        scaled.head.weight.mul_(factor)
        scaled.head.bias.mul_(factor)
        right, found = trainer.guarded_accuracy(net), trainer.guarded_accuracy(scaled)
        assert found == pytest.approx(right, abs=0.02)
    assert trainer.guarded_accuracy(robust)[1] > 0.5 > 0.1 > trainer.guarded_accuracy(fragile)[1]


def test_a_damaged_checkpoint_is_an_integrity_error(tmp_path):
    path = tmp_path / "checkpoint.pt"
    save_checkpoint({"a": torch.ones(1000)}, path)
    assert load_checkpoint(path)["a"].sum() == 1000
    whole = path.read_bytes()
    for length in range(100, len(whole), 300):  # torch says EINVAL to some
        path.write_bytes(whole[:length])
        with pytest.raises(IntegrityError, match=r"checkpoint\.pt"):
            load_checkpoint(path)
    for content in (b"", b"garbage", b"\x80\x02.", b"\x80\x02c_codecs\nencode\nG\x00"):
        path.write_bytes(content)
        with pytest.raises(IntegrityError, match=r"checkpoint\.pt"):
            load_checkpoint(path)


def test_the_checkpoint_of_another_program_is_refused(toy, tmp_path):
    torch.save({"state_dict": {}}, tmp_path / "checkpoint.pt")
    with pytest.raises(UsageError, match=r"checkpoint\.pt' is not a checkpoint of zoo train"):
        fit(recipe(), toy, tmp_path, resume=True)


def test_a_checkpoint_of_another_version_is_refused_by_its_name(toy, tmp_path):
    how = recipe(train={"epochs": 1, "images": 200})
    fit(how, toy, tmp_path)
    state = load_checkpoint(tmp_path / "checkpoint.pt")
    state["position"]["done"] = False
    older = {key: value for key, value in state.items() if key != "ema"}
    newer = state | {"position": state["position"] | {"mood": 1}}
    for other in (older, newer):
        save_checkpoint(other, tmp_path / "checkpoint.pt")
        with pytest.raises(IntegrityError, match=r"checkpoint\.pt' is damaged, or was written by another version"):
            fit(how, toy, tmp_path, resume=True)


# -- the loop ----------------------------------------------------------------------------------------------------


def test_a_finished_run_leaves_a_loadable_model_and_its_history(toy, tmp_path):
    folder = fit(recipe(train={"precision": "auto"}), toy, tmp_path / "run")
    model = load(f"local-dir:{folder}")
    config = json.loads((folder / "config.json").read_text())
    assert model(torch.rand(2, 3, 32, 32)).shape == (2, 10)
    assert config["threat"] == {"norm": "linf", "eps": 8 / 255}
    assert tuple(config["classes"]) == find(f"local-dir:{folder}").classes == CIFAR10.classes
    assert config["train"]["images_seen"] == 3000
    assert config["train"]["precision"] == precision_on(torch.device("cpu"), "auto")
    assert len(config["train"]["history"]) == 3
    assert list((tmp_path / "run" / "tensorboard").iterdir())


def test_the_guard_judges_as_often_as_asked_and_at_the_end(toy, tmp_path):
    fit(recipe(train={"epochs": 3}, guard={"every": 2}), toy, tmp_path)
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [2, 3]


def test_an_interrupted_run_resumes_to_the_same_weights_as_one_that_was_not(toy, tmp_path):
    whole, handler = fit(recipe(), toy, tmp_path / "whole"), signal.getsignal(signal.SIGTERM)

    def stop_at(step, total, loss):
        if step == 20:  # the second epoch's last step: then mid-epoch, below
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted):
        fit(recipe(), toy, tmp_path / "parts", tick=stop_at)
    assert signal.getsignal(signal.SIGTERM) is handler
    assert load_checkpoint(tmp_path / "parts" / "checkpoint.pt")["position"]["step"] == 21
    parts = fit(recipe(), toy, tmp_path / "parts", resume=True)
    assert (whole / "model.safetensors").read_bytes() == (parts / "model.safetensors").read_bytes()


def test_a_signal_while_the_last_epoch_is_judged_stops_the_run_and_a_model_without_a_config_is_made_again(
    toy, tmp_path, monkeypatch
):
    judged, how = Trainer.averaged, recipe(train={"epochs": 1, "images": 200})

    def stopped(self):
        os.kill(os.getpid(), signal.SIGTERM)
        return judged(self)

    monkeypatch.setattr(Trainer, "averaged", stopped)
    with pytest.raises(Interrupted, match="after the last step"):
        fit(how, toy, tmp_path)
    monkeypatch.undo()
    model = fit(how, toy, tmp_path, resume=True)
    weights = (model / "model.safetensors").read_bytes()
    (model / "config.json").unlink()  # as a kill between the two leaves it
    assert (fit(how, toy, tmp_path, resume=True) / "config.json").is_file()
    assert (model / "model.safetensors").read_bytes() == weights


def test_the_record_of_a_start_is_of_the_weights_that_were_read(toy, tmp_path):
    how = recipe(train={"epochs": 1, "images": 200})
    start = fit(how, toy, tmp_path / "start")
    before = find(f"local-dir:{start}").sha256

    def retrained(step, total, loss):
        save_weights({key: value + 1 for key, value in load(f"local-dir:{start}").state_dict().items()}, again)

    again, asked = start / "model.safetensors", how.model_copy(update={"start": str(start)})
    model = fit(asked, toy, tmp_path / "run", start=str(start), tick=retrained)
    assert json.loads((model / "config.json").read_text())["train"]["start"]["weights_sha256"] == before
    assert find(f"local-dir:{start}").sha256 != before


def test_a_signal_that_breaks_a_step_stops_the_run(toy, tmp_path, monkeypatch):
    def broken(self):
        os.kill(os.getpid(), signal.SIGTERM)
        raise RuntimeError("the compiler was ended")

    monkeypatch.setattr(Trainer, "train_step", broken)
    with pytest.raises(Interrupted):
        fit(recipe(), toy, tmp_path)


def test_a_run_is_never_overwritten_nor_continued_with_another_recipe(toy, tmp_path, monkeypatch):
    fit(recipe(train={"epochs": 1}), toy, tmp_path)
    monkeypatch.setattr(Trainer, "__init__", lambda *arguments, **options: pytest.fail("built before it was refused"))
    with pytest.raises(UsageError, match="--resume"):
        fit(recipe(train={"epochs": 1}), toy, tmp_path)
    with pytest.raises(UsageError, match="another recipe"):
        fit(recipe(train={"epochs": 2}), toy, tmp_path, resume=True)


def test_a_time_budget_ends_the_run_with_the_rate_annealed(toy, tmp_path, monkeypatch):
    ticks = itertools.count(step=0.1)
    monkeypatch.setattr(loop, "time", SimpleNamespace(monotonic=lambda: next(ticks)))  # a step takes 0.1 s
    endless = recipe(train={"epochs": 10_000}, guard={"drop": 0.01})  # a net so little trained may fall by half
    folder = fit(endless, toy, tmp_path, time_budget=3.0)
    facts = json.loads((folder / "config.json").read_text())["train"]
    assert facts["epochs"] < 10_000
    assert facts["wall_s"] == pytest.approx(3.0, abs=0.3)
    assert facts["history"][-1]["lr"] < 0.02


@pytest.mark.skipif(not hasattr(signal, "SIGCONT"), reason="signals of POSIX")
@pytest.mark.parametrize("stopped", [True, False])
def test_time_in_which_the_process_is_stopped_is_not_training_time_but_a_slow_step_is(
    toy, tmp_path, monkeypatch, stopped
):
    now, true = [0.0], Trainer.train_step

    def slow_once(self):
        now[0] += 0.1
        if self.position.step == 5:
            now[0] += 1000  # the process is stopped, or the step compiles
            if stopped:
                os.kill(os.getpid(), signal.SIGCONT)
        return true(self)

    monkeypatch.setattr(Trainer, "train_step", slow_once)
    monkeypatch.setattr(loop, "time", SimpleNamespace(monotonic=lambda: now[0]))
    folder = fit(recipe(train={"epochs": 10_000}, guard={"drop": 0.01}), toy, tmp_path, time_budget=3.0)
    facts = json.loads((folder / "config.json").read_text())["train"]
    if stopped:
        assert facts["wall_s"] == pytest.approx(3.0, abs=0.3)
        assert facts["history"][-1]["lr"] < 0.02
    else:
        assert facts["wall_s"] > 1000
        assert facts["history"][-1]["step"] == 6


@pytest.mark.parametrize(("collapse", "judged"), [(3, [10, 10, 20, 20, 20, 30, 30]), (5, [10, 10, 20, 20, 30, 30, 30])])
def test_a_collapse_rolls_back_to_the_epoch_before_and_goes_on_with_other_numbers(
    toy, tmp_path, monkeypatch, collapse, judged
):
    true, calls = Trainer.guarded_accuracy, []

    def collapsing_once(self, net):
        calls.append(self.position.step)
        return (0.9, 0.0) if len(calls) == collapse else true(self, net)  # raw weights, second or last epoch

    monkeypatch.setattr(Trainer, "guarded_accuracy", collapsing_once)
    fit(recipe(guard={"drop": 0.01}), toy, tmp_path)
    assert calls == judged
    assert load_checkpoint(tmp_path / "checkpoint.pt")["position"]["attempt"] == 1


def test_a_run_that_keeps_collapsing_ends_with_an_error(toy, tmp_path, monkeypatch):
    monkeypatch.setattr(Trainer, "guarded_accuracy", lambda self, net: (0.9, 0.5 if self.position.step <= 10 else 0.0))
    with pytest.raises(TrainingDiverged, match="after 2 rollbacks"):
        fit(recipe(guard={"rollbacks": 2}), toy, tmp_path)


def test_a_batch_that_the_data_cannot_fill_is_refused(toy, tmp_path):
    with pytest.raises(UsageError, match="batch of 100"):
        fit(recipe(train={"images": 50}), toy, tmp_path)


def test_the_held_out_images_are_never_trained_on(toy):
    trainer = Trainer(recipe(train={"images": None}), toy)
    assert len(trainer.batches.source) == len(toy.split("train")) == 2000
    trained = {bytes(image) for image in toy.split("train").images.reshape(2000, -1)}
    assert not any(bytes(image) in trained for image in toy.split("validation").images.reshape(1000, -1))


TWO_PROCESSES = """
import os, signal
from zoo.train import pipeline
from zoo.train.run.loop import Interrupted
from zoo.train.run.trainer import Trainer
from zoo.weights.load import load
from test_training import recipe, without_norm


class Still(Trainer):
    def __init__(self, *given, **options):
        super().__init__(*given, **options)
        without_norm(self)


def train(name, **options):
    folder = pipeline.run({{"train": taught}}, dataset, Path({out!r}).with_suffix("") / name, **options)["train"]
    tensors = load(f"local-dir:{{folder}}").state_dict().values()
    return [value for tensor in tensors for value in tensor.flatten().tolist()]


def stop(phase, step, total, loss):
    if step == 3 and os.environ["RANK"] == str(int(os.environ["WORLD_SIZE"]) - 1):  # one of them is asked to stop
        os.kill(os.getpid(), signal.SIGTERM)


pipeline.Trainer = Still
taught = recipe(
    train={{"epochs": 2, "images": 300}}, ema={{"recalibrate": 0}},
    method={{"name": "ard", "inner": "n-fgsm"}}, teacher={{"name": {teacher!r}}}
)
assert (taught.method.name, taught.method.inner) == ("ard", "n-fgsm")
whole = train("whole")
try:
    train("parts", tick=stop)
except Interrupted as error:
    said = str(error)
parts = train("parts", resume=True)

trainer = Still(recipe(method={{"name": "trades"}}, attack={{"step": 0.02, "steps": 2}}), dataset)
losses = []
for _ in range(4):
    trainer.net.train()
    losses.append(trainer.accelerator.reduce(trainer.train_step(), "mean").item())
report(trainer.accelerator, [losses, whole, parts, said])
"""


def without_norm(trainer: Trainer) -> None:
    """Freeze the statistics: batch statistics are each process's own on CPUs (on GPUs they are synchronised)."""
    for module in trainer.net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.train = lambda mode=True, module=module: module  # type: ignore[method-assign]
            module.training = False


def test_two_processes_train_as_one_does_and_resume_together(toy, teacher_folder, on_processes):
    one, two = (on_processes(TWO_PROCESSES, processes, toy.root, teacher=str(teacher_folder)) for processes in (1, 2))
    assert two[0] == pytest.approx(one[0], rel=1e-4)
    assert len(set(one[0])) == 4
    for _, whole, parts, said in (one, two):  # averaged weights of a student, distilled in one go and in two
        assert parts == whole
        assert said == "stopped at step 4 of 6"
    assert two[1] == pytest.approx(one[1], abs=1e-3)


# -- precision -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wanted", "capabilities", "found"),
    [
        ("auto", {"avx2": True, "avx512_bf16": False, "amx_bf16": False}, "fp32"),
        ("auto", {"avx2": True, "avx512_bf16": True}, "bf16"),
        ("auto", {"avx2": True, "amx_bf16": True}, "bf16"),
        ("auto", {"neon": True, "bf16": True}, "bf16"),
        ("auto", {"neon": True, "bf16": False}, "fp32"),
        ("bf16", {"avx2": True}, "bf16"),
        ("fp32", {"avx512_bf16": True}, "fp32"),
    ],
)
def test_auto_is_bf16_where_the_processor_has_instructions_for_it(monkeypatch, wanted, capabilities, found):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert precision_on(torch.device("cpu"), wanted) == found
