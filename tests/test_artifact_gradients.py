"""ExecuTorch's and LiteRT's artifacts as modules: they answer as the engines do, and hold the weights of the files."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from test_export import images, model_of
from torch import Tensor, nn

from zoo.export.engines import backend
from zoo.export.engines.batchnorm import without_batchnorm
from zoo.export.engines.interface import Order
from zoo.export.gradients import artifact_gradients
from zoo.models import Classifier
from zoo.specs import StagedSpec
from zoo.system.errors import MissingDependency

SPEC = StagedSpec(widths=((6, 8, 6),), resolutions=(16,), stem=6)  # shortcuts add channels and drop them
TABLES = {"litert": ("OPERATORS", "ADD"), "executorch": ("NODES", "XNNAdd")}


@pytest.fixture(scope="module")
def model() -> Classifier:
    return model_of(SPEC)


@pytest.fixture(scope="module", params=TABLES)
def engine(request) -> ModuleType:
    try:
        backend(request.param).require(build=True)
    except MissingDependency as error:
        pytest.skip(str(error))
    return backend(request.param).load_module()


@pytest.fixture(scope="module")
def int8(engine, model, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp(engine.BACKEND.name)
    order = Order(
        model=model, graph=folder / "model.onnx", precision="int8", batches=(1, 8), calibration=images(32, seed=1)
    )
    return folder / engine.build(order, folder).file


def own(engine: ModuleType, path: Path, model: Classifier) -> nn.Module | None:
    return artifact_gradients(engine.BACKEND.module, path, model)


def apart(a: Tensor, b: Tensor) -> Tensor:
    return (a - b).square().mean().sqrt()


def weight_in(content: bytes, model: Classifier) -> int:
    """Where the int8 weight of a convolution lies in a file."""
    for module in without_batchnorm(model).modules():
        if isinstance(module, nn.Conv2d):
            steps = module.weight.abs().amax((1, 2, 3), keepdim=True) / 127
            place = content.find((module.weight / steps).round().to(torch.int8).permute(0, 2, 3, 1).numpy().tobytes())
            if place >= 0:
                return place
    raise AssertionError("the file holds no weight of the model")


def test_it_answers_as_the_engine_does(engine, int8, model):
    x = images(32, seed=5)
    with engine.load(int8, threads=1) as loaded, torch.no_grad():
        answers = loaded(x)
        assert apart(loaded.differentiable(model)(x), answers) < 0.1 * apart(model(x), answers)


def test_its_gradients_are_near_those_of_the_float_model(engine, int8, model):
    def gradient(net: nn.Module) -> Tensor:
        x = images(8, seed=6).requires_grad_()
        F.cross_entropy(net(x), model(x).argmax(1)).backward()
        return x.grad.flatten(1)

    found = gradient(own(engine, int8, model))
    assert found.isfinite().all()
    assert F.cosine_similarity(found, gradient(model)).mean() > 0.9


def test_a_changed_weight_in_the_file_changes_its_answer_as_it_changes_the_engine_s(engine, int8, model, tmp_path):
    content, x = bytearray(int8.read_bytes()), images(8, seed=7)
    content[weight_in(content, model)] ^= 0x40
    changed = tmp_path / int8.name
    changed.write_bytes(content)
    with engine.load(int8, threads=1) as before, engine.load(changed, threads=1) as after, torch.no_grad():
        moved = apart(before(x), after(x))
        assert moved > 0
        assert apart(own(engine, changed, model)(x), after(x)) < 0.1 * moved


def test_an_unknown_operator_gives_none(engine, int8, model, monkeypatch):
    reader = import_module(f"zoo.export.gradients.{engine.BACKEND.name}")
    table, addition = TABLES[engine.BACKEND.name]
    monkeypatch.delitem(getattr(reader, table), addition)
    assert own(engine, int8, model) is None


def test_a_damaged_file_gives_none(engine, int8, model, tmp_path):
    half = tmp_path / int8.name
    half.write_bytes(int8.read_bytes()[: int8.stat().st_size // 2])
    assert own(engine, half, model) is None
