from __future__ import annotations

import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

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


def test_the_wheel_holds_every_room_and_everything_that_they_read(wheel):
    names = set(wheel.namelist())
    for folder, package in (("zoo", "zoo"), ("train", "zoo/train"), ("export", "zoo/export")):
        for path in (ROOT / folder).rglob("*.py"):
            assert f"{package}/{path.relative_to(ROOT / folder)}" in names
    for path in (ROOT / "train" / "recipes").glob("*.toml"):
        assert f"zoo/train/recipes/{path.name}" in names
    for path in (ROOT / "zoo" / "report").rglob("*.*"):
        assert path.suffix == ".pyc" or f"zoo/{path.relative_to(ROOT / 'zoo')}" in names
    assert {"zoo/py.typed", "zoo/hub/card.md"} <= names


def test_the_wheel_holds_the_weights_that_the_registry_says_are_bundled(wheel):
    registry = json.loads((ROOT / "registry.json").read_text())
    assert registry["models"]
    for model in registry["models"].values():
        assert f"zoo/bundled/{model['weights']['file']}" in wheel.namelist()


def test_nothing_but_the_package_is_installed(wheel):
    tops = {name.split("/")[0] for name in wheel.namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"zoo"}
