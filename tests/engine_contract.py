"""What every engine owes its callers: tests for a fixture ``engine`` of 32 x 32 images, to be inherited."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from zoo.system.errors import UsageError


def some(n: int) -> torch.Tensor:
    return torch.rand(n, 3, 32, 32, generator=torch.Generator().manual_seed(0))


class EngineContract:
    @pytest.mark.parametrize(
        ("bad", "told"),
        [
            (torch.rand(2, 3, 31, 32), r"shape \[N, 3, 32, 32\].*not \[2, 3, 31, 32\]"),
            (torch.rand(0, 3, 32, 32), "N >= 1"),
            (torch.zeros(1, 3, 32, 32, dtype=torch.uint8), "divide by 255"),
            (torch.full((1, 3, 32, 32), 1.5), "spans"),
        ],
    )
    def test_a_batch_that_is_none_is_told_apart(self, bad, told, engine):
        with pytest.raises(UsageError, match=told):
            engine(bad)

    def test_arrays_strides_and_gradients_do_not_matter(self, engine):
        x = some(3)
        expected = engine(x)
        assert torch.equal(engine(x.numpy()), expected)
        assert torch.equal(engine(x.to(memory_format=torch.channels_last)), expected)
        assert torch.equal(engine(x.clone().requires_grad_()), expected)
        assert torch.equal(engine(np.asfortranarray(x.numpy())), expected)
        with torch.inference_mode():
            assert torch.equal(engine(x), expected)

    def test_logits_are_the_callers_own(self, engine):
        x = some(2)
        first = engine(x)
        kept = first.clone()
        second = engine(1 - x)
        assert first.data_ptr() != second.data_ptr()
        assert torch.equal(first, kept)
        first.zero_()  # as some attacks do
        assert torch.equal(engine(x), kept)
