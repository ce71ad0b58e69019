"""What ExecuTorch alone does; that it answers as the model does is shown in test_engine_contract.py."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest
import torch
from test_export import FAMILIES, SMALL, images, model_of
from torch import nn

from zoo.export.engines import executorch
from zoo.export.engines.batchnorm import without_batchnorm
from zoo.export.engines.interface import Order
from zoo.system.errors import IntegrityError, UsageError


@pytest.fixture(scope="module")
def program(tmp_path_factory) -> Path:
    pytest.importorskip("executorch", reason="needs ExecuTorch: pip install 'robust-zoo[executorch]'")
    folder = tmp_path_factory.mktemp("program")
    order = Order(model=model_of(SMALL), graph=folder / "model.onnx", precision="fp32", batches=(1, 8))
    return folder / executorch.build(order, folder).file


@pytest.mark.parametrize("family", FAMILIES)
def test_no_batchnorm_is_left_for_a_converter_to_fold(family):
    model, x = model_of(FAMILIES[family]), images(2)
    plain = without_batchnorm(model)
    assert not [module for module in plain.modules() if isinstance(module, nn.BatchNorm2d)]
    assert torch.allclose(plain(x), model(x), atol=1e-4)
    assert any(isinstance(module, nn.BatchNorm2d) for module in model.modules())  # the model itself is left alone


def test_engines_share_one_pool_of_threads_until_they_are_closed_or_gone(program):
    engine = executorch.load(program, threads=1)
    assert executorch.load(program).describe()["threads"] == 1
    with pytest.raises(UsageError, match="run on 1: close them, or load one with 2"):
        executorch.load(program, threads=2)
    engine.close()
    gc.collect()
    with executorch.load(program, threads=2) as engine:
        assert engine.describe()["threads"] == 2
    executorch.load(program, threads=1).close()


def test_an_engine_loads_only_what_is_a_classifier(program, tmp_path):
    from executorch.exir import to_edge

    other = to_edge(torch.export.export(nn.Linear(3, 2).eval(), (torch.zeros(1, 3),))).to_executorch()
    (tmp_path / "linear").write_bytes(other.buffer)
    with pytest.raises(IntegrityError, match="not a classifier"):
        executorch.load(tmp_path / "linear")
