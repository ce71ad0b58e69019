from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from exported import bundle_of
from PIL import Image
from test_export import SMALL, model_of

from zoo.datasets.base import to_float
from zoo.datasets.cifar10 import CIFAR10
from zoo.export.bundle.source import Known
from zoo.export.engines import ENGINES, backend
from zoo.models import Classifier

EXAMPLES = Path(__file__).parents[1] / "examples"
RUNTIMES = {engine.package for engine in ENGINES}
# Runs an example with its arguments where no module called zoo can be imported.
WITHOUT_ZOO = (
    "import runpy, sys; del sys.argv[0]; sys.modules['zoo'] = None; runpy.run_path(sys.argv[0], {}, '__main__')"
)

Ranking = list[tuple[str, float]]  # class and probability, best first


@pytest.fixture(scope="module")
def model() -> Classifier:
    model = model_of(SMALL)
    model.head.weight.data.mul_(20)  # so that it has an opinion
    return model


@pytest.fixture(scope="module")
def bundle(model, tmp_path_factory) -> Path:
    known = Known("small", "small", dataset="cifar10", labels=CIFAR10.classes)
    return bundle_of(model, known, out=tmp_path_factory.mktemp("out"), verify="none")


def drawn(path: Path) -> Path:
    """A picture, neither square nor of the model's size."""
    coarse = np.random.default_rng(0).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize((48, 40), Image.Resampling.BICUBIC).save(path)
    return path


@pytest.fixture(scope="module")
def picture(tmp_path_factory) -> Path:
    return drawn(tmp_path_factory.mktemp("pictures") / "picture.png")


def twins(model: Classifier, picture: Path, size: int = 32) -> Ranking:
    """What the float model says of the picture."""
    pixels = np.asarray(Image.open(picture).convert("RGB").resize((size, size), Image.Resampling.BILINEAR))
    with torch.no_grad():
        p = model(to_float(pixels[None]))[0].softmax(0)
    return [(CIFAR10.classes[k], p[k].item()) for k in p.argsort(descending=True)[:3].tolist()]


def ranking(lines: str) -> Ranking:
    return [(label, float(p)) for p, label in (line.split("  ", 1) for line in lines.splitlines())]


def run_example(engine: str, bundle: Path, picture: Path) -> Ranking:
    script = EXAMPLES / backend(engine).example
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_ZOO, str(script), str(bundle), str(picture)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        cwd=bundle.parent,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return ranking(done.stdout)


def agree(found: Ranking, expected: Ranking) -> None:
    assert [label for label, _ in found] == [label for label, _ in expected]
    assert [p for _, p in found] == pytest.approx([p for _, p in expected], abs=2e-3)


def holding(bundle: Path, folder: Path, **changes) -> Path:
    """A copy of the bundle with changes in its manifest."""
    shutil.copytree(bundle, folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | changes))
    return folder


def check_that_it_shows(model: Classifier, picture: Path, other: Path) -> None:
    """The model must see that the picture is turned or its colours are swapped: else an example could do so unnoticed.
    ``other`` is overwritten."""
    image, expected = Image.open(picture), twins(model, picture)
    swapped = Image.fromarray(np.array(image)[..., ::-1])
    for changed in (swapped, image.transpose(Image.Transpose.TRANSPOSE), image.transpose(Image.Transpose.ROTATE_180)):
        changed.save(other)
        with pytest.raises(AssertionError):
            agree(twins(model, other), expected)


def test_the_picture_shows_when_it_is_turned_or_its_colours_are_swapped(model, picture, tmp_path):
    check_that_it_shows(model, picture, tmp_path / "other.png")


def test_classes_without_names_are_numbered(model, bundle, picture, tmp_path):
    nameless = holding(bundle, tmp_path / "nameless", labels=[])
    found = run_example("onnxruntime", nameless, picture)
    agree([(CIFAR10.classes[int(label)], p) for label, p in found], twins(model, picture))


def test_the_litert_example_takes_channels_last_too(model, bundle, picture, tmp_path):
    litert_torch = pytest.importorskip("litert_torch")
    last = litert_torch.to_channel_last_io(model, args=[0]).eval()
    converted = litert_torch.convert(last, (torch.rand(1, 32, 32, 3),))
    folder = holding(bundle, tmp_path / "small--litert-fp32", artifact={"file": "model.tflite"})
    converted.export(str(folder / "model.tflite"))
    agree(run_example("litert", folder, picture), twins(model, picture))


def test_the_cpp_example_says_what_the_model_says(model, bundle, picture, tmp_path):
    root = os.environ.get("ONNXRUNTIME_ROOT")
    if not root or not shutil.which("cmake"):
        pytest.skip("needs cmake, and ONNXRUNTIME_ROOT set to an unpacked release of ONNX Runtime")
    image = Image.open(picture).convert("RGB").resize((32, 32), Image.Resampling.BILINEAR)
    image.save(tmp_path / "picture.ppm")
    configure = ["cmake", "-S", str(EXAMPLES), "-B", str(tmp_path / "build"), f"-DONNXRUNTIME_ROOT={root}"]
    subprocess.run(configure, check=True, capture_output=True)
    subprocess.run(["cmake", "--build", str(tmp_path / "build")], check=True, capture_output=True)
    command = [str(tmp_path / "build" / "classify_onnxruntime"), str(bundle), str(tmp_path / "picture.ppm")]
    agree(ranking(subprocess.run(command, check=True, capture_output=True, text=True).stdout), twins(model, picture))


@pytest.mark.parametrize("engine", ENGINES, ids=lambda one: one.name)
def test_an_example_needs_its_runtime_and_little_else(engine):
    tree = ast.parse((EXAMPLES / engine.example).read_text())
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    imported = {name.partition(".")[0] for name in imported} - set(sys.stdlib_module_names)
    assert {"numpy", "PIL"} <= imported
    assert imported & RUNTIMES == {engine.package}
    assert imported - RUNTIMES <= {"numpy", "PIL", "torch"}


def test_the_readme_names_every_example():
    readme = (EXAMPLES / "README.md").read_text()
    for engine in ENGINES:
        (row,) = [line for line in readme.splitlines() if line.startswith(f"| `{engine.example}`")]
        assert engine.package.replace("_", "-") in row
    for path in EXAMPLES.iterdir():
        assert path.name in readme or path.name == "README.md"
