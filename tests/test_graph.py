"""A training step as one CUDA graph does what the step does without."""

from __future__ import annotations

import pytest
import torch
from test_methods import CASES, recipe

from zoo.train.methods import METHODS
from zoo.train.methods.replay import Replayed
from zoo.train.run import trainer as module
from zoo.train.run.graph import WARM_UP
from zoo.train.run.trainer import Trainer


class OnTheProcessor:
    """Graphed without a GPU: inputs and gradients keep their places in memory, and the work runs anew each time."""

    def __init__(self, run) -> None:
        self.run, self.calls, self.inputs, self.output = run, 0, None, None

    @property
    def recorded(self) -> bool:
        return self.calls > WARM_UP

    def __call__(self, *inputs):
        self.calls += 1
        if not self.recorded:
            return self.run(*inputs)
        net = self.run.__self__
        parameters = [*net.net.parameters(), *(net.parts.parameters() if net.parts else ())]
        before = [one.grad for one in parameters]
        if self.inputs is None:
            assert before == [None] * len(before), "a recording makes the gradients, so there must be none before"
            self.inputs = [one.clone() for one in inputs]
            self.output = self.run(*self.inputs)
            return self.output
        assert all(one is not None for one in before), "a replay writes to gradients that are gone"
        for kept, new in zip(self.inputs, inputs, strict=True):
            kept.copy_(new)
        for one in parameters:
            one.grad = None
        self.output.copy_(self.run(*self.inputs))
        for one, place in zip(parameters, before, strict=True):
            place.copy_(one.grad)
            one.grad = place
        return self.output


def after(trainer: Trainer, steps: int) -> tuple[list[torch.Tensor], list[float]]:
    """The weights, the average and the method's parts after some steps, and the loss of each step."""
    losses = []
    for _ in range(steps):
        trainer.net.train()
        losses.append(trainer.train_step().item())
    modules = [trainer.net, trainer.ema.module, *([trainer.parts] if trainer.parts else [])]
    values = [value for one in modules for value in one.state_dict().values() if isinstance(value, torch.Tensor)]
    return [value.detach().clone() for value in values], losses


def ready(name, changes, toy, teacher_folder, *, graph: bool) -> Trainer:
    train = {"images": 200, "batch_size": 25, "graph": graph}
    return Trainer(recipe(name, teacher_folder, changes, train=train), toy)


@pytest.mark.parametrize(("name", "changes"), [("ard", {"inner": "n-fgsm"}), ("rrm", {}), ("free-at", {})])
def test_a_recorded_step_learns_what_a_step_learns(name, changes, toy, teacher_folder, monkeypatch):
    monkeypatch.setattr(module, "Graphed", OnTheProcessor)
    plain = after(ready(name, changes, toy, teacher_folder, graph=False), 6)
    monkeypatch.setattr(Trainer, "on_one_gpu", True)
    trainer = ready(name, changes, toy, teacher_folder, graph=True)
    assert (trainer.graph is None) == issubclass(METHODS[name], Replayed)
    weights, losses = after(trainer, 6)
    assert losses == plain[1]
    assert all(torch.equal(one, other) for one, other in zip(weights, plain[0], strict=True))


def test_without_a_gpu_nothing_is_recorded_and_a_sentence_says_so(toy, teacher_folder, monkeypatch):
    said = []
    monkeypatch.setattr(module, "say_once", said.append)
    monkeypatch.setattr(Trainer, "on_one_gpu", False)
    assert ready("n-fgsm", {}, toy, teacher_folder, graph=False).graph is None
    assert said == []
    assert ready("n-fgsm", {}, toy, teacher_folder, graph=True).graph is None
    assert "it takes one CUDA GPU" in said[0]


@pytest.mark.gpu
@pytest.mark.parametrize(("name", "changes"), CASES)
def test_a_cuda_graph_learns_what_the_kernels_learn_one_by_one(name, changes, toy, teacher_folder):
    plain, losses = after(ready(name, changes, toy, teacher_folder, graph=False), 8)
    trainer = ready(name, changes, toy, teacher_folder, graph=True)
    weights, recorded = after(trainer, 8)
    assert (trainer.graph is None) == issubclass(METHODS[name], Replayed)
    assert trainer.graph is None or trainer.graph.recorded
    torch.testing.assert_close(recorded, losses, rtol=1e-2, atol=1e-3)
    torch.testing.assert_close(weights, plain, rtol=1e-2, atol=1e-2)
