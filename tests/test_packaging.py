from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import zoo

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> zipfile.ZipFile:
    """A wheel built from a copy of the tracked tree, so that nothing left lying about gets in."""
    place = tmp_path_factory.mktemp("wheel")
    shutil.copytree(
        ROOT,
        place / "src",
        symlinks=True,
        ignore=shutil.ignore_patterns(
            ".git", ".venv", "runs", "bundles", "build", "*.egg-info", "__pycache__", ".*_cache"
        ),
    )
    build = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        place,
        place / "src",
    ]
    done = subprocess.run([str(part) for part in build], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return zipfile.ZipFile(next(place.glob("*.whl")))


def test_the_wheel_holds_the_registry_itself_not_a_link_to_it(wheel):
    inside = json.loads(wheel.read("zoo/registry.json"))
    assert inside == json.loads((ROOT / "registry.json").read_text())


def test_the_wheel_holds_every_file_of_every_room(wheel):
    names = set(wheel.namelist())
    for folder, package in (("zoo", "zoo"), ("train", "zoo/train"), ("export", "zoo/export")):
        for path in (ROOT / folder).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                assert f"{package}/{path.relative_to(ROOT / folder).as_posix()}" in names


def test_the_wheel_holds_the_weights_that_the_registry_says_are_bundled(wheel):
    registry = json.loads((ROOT / "registry.json").read_text())
    assert registry["models"]
    for model in registry["models"].values():
        assert f"zoo/bundled/{model['weights']['file']}" in wheel.namelist()


def test_the_citation_is_of_this_version():
    assert f"\nversion: {zoo.__version__}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")


TRIED = """
import zoo
from zoo.cli.app import run

assert zoo.__file__.startswith({place!r}), zoo.__file__
assert zoo.load(zoo.pick("4M").name, local_files_only=True).training is False
assert run(["list", "-q"]) == 0
assert run(["pick", "--flops", "4M", "--export", "onnx", "--verify", "parity", "--offline"]) == 0
"""


def test_the_wheel_works_without_the_checkout(wheel, tmp_path):
    place, elsewhere = tmp_path / "installed", tmp_path / "elsewhere"
    elsewhere.mkdir()
    wheel.extractall(place)
    done = subprocess.run(
        [sys.executable, "-c", TRIED.format(place=str(place))],
        cwd=elsewhere,
        env={**os.environ, "PYTHONPATH": str(place), "ZOO_REGISTRY": "", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert [path.name for path in (elsewhere / "bundles").iterdir()]


def test_nothing_but_the_package_is_installed(wheel):
    tops = {name.split("/")[0] for name in wheel.namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"zoo"}
