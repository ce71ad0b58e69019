"""Texts, names and messages where the locale is not UTF-8, and files from editors of Windows."""

from __future__ import annotations

import codecs
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_registry import MODELS, registry_data
from tiny import SPEC

from zoo.registry.file import load_registry
from zoo.system.errors import UsageError
from zoo.system.files import pretty
from zoo.train.recipes.phases import load_phases
from zoo.train.recipes.published import RECIPES
from zoo.weights.load import find

TESTS = Path(__file__).parent
PLAIN = {key: value for key, value in os.environ.items() if key not in ("LANG", "PYTHONIOENCODING", "LC_CTYPE")} | {
    "PYTHONUTF8": "0",
    "LC_ALL": "C",
    "OMP_NUM_THREADS": "1",
}


def plainly(*arguments: str, **changes: str) -> subprocess.CompletedProcess[bytes]:
    """Run Python without UTF-8."""
    return subprocess.run([sys.executable, *arguments], env=PLAIN | changes, capture_output=True, cwd=TESTS)


@pytest.mark.slow
def test_the_light_part_of_the_suite_passes_without_utf8():
    light = ("test_cli.py", "test_registry.py", "test_recipe.py", "test_address.py")
    slow = ("imports_", "at_the_same_time", "schema", "completes", "reader", "pareto", "affordable")
    chosen = ["-k", " and ".join(f"not {word}" for word in slow), "-p", "no:cacheprovider", "-x"]
    done = plainly("-m", "pytest", "-q", *chosen, *light)
    assert done.returncode == 0, done.stdout.decode(errors="replace")[-3000:]
    assert b" skipped" not in done.stdout


@pytest.fixture
def named(tmp_path) -> Path:
    """A folder with a model, an image folder, a registry and a recipe whose names are not ASCII."""
    place = tmp_path / "modèle"
    place.mkdir()
    (place / "model.safetensors").write_bytes(b"weights")
    (place / "config.json").write_text(json.dumps({"spec": SPEC.to_dict()}), encoding="utf-8")
    for part, count in (("train", 2), ("val", 1)):
        for label in ("été", "hiver"):
            (tmp_path / "données" / part / label).mkdir(parents=True)
            for k in range(count):
                image = Image.fromarray(np.zeros((9, 9, 3), np.uint8))
                image.save(tmp_path / "données" / part / label / f"é{k}.png")
    models = {"small": {**MODELS["small"], "description": "Un élève"}}
    (tmp_path / "régistre.json").write_text(pretty(registry_data(models)), encoding="utf-8")
    recipe = (RECIPES / "trades-s7.toml").read_text(encoding="utf-8")
    (tmp_path / "réglage.toml").write_text(f"# à régler\n{recipe}", encoding="utf-8")
    return tmp_path


NAMES = """
import os, sys
from pathlib import Path
from zoo.datasets import DATASETS
from zoo.registry.file import load_registry
from zoo.system.files import write_atomic
from zoo.train.recipes.phases import load_phases
from zoo.weights.load import find

assert not sys.flags.utf8_mode
home = Path(sys.argv[1])
place = home / os.fsdecode("modèle".encode())
found = find(f"local-dir:{place}")
again = find("local-dir:" + os.fsencode(place).decode())  # as another locale has stored it
assert found.sha256 == again.sha256
data = DATASETS["imagefolder"].load(home / os.fsdecode("données".encode()))
assert data.classes == ("hiver", "été"), ascii(data.classes)
assert load_registry(home / os.fsdecode("régistre.json".encode())).models["small"].description == "Un élève"
load_phases(home / os.fsdecode("réglage.toml".encode()))
write_atomic(home / "out", f"{place.name}")
"""


def test_names_and_texts_that_are_not_ascii_are_read_without_utf8(named):
    script = named / "script.py"
    script.write_text(NAMES, encoding="utf-8")
    done = plainly(str(script), str(named))
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    assert (named / "out").read_text(encoding="utf-8") == "modèle"


@pytest.mark.parametrize(
    ("changes", "sign", "name"), [({}, "±", "modèle"), ({"PYTHONIOENCODING": "ascii"}, "\\xb1", "mod\udcc3\udca8le")]
)
def test_what_the_locale_cannot_encode_is_printed_all_the_same(named, changes, sign, name):
    registry = {"ZOO_REGISTRY": str(named / "registry.json"), "ZOO_CACHE": str(named / "cache")}
    (named / "registry.json").write_text(pretty(registry_data(MODELS)), encoding="utf-8")
    done = plainly("-m", "zoo", "list", **changes, **registry)
    assert done.returncode == 0, done.stderr
    assert f"40.0 {sign}1.0".encode() in done.stdout
    done = plainly("-m", "zoo", "show", "modèle", **changes, **registry)
    assert done.returncode == 3
    assert f"no model is called '{name}'".encode("utf-8", "surrogateescape") in done.stderr


def from_windows(path: Path) -> Path:
    path.write_bytes(codecs.BOM_UTF8 + path.read_bytes().replace(b"\n", b"\r\n"))
    return path


def test_texts_with_the_line_ends_and_the_mark_of_windows_are_read(named):
    registry = from_windows(named / "régistre.json")
    assert load_registry(registry).models["small"].description == "Un élève"
    config = named / "modèle" / "config.json"
    config.write_text(json.dumps({"spec": SPEC.to_dict()}, indent=2), encoding="utf-8")
    from_windows(config)
    assert find(f"local-dir:{named / 'modèle'}").spec == SPEC
    assert load_phases(from_windows(named / "réglage.toml")) == load_phases("trades-s7")


def test_a_recipe_in_another_encoding_is_named(tmp_path):
    (tmp_path / "recipe.toml").write_bytes("# à régler".encode("latin-1"))
    with pytest.raises(UsageError, match=r"recipe\.toml' is not TOML: 'utf-8' codec"):
        load_phases(tmp_path / "recipe.toml")
