"""The ExecuTorch engine: what is built, and that it answers as the model does."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest
import torch
from bundles import bundle_of
from test_export import FAMILIES, images, model_of
from torch import nn

from zoo.export import read_bundle
from zoo.export.bundle.source import Known
from zoo.export.engines import backend, executorch
from zoo.export.engines.batchnorm import without_batchnorm
from zoo.export.engines.executorch import ARTIFACT, LARGEST
from zoo.models import Classifier
from zoo.specs import StagedSpec
from zoo.system.errors import IntegrityError, UsageError

BACKEND = backend("executorch")
SPEC = StagedSpec(widths=((8, 6, 8),), resolutions=(16,), stem=8)  # a shortcut drops channels, the next adds some


@pytest.fixture(scope="module")
def small() -> Classifier:
    pytest.importorskip("executorch", reason="needs ExecuTorch: pip install 'robust-zoo[executorch]'")
    return model_of(SPEC)


@pytest.fixture(scope="module")
def bundle(small, tmp_path_factory) -> Path:
    """A bundle whose engine agrees with the model at batch sizes 1, 2, 8 and 64, or it would not have been written."""
    out = tmp_path_factory.mktemp("bundles")
    return bundle_of(small, Known("small", "small"), format=BACKEND.name, out=out, verify="parity")


@pytest.fixture(scope="module")
def program(bundle) -> Path:
    return bundle / ARTIFACT


@pytest.fixture(scope="module")
def engine(program):
    return executorch.load(program, threads=1)


@torch.no_grad()
def answers(model: Classifier, x: torch.Tensor) -> torch.Tensor:
    logits = model(x)
    assert logits.std() > 0.05
    return logits


@pytest.mark.parametrize("family", FAMILIES)
def test_no_batchnorm_is_left_for_a_converter_to_fold(family):
    model, x = model_of(FAMILIES[family]), images(2)
    plain = without_batchnorm(model)
    assert not [module for module in plain.modules() if isinstance(module, nn.BatchNorm2d)]
    assert torch.allclose(plain(x), answers(model, x), atol=1e-4)
    assert any(isinstance(module, nn.BatchNorm2d) for module in model.modules())  # the model itself is left alone


@pytest.mark.parametrize("n", [15, 16, LARGEST, LARGEST + 1, 2 * LARGEST + 3])
def test_the_engine_agrees_with_the_model_at_every_batch_size(n, small, engine):
    x = images(n, seed=n)
    assert torch.allclose(engine(x), answers(small, x), atol=1e-4)


def test_int8_ranges_come_from_the_calibration_images(small):
    """A net that was calibrated with dark images only has no numbers for what bright ones cause."""
    x = images(33, seed=3)
    expected = answers(small, x)
    shapes = ({0: torch.export.Dim("batch", min=1, max=LARGEST)},)
    graph = torch.export.export(without_batchnorm(small), (x[:2],), dynamic_shapes=shapes).module()
    narrow = executorch._quantised(graph, images(64, seed=1) / 20)
    assert (narrow(x) - expected).abs().max() > 0.5 * expected.std()


def test_a_bundle_says_how_its_program_was_built(bundle):
    manifest = read_bundle(bundle)
    assert (manifest.artifact.file, manifest.artifact.format) == (ARTIFACT, "executorch")
    assert manifest.artifact.options == {"delegate": "xnnpack", "largest_batch": LARGEST}
    assert manifest.gates[-1].measured["max_logit_difference"] < 1e-4
    assert manifest.gates[-1].measured["batches"] == [1, 2, 8, 64]


def test_engines_share_one_pool_of_threads(engine, program):
    with pytest.raises(UsageError, match="run on 1: close them, or load one with 2"):
        executorch.load(program, threads=2)
    assert executorch.load(program).describe()["threads"] == 1


def test_engines_that_are_closed_or_gone_do_not_keep_the_pool(engine, program):
    before = len(executorch._in_use)
    another, third = executorch.load(program), executorch.load(program)
    assert len(executorch._in_use) == before + 2
    assert another.describe() == engine.describe() | {"backend": "xnnpack", "threads": 1}
    another.close()
    assert len(executorch._in_use) == before + 1
    del third
    gc.collect()
    assert len(executorch._in_use) == before


def test_an_engine_loads_only_what_is_a_classifier(small, tmp_path):
    from executorch.exir import to_edge

    other = to_edge(torch.export.export(nn.Linear(3, 2).eval(), (torch.zeros(1, 3),))).to_executorch()
    (tmp_path / "linear").write_bytes(other.buffer)
    with pytest.raises(IntegrityError, match="not a classifier"):
        executorch.load(tmp_path / "linear")
