"""Every console and Python block of the pages is tried, or says in its info string why it cannot be.

A verb of ``zoo`` that takes long runs up to its work: whatever it refuses, a wrong option, name, recipe or engine, it
refuses before. Data and folders that a page speaks of are lent by the test.
"""

from __future__ import annotations

import glob
import json
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from cryptography.hazmat.primitives.asymmetric import ec
from exported import bundle_of
from test_signature import write_key

import zoo
from zoo.cli.app import VERBS, _verb, run
from zoo.export.bundle.keys import signing_key
from zoo.export.bundle.provenance import sign_bundle
from zoo.export.bundle.source import Known
from zoo.export.onnx.graph import save_onnx

ROOT = Path(__file__).parents[1]
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), ROOT / "examples" / "README.md"]
BLOCK = re.compile(r"^```(\S*)[ \t]*([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
QUICK = {"list", "show", "pick", "compare", "doctor", "cache"}
WORK = {  # what the other verbs do their work with
    "bench": "zoo.export.bench.bench.bench",
    "convert": "zoo.weights.convert.convert",
    "eval": "zoo.evaluation.measure.measure",
    "export": "zoo.export.exporter.Job.run",  # of zoo pick --export too
    "pull": "zoo.hub.pull.pull",
    "push": "zoo.hub.push.gather",
    "report": "zoo.report.site.write_site",
    "search": "zoo.train.proard.dynamic.Dynamic.predictor",
    "sweep": "zoo.evaluation.sweep.sweep",
    "train": "zoo.train.pipeline.run",
    "verify": "zoo.export.verify.verify_bundle",
}
MYNETS = """
from torch import nn

def make():
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(10))

hundred = make  # the images that are lent have ten classes
"""
WRITTEN = ("-o", "--out")  # what these name must not be there


def blocks(*languages: str) -> list[pytest.param]:
    found = []
    for page in sorted(PAGES):
        text, name = page.read_text(encoding="utf-8"), page.relative_to(ROOT).as_posix()
        for block in BLOCK.finditer(text):
            if block[1] in languages:
                line = text.count("\n", 0, block.start()) + 1
                found.append(pytest.param(block[2].strip(), block[3], id=f"{name}:{line}"))
    return found


class Reached(BaseException):
    """A verb came to its work."""


@pytest.fixture(scope="module")
def lent(tmp_path_factory, small) -> Path:
    """What pages speak of: a bundle, a model folder as training leaves it, a key, a checkpoint, a recipe, a model."""
    place = tmp_path_factory.mktemp("lent")
    known = Known("small", "small", dataset="cifar10")
    shutil.move(bundle_of(small, known, out=place, verify="none"), place / "bundle")
    facts = zoo.info("trades-s3").to_dict()
    facts = {key: facts[key] for key in ("family", "description", "paper", "spec", "dataset", "threat", "train")}
    (place / "model").mkdir()
    (place / "model" / "config.json").write_text(json.dumps({"name": "mine", **facts}), encoding="utf-8", newline="\n")
    shutil.copy(Path(zoo.__file__).parent / "bundled" / "trades-s3.safetensors", place / "model" / "model.safetensors")
    (place / "wrn.pt").write_bytes(b"")
    (place / "mynets.py").write_text(MYNETS)
    save_onnx(small, place / "net.onnx")
    program = torch.export.export(small, (torch.rand(2, 3, 32, 32),), dynamic_shapes=({0: torch.export.Dim("batch")},))
    torch.export.save(program, place / "net.pt2")
    shutil.copy(ROOT / "train" / "recipes" / "trades-s3.toml", place / "my.toml")
    return place


@pytest.fixture
def here(tmp_path, monkeypatch, lent, toy, found) -> Path:
    """A folder to run a block in."""
    found(toy)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for file in ("wrn.pt", "my.toml", "mynets.py", "net.onnx", "net.pt2"):
        shutil.copy(lent / file, tmp_path / file)
    write_key(tmp_path / "key", ec.generate_private_key(ec.SECP256R1()))

    def reached(*_: object, **__: object) -> None:
        raise Reached

    for verb in WORK.keys() & VERBS:
        monkeypatch.setattr(WORK[verb], reached)
    return tmp_path


@contextmanager
def lending(lent: Path, words: list[str]):
    """The bundles and model folders that the command names, as long as it runs."""
    made = []
    for before, word in zip(["", *words], words, strict=False):
        path = Path(word.rpartition("local-dir:")[2].rpartition("=")[2].replace("*", "-onnxruntime"))
        if path.parts[:1] in (("bundles",), ("runs",)) and len(path.parts) > 1 and before not in WRITTEN:
            shutil.copytree(lent / ("bundle" if path.parts[0] == "bundles" else "model"), path)
            made.append(path)
            if "--trust" in words:
                sign_bundle(path, signing_key(Path("key.pem")))
    yield
    for path in made:
        shutil.rmtree(path)


def commands(block: str) -> list[list[str]]:
    """The words of every command of a block of a console, without comments; commands joined by && are two."""
    lines = re.sub(r"\\\n\s*", "", block).splitlines()
    found = []
    for line in lines:
        assert line.startswith("$ "), f"'{line}' is not a command: a block of a console has no output"
        words = shlex.split(line[2:], comments=True)
        while "&&" in words:
            found.append(words[: words.index("&&")])
            words = words[words.index("&&") + 1 :]
        found.append(words)
    return found


def zoo_runs(words: list[str], lent: Path, capsys) -> None:
    """It comes to its work, or does it."""
    words = words[: words.index(">")] if ">" in words else words
    verb = words[0]
    assert verb in WORK or verb in QUICK, f"name in WORK what zoo {verb} does its work with, or it in QUICK"
    with lending(lent, words):
        words = [each for word in words for each in (glob.glob(word) if word.startswith("bundles/") else ()) or [word]]
        try:
            code = run([*words, "-q"])
        except Reached:
            code = None
    said = capsys.readouterr().err
    if code == 6:
        pytest.skip(said)
    assert code in ((0, None) if verb in QUICK else (None,)), said


def launched(words: list[str], parse) -> list[str]:
    """The words of zoo behind ``launcher ... -m zoo``, whose own options are parsed too."""
    assert parse([*words[: words.index("-m") + 1], "zoo"]) is not None
    return words[words.index("zoo") + 1 :]


def tried(words: list[str], lent: Path, capsys, monkeypatch) -> None:
    while re.fullmatch(r"[A-Z_0-9]+=.*", words[0]):
        monkeypatch.setenv(*words.pop(0).split("=", 1))
    match words:
        case ["zoo", *rest]:
            zoo_runs(rest, lent, capsys)
        case ["torchrun", *rest]:
            from torch.distributed.run import parse_args

            zoo_runs(launched(rest, parse_args), lent, capsys)
        case ["accelerate", "launch", *rest]:
            from accelerate.commands.launch import launch_command_parser

            zoo_runs(launched(rest, launch_command_parser().parse_args), lent, capsys)
        case ["make", target]:
            assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
        case ["pip", "install", "."]:
            pass  # tests/test_packaging.py
        case ["pip", "install", package]:
            project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
            name, extras = re.fullmatch(r"([\w-]+)\[([\w,]+)\]", package).groups()
            assert name == project["name"]
            assert {*extras.split(",")} <= {*project["optional-dependencies"]}
        case ["python", "docs/methods.py", *rest]:
            monkeypatch.syspath_prepend(str(ROOT / "docs"))
            import methods

            methods.parser().parse_args(rest)
        case ["python", script, *_]:
            assert (ROOT / script).is_file(), f"there is no {script}"
        case ["openssl", *_]:
            if shutil.which("openssl"):
                subprocess.run(words, check=True, capture_output=True)
        case _:
            pytest.fail(f"nothing here tries '{' '.join(words)}': say in the block's first line why it cannot be tried")


@pytest.mark.parametrize(("why_not", "block"), blocks("console", "sh", "bash", "shell"))
def test_a_console_block_works(why_not, block, here, lent, capsys, monkeypatch):
    for words in commands(block):
        if not why_not:
            tried(words, lent, capsys, monkeypatch)
        elif "zoo" in words:
            verb, *rest = words[words.index("zoo") + 1 :]
            _verb(verb).make_context(verb, rest)


@pytest.mark.parametrize(("why_not", "block"), blocks("python"))
def test_a_python_block_works(why_not, block, tmp_path, monkeypatch):
    code = compile(block, "block", "exec")
    if not why_not:
        monkeypatch.chdir(tmp_path)
        exec(code, {})


@pytest.mark.parametrize("verb", VERBS)
def test_the_examples_in_the_help_have_options_that_exist(verb):
    command = _verb(verb)
    for line in re.findall(rf"^ +zoo {verb}\b(.*)$", command.help, re.MULTILINE):
        command.make_context(verb, shlex.split(line))


@pytest.mark.slow
def test_the_site_has_no_broken_link(tmp_path):
    pytest.importorskip("furo", reason="needs the extra docs")
    build = [sys.executable, "-m", "sphinx", "--quiet", "--fail-on-warning", "-c", "docs", ".", str(tmp_path)]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "docs" / "cli.html").exists()
