"""Fixtures that several test files share."""

from __future__ import annotations

import functools
import gc
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import settings
from once import convert_once, read_the_operators_once
from processes import forked
from sturdy import TEST, pictures, trained
from tiny import bundled, folder, hashed, hub_cache, net  # noqa: F401

from zoo.datasets.base import Dataset, Split
from zoo.datasets.cifar10 import CIFAR10
from zoo.export.runtimes import onnxruntime, openvino
from zoo.models import Classifier, build
from zoo.specs import StagedSpec
from zoo.system.errors import DataNotFound
from zoo.weights.tensors import save_weights

settings.register_profile("untimed", deadline=None)  # how long an example takes says how busy the machine is
settings.load_profile("untimed")

# The nets here are tiny: one thread is faster, and the same numbers come out on any number of cores.
torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the processes that tests start


def on_one_thread(open_: Callable[..., Any]) -> Callable[..., Any]:
    """An engine's ``open``, with one thread where no number is asked for: more would wait for those of other tests."""

    @functools.wraps(open_)
    def opened(parts: Any, threads: int | None, **options: Any) -> Any:
        return open_(parts, threads or 1, **options)

    return opened


for runtime in (onnxruntime, openvino):
    runtime.open = on_one_thread(runtime.open)


convert_once()
gc.set_threshold(50_000, 20, 20)  # a tenth of the time went into looking for garbage among what stays

# Files that take longest. They come first, so that processes that share the files out end at about the same time.
LONG = [
    "engine_contract",
    "attacks",
    "verify",
    "methods",
    "training",
    "proard_training",
    "report_browser",
    "engine_openvino",
]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {f"test_{name}": place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: places.get(item.path.stem, len(LONG)))


def pytest_collection_finish() -> None:
    gc.freeze()


def pytest_runtest_setup() -> None:
    read_the_operators_once()


@pytest.fixture(scope="session")
def cifar() -> Dataset:
    """The real CIFAR-10, wherever this machine has it; never fetched by a test."""
    try:
        return CIFAR10.load(offline=True)
    except DataNotFound:
        pytest.skip("needs CIFAR-10: set ZOO_DATA")


@pytest.fixture(scope="session")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """CIFAR-shaped data that a tiny net learns in seconds: ten coloured patches in noise. 3,000 + 1,000 images."""
    root: Path = tmp_path_factory.mktemp("toy")
    rng = np.random.default_rng(0)
    colours = rng.integers(0, 2, (10, 4, 3)) * 160 + 48  # a colour for each quadrant of each class
    for split, n in (("train", 3000), ("test", 1000)):
        labels = rng.integers(0, 10, n)
        images = rng.integers(-40, 41, (n, 32, 32, 3)) + 128
        for q, (top, left) in enumerate(((0, 0), (0, 16), (16, 0), (16, 16))):
            images[:, top : top + 16, left : left + 16] += (colours[labels, q] - 128)[:, None, None] // 3
        np.save(root / f"{split}_images.npy", images.clip(0, 255).astype(np.uint8))
        np.save(root / f"{split}_labels.npy", labels.astype(np.int64))
    return replace(CIFAR10, root=root)


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> Callable[[Dataset | Exception], list[Any]]:
    """Make a data set what every load of CIFAR-10 finds, or an error what it raises; returns what loads ask for."""

    def make(found: Dataset | Exception) -> list[Any]:
        asked: list[Any] = []

        def load(self: Dataset, data: Any = None, *, offline: bool = False) -> Dataset:
            asked.append((self.name, data, offline))
            if isinstance(found, Exception):
                raise found
            return found

        monkeypatch.setattr(type(CIFAR10), "load", load)
        return asked

    return make


@pytest.fixture(scope="session")
def teacher_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder with a tiny net of four convolutions and random weights, to be taught by."""
    place: Path = tmp_path_factory.mktemp("teacher") / "model"
    place.mkdir()
    spec = StagedSpec(widths=((4,), (8, 8)), resolutions=(8, 4), stem=4, stem_resolution=16)
    torch.manual_seed(3)
    teacher = build(spec)
    torch.nn.init.normal_(teacher.head.weight)  # answers that differ from image to image
    save_weights(teacher.state_dict(), place / "model.safetensors")
    (place / "config.json").write_text(json.dumps({"spec": spec.to_dict()}))
    return place


@pytest.fixture(scope="session")
def split() -> Split:
    """500 pictures of the small world of ``sturdy.py``."""
    return Split("test", *pictures(TEST, seed=2))


@pytest.fixture(scope="session")
def world(tmp_path_factory) -> Dataset:
    """Pictures to calibrate by; the first 50 for training are in the test split too."""
    root = tmp_path_factory.mktemp("world")
    (images, labels), (tested, answers) = pictures(1300, seed=1), pictures(TEST, seed=2)
    images[:50], labels[:50] = tested[:50], answers[:50]
    for name, arrays in (("train", (images, labels)), ("test", (tested, answers))):
        np.save(root / f"{name}_images.npy", arrays[0])
        np.save(root / f"{name}_labels.npy", arrays[1])
    return replace(CIFAR10, root=root)


@pytest.fixture(scope="session")
def robust() -> Classifier:
    return trained(robustly=True)


@pytest.fixture(scope="session")
def fragile() -> Classifier:
    return trained(robustly=False)


@pytest.fixture(scope="session")
def small() -> Classifier:
    """A tiny net whose BatchNorms and logits look like those of a trained net."""
    from test_export import SMALL, model_of

    return model_of(SMALL)


PRELUDE = """
import json, sys
from dataclasses import replace
from pathlib import Path
sys.path.insert(0, {tests!r})
from zoo.datasets.cifar10 import CIFAR10

dataset = replace(CIFAR10, root=Path({root!r}))


def report(accelerator, result):
    if accelerator.is_main_process:
        Path({out!r}).write_text(json.dumps([accelerator.num_processes, result]))
    accelerator.end_training()
"""


@pytest.fixture
def on_processes(tmp_path: Path) -> Callable[..., Any]:
    """A function that runs a script on some processes and returns the result that it gives to ``report``.

    The script is a format string. It can use the names of ``PRELUDE``, such as the ``dataset`` at ``root``.
    """

    def run(
        script: str, processes: int, root: Path, *, start: Callable[[Path, int], None] = forked, **places: str
    ) -> Any:
        out, path = tmp_path / f"{processes}.json", tmp_path / f"{processes}.py"
        tests = str(Path(__file__).parent)
        path.write_text((PRELUDE + script).format(out=str(out), tests=tests, root=str(root), **places))
        start(path, processes)
        count, result = json.loads(out.read_text())
        assert count == processes
        return result

    return run
