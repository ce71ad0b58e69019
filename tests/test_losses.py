from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from zoo.train.methods import losses

K = 5


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    logits, logits_adv = torch.randn(2, 7, K, generator=generator)
    return logits.requires_grad_(), logits_adv.requires_grad_(), torch.arange(7) % K


def test_trades_without_an_attack_is_cross_entropy(batch):
    logits, _, y = batch
    assert torch.allclose(losses.trades(logits, logits, y, beta=6.0), F.cross_entropy(logits, y))


def test_trades_divergence_is_summed_over_classes_and_averaged_over_images(batch):
    logits, logits_adv, y = batch
    p, q = logits.softmax(1), logits_adv.softmax(1)
    divergence = sum((p[i] * (p[i] / q[i]).log()).sum() for i in range(7)) / 7
    expected = F.cross_entropy(logits, y) + 3.0 * divergence
    assert torch.allclose(losses.trades(logits, logits_adv, y, beta=3.0), expected)


def test_mart_is_the_papers_formula_image_by_image(batch):
    logits, logits_adv, y = batch
    p, q = logits.softmax(1), logits_adv.softmax(1)
    total = 0.0
    for i, label in enumerate(y):
        others = torch.cat([q[i, :label], q[i, label + 1 :]])
        boosted = -q[i, label].log() - (1 - others.max()).log()
        total = total + boosted + 4.0 * (p[i] * (p[i] / q[i]).log()).sum() * (1 - p[i, label])
    assert torch.allclose(losses.mart(logits, logits_adv, y, beta=4.0), total / 7)


def test_mart_is_finite_where_the_net_is_sure_and_wrong():
    logits = torch.tensor([[200.0, 0.0, 0.0]], requires_grad=True)
    loss = losses.mart(logits, logits, torch.tensor([1]), beta=6.0)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(logits.grad).all()


def test_both_sides_of_the_divergence_get_gradients(batch):
    logits, logits_adv, y = batch
    for loss in (losses.trades, losses.mart):
        gradients = torch.autograd.grad(loss(logits, logits_adv, y, beta=6.0), (logits, logits_adv))
        assert all(gradient.abs().sum() > 0 for gradient in gradients)
