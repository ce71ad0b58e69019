"""What a model refuses to classify, and that its graphs know nothing of it."""

from __future__ import annotations

import pytest
import torch

from zoo.models import build
from zoo.specs import StagedSpec
from zoo.system.errors import UsageError

SPEC = StagedSpec(widths=((4,), (8,)), resolutions=(8, 4), stem=4, stem_resolution=16)


@pytest.fixture
def model():
    return build(SPEC).eval()


@pytest.mark.parametrize(
    ("images", "says"),
    [
        (
            torch.zeros(2, 3, 32, 32, dtype=torch.uint8),
            r"float32 \[N, 3, 32, 32\] in \[0, 1\], not uint8 \[2, 3, 32, 32\]",
        ),
        (torch.zeros(2, 3, 32, 32, dtype=torch.float64), r"must be float32 .* not float64 \[2, 3, 32, 32\]"),
        (torch.zeros(2, 3, 64, 64), r"not float32 \[2, 3, 64, 64\]"),
        (torch.zeros(2, 32, 32, 3), r"not float32 \[2, 32, 32, 3\]"),
        (torch.zeros(2, 1, 32, 32), r"not float32 \[2, 1, 32, 32\]"),
        (torch.zeros(3, 32, 32), r"not float32 \[3, 32, 32\]"),
        (torch.full((2, 3, 32, 32), 255.0), "not from 255 to 255: divide uint8 images by 255"),
        (torch.full((2, 3, 32, 32), -2.5), "not from -2.5"),
        (torch.full((2, 3, 32, 32), torch.nan), "not from nan"),
        ([[1.0]], "must be a tensor, not a value of type list"),
    ],
)
def test_what_is_no_batch_of_images_is_refused(model, images, says):
    with pytest.raises(UsageError, match=says):
        model(images)


def test_images_at_the_ends_of_the_range_and_no_images_are_classified(model):
    for images in (torch.zeros(2, 3, 32, 32), torch.ones(1, 3, 32, 32), torch.rand(0, 3, 32, 32)):
        assert model(images).shape == (len(images), 10)


def test_images_with_noise_are_classified(model):
    """Randomised smoothing (Cohen et al. 2019) adds it."""
    x = torch.rand(4, 3, 32, 32)
    assert model((x + 0.2 * torch.randn_like(x)).clamp(-1, 2)).shape == (4, 10)


def test_an_attack_may_leave_the_range_for_a_gradient(model):
    images = torch.full((2, 3, 32, 32), 1.1, requires_grad=True)
    assert torch.autograd.grad(model(images).sum(), images)[0].shape == images.shape


def test_images_may_be_mapped_over(model):
    x = torch.rand(2, 3, 32, 32)
    mapped = torch.func.vmap(lambda image: model(image[None])[0])(x)
    assert torch.allclose(mapped, model(x), atol=1e-4)


def test_no_graph_has_a_check(model):
    x = torch.rand(2, 3, 32, 32)
    plain = torch.nn.Sequential(torch.fx.symbolic_trace(model)).eval()
    graphs = [torch.export.export(one, (x,)).module().graph for one in (model, plain)]
    operations = [[node.target for node in graph.nodes if node.op == "call_function"] for graph in graphs]
    assert operations[0] == operations[1]
    assert torch.jit.trace(model, x)(torch.full_like(x, 5)).shape == (2, 10)
    assert torch.equal(torch.fx.symbolic_trace(model)(x), model(x))
