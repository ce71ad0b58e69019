"""What the RNAS-CL benchmark races against computes the same losses, and so does the same work."""

from __future__ import annotations

import pytest
import torch
from test_rnascl import BUDGET, TINY, recipe, seeded

from benchmarks.rnascl import TextbookSearch, TextbookTraining
from zoo.train.rnascl.search import CHOICES, Searcher
from zoo.train.run.trainer import Trainer
from zoo.train.spaces.rnascl import SPACES


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    monkeypatch.setitem(SPACES, "tiny", TINY)


@pytest.mark.parametrize("gradients", [True, False])
def test_the_textbook_search_has_the_loss_of_ours_and_its_gradients(toy, teacher_folder, gradients):
    searcher = Searcher(recipe(teacher_folder, search={"latency": 1.5, "budget": BUDGET}), toy)
    textbook = TextbookSearch(searcher, teacher_gradients=gradients)
    v = [torch.randn(len(choices), generator=seeded(b)).requires_grad_() for b, choices in enumerate(TINY.blocks)]
    tutors = torch.randn(4, 4, generator=seeded(9)).softmax(1)
    g = [one.softmax(0) for one in v]
    searcher.sample = lambda key: (g, tutors)
    searcher.net.train()
    answer = searcher.teacher(textbook.x)
    ours = searcher.loss(textbook.x, textbook.y, answer, CHOICES)
    theirs = textbook.loss(textbook.x, textbook.y, g, tutors)
    assert theirs.item() == pytest.approx(ours.item(), rel=1e-4)
    for a, b in zip(torch.autograd.grad(ours, v, retain_graph=True), torch.autograd.grad(theirs, v), strict=True):
        assert torch.allclose(a, b, rtol=1e-3, atol=1e-4)


def test_the_textbook_training_has_the_loss_of_ours(toy, teacher_folder):
    settings = recipe(teacher_folder, method={"tutors": "random"}).model_copy(update={"search": None})
    trainer = Trainer(settings, toy)
    textbook = TextbookTraining(trainer)
    trainer.net.train()
    batch = trainer.batch(0)._replace(x=textbook.x, y=textbook.y)
    ours = next(trainer.recipe.method.updates(trainer.step(batch)))
    assert textbook.loss(textbook.x, textbook.y).item() == pytest.approx(ours.item(), rel=1e-4)
