from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from zoo.train.teachers.attention import attention_loss, attention_map, distances, tutored_loss, unit_maps


def units(n: int, layers: int, pixels: int, seed: int = 0) -> torch.Tensor:
    """Unit maps of random activations [n, layers, pixels]: non-negative, as attention maps are."""
    return F.normalize(torch.rand(n, layers, pixels, generator=torch.Generator().manual_seed(seed)), dim=2)


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def test_an_attention_map_is_the_sum_of_squares_over_channels_in_float32():
    activation = torch.randn(2, 5, 3, 4, generator=torch.Generator().manual_seed(0)).bfloat16()
    expected = torch.zeros(2, 3, 4)
    for c in range(5):
        expected += activation[:, c].float() ** 2
    assert attention_map(activation).dtype == torch.float32
    assert torch.allclose(attention_map(activation), expected)


@given(sizes=st.lists(st.sampled_from([1, 3, 4, 8, 9]), min_size=1, max_size=6), size=st.sampled_from([1, 4, 6]))
def test_unit_maps_keep_their_order_when_resolutions_interleave_and_have_norm_one(sizes, size):
    maps = [drawn(2, h, h, seed=i) + 0.01 for i, h in enumerate(sizes)]
    together = unit_maps(maps, size)
    assert together.shape == (2, len(sizes), size * size)
    assert torch.allclose(together.norm(dim=2), torch.ones(2, len(sizes)), atol=1e-5)
    for i, one in enumerate(maps):
        assert torch.allclose(together[:, i], unit_maps([one], size)[:, 0], atol=1e-6)


def test_a_map_at_another_resolution_is_the_same_map():
    coarse = drawn(2, 4, 4)
    fine = coarse.repeat_interleave(2, 1).repeat_interleave(2, 2)  # every pixel four times
    same, halved = unit_maps([coarse], 4), unit_maps([fine], 4)
    assert torch.allclose(same, halved, atol=1e-6)
    flat = unit_maps([torch.full((1, 5, 5), 3.0), torch.full((1, 17, 17), 0.2)], 8)
    assert torch.allclose(flat, torch.full((1, 2, 64), 1 / 8))


def test_a_scale_of_the_activations_does_not_matter_and_a_dead_layer_stays_zero():
    one = drawn(2, 4, 4)
    assert torch.allclose(unit_maps([one], 8), unit_maps([one * 1e3], 8), atol=1e-6)
    assert unit_maps([torch.zeros(2, 4, 4)], 8).eq(0).all()


def norms(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """||s_i - t_j|| pair by pair, [N, n_s, n_t]."""
    out = torch.zeros(len(student), student.shape[1], teacher.shape[1])
    for i in range(student.shape[1]):
        for j in range(teacher.shape[1]):
            out[:, i, j] = (student[:, i] - teacher[:, j]).norm(dim=1)
    return out


@given(n_s=st.integers(1, 5), n_t=st.integers(1, 5), seed=st.integers(0, 100))
def test_distances_are_the_norms_of_all_differences_also_under_autocast(n_s, n_t, seed):
    student, teacher = units(3, n_s, 36, seed), units(3, n_t, 36, seed + 1)
    expected = norms(student, teacher)
    assert torch.allclose(distances(student, teacher), expected, atol=1e-4)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = distances(student, teacher)
    assert mixed.dtype == torch.float32
    assert torch.allclose(mixed, expected, atol=1e-4)


def test_the_attention_loss_is_equation_1():
    student, teacher, g = units(4, 3, 16), units(4, 5, 16, seed=1), drawn(3, 5).softmax(1)
    expected = (g * norms(student, teacher)).sum() / (3 * 5) / 4
    assert attention_loss(student, teacher, g) == pytest.approx(expected.item(), rel=1e-4)


@given(tutors=st.lists(st.integers(0, 4), min_size=1, max_size=6), seed=st.integers(0, 100))
def test_the_tutored_loss_is_equation_1_at_one_hot_weights(tutors, seed):
    student, teacher = units(3, len(tutors), 16, seed), units(3, 5, 16, seed + 1)
    g = torch.eye(5)[tutors]
    assert tutored_loss(student, teacher[:, tutors], 5) == pytest.approx(
        attention_loss(student, teacher, g).item(), rel=1e-4
    )


def test_a_map_without_activation_is_at_distance_1_from_all_others_in_both_losses():
    student, teacher = torch.zeros(2, 1, 16), units(2, 3, 16, 0)
    assert torch.allclose(distances(student, teacher), torch.ones(2, 1, 3))
    assert tutored_loss(student, teacher[:, :1], 1) == pytest.approx(1.0)


def test_gradients_are_finite_where_student_and_teacher_agree_or_a_layer_is_dead():
    activation = drawn(2, 3, 4, 4).requires_grad_()
    student = unit_maps([attention_map(activation), attention_map(activation * 0)], 4)
    same = student.detach()
    g = torch.full((2, 2), 0.5, requires_grad=True)
    (attention_loss(student, same, g) + tutored_loss(student, same, 2)).backward()
    assert activation.grad is not None
    assert activation.grad.isfinite().all()
    assert g.grad is not None
    assert g.grad.isfinite().all()
