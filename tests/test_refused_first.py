"""What can be refused is refused before a model is loaded or an image is read, by every verb."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from zoo.cli.app import run
from zoo.datasets.cifar10 import CIFAR10
from zoo.export import exporter
from zoo.registry.file import info
from zoo.system.errors import DataNotFound
from zoo.train.methods import METHODS
from zoo.weights.folder import ModelConfig, ModelFolder

EXPORTS = (["export", "trades-s3"], ["pick", "--flops", "15M", "--export", "onnx"])
EXPORTS += ([*EXPORTS[1], "--dry-run"],)
FAMILY = ["export", "trades-s[35]"]


@pytest.fixture(autouse=True)
def nothing_is_loaded(monkeypatch, tmp_path, found) -> None:
    monkeypatch.chdir(tmp_path)
    for place in ("load", "tensors"):
        monkeypatch.setattr(f"zoo.weights.{place}.read_tensors", lambda path: pytest.fail(f"{path} was opened"))
    monkeypatch.setattr(type(CIFAR10), "load", lambda *_, **__: pytest.fail("the data set was loaded"))


def refused(capsys, arguments, code: int, told: str) -> None:
    assert run([*arguments, "--json", "--offline", "-q"]) == code
    assert told in json.loads(capsys.readouterr().out)["error"]["message"]
    assert not Path("out").exists()


@pytest.mark.parametrize("verb", EXPORTS, ids=" ".join)
@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--verify", "fully"], "one of none, parity, clean, attacked, not 'fully'"),
        (["--precision", "int4"], "one of fp32, fp16, int8, not 'int4'"),
        (["--batch", "1,5000"], "whole numbers from 1 to 4096"),
        (["--batch", "1,"], "--batch takes positive integers"),
    ],
    ids=lambda one: " ".join(one) if isinstance(one, list) else "",
)
def test_malformed_options_of_an_export(verb, options, told, capsys):
    refused(capsys, [*verb, *options], 2, told)


def test_a_gpu_that_is_not_there(monkeypatch, capsys):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    refused(capsys, ["eval", "trades-s3", "--gpu"], 2, "PyTorch finds no CUDA GPU here")


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["export", "trades-s3", "--precision", "fp32,"], 2, "--precision takes a list"),
        (["export", "trades-s3", "-f", ",onnx"], 2, "--format takes a list"),
        (["export", "trades-s3", "--margin", "-5"], 2, "a number of points above 0 and below 100, not -5"),
        (["export", "trades-s3", "--margin", "100"], 2, "a number of points above 0 and below 100, not 100"),
        (["verify", "nowhere", "--margin", "0"], 2, "a number of points above 0 and below 100, not 0"),
        (["export", "trades-s3", "--seed", "-1"], 2, "greater than or equal to 0"),
        (["export", "trades-s3", "--tolerance", "-1"], 2, "a tolerance is 0 or more"),
        (["export", "trades-s3", "--min-robust", "130%"], 2, "'130%' is not an accuracy"),
        (["export", "trades-s3", "-n", "0"], 2, "1 image or more, not 0"),
        (["export", "trades-s3", "--calibration", "8"], 2, "fp32 needs no calibration"),
        (["export", "trades-s3", "--keep-robust", "0.5"], 2, "for int8 graphs, not for fp32"),
        (["export", "trades-s3", "--precision", "int8", "--keep-robust", "-1"], 2, "not -0.01"),
        (["export", "trades-s3", "-f", "pte", "--precision", "int8", "--portable-int8"], 2, "a quantiser of its own"),
        (["export", "trades-s3", "--margin", "nan"], 2, "a number of points above 0 and below 100, not nan"),
        (["export", "trades-s3", "-f", "onxx"], 2, "did you mean 'onnx'"),
        (["export", "trades-s3", "--verify", "parity", "--margin", "2"], 2, "--margin (margin=) is for level 'clean'"),
        (["export", "trades-s3", "--verify", "parity", "--square", "9"], 2, "--square (queries=) is for level"),
        (["export", "trades-s3", "--verify", "clean", "--min-robust", "9%"], 2, "asked for: verify 'attacked'"),
        (["export", "trades-s3", "--verify", "none", "--min-robust", "9%"], 2, "--min-robust (min_robust=) is for"),
        (["export", "trades-s3", "-O", "threads=1", "-O", "threads=2"], 2, "option 'threads' is given twice"),
        (["export", "trades-s3", "-O", "provider"], 2, "KEY=VALUE, such as provider=cuda, not 'provider'"),
        (["export", "trades-s3", "-O", "providers=cpu"], 2, "no option 'providers'; did you mean 'provider'"),
        (["export", "trades-s3", "-O", "provider=tpu"], 2, "or 'tensorrt-rtx', not 'tpu'"),
        (["export", "trades-s3", "-f", "pte", "--triton", "models"], 2, "Triton has no backend for executorch"),
        ([*FAMILY, "--precision", "fp32,fp16", "--triton", "models"], 2, "--triton takes one engine of a model"),
        ([*FAMILY, "--precision", "fp32,int4"], 2, "not 'int4'"),
        ([*FAMILY, "--verify", "fully"], 2, "not 'fully'"),
        (["export", "no-such-model"], 3, "no model is called"),
        (["verify", "nowhere"], 2, "not a bundle"),
        (["verify", "nowhere", "--verify", "fully"], 2, "not 'fully'"),
        (["bench", "trades-s3", "--peers", "pytorch,"], 2, "--peers takes a list"),
        (["bench", "trades-s3", "--batch", "5000"], 2, "whole numbers from 1 to 4096"),
        (["eval", "trades-s3", "-p", "pgd21"], 2, "no protocol is called 'pgd21'"),
        (["eval", "trades-s3", "--threat", "l3 1"], 2, "is not a threat model"),
        (["eval", "trades-s3", "--write", "-n", "5"], 2, "--write stores whole protocols only"),
        (["sweep", "trades-s3", "--attack", "clean"], 2, "a sweep needs attacks"),
        (["sweep", "trades-s3", "--attack", "fgsm,pgd20-step0.003"], 2, "leave out pgd20-step0.003"),
        (["sweep", "trades-s3", "--attack", "fgsm,"], 2, "--attack takes a list"),
        (["sweep", "trades-s3", "--out", "no/such/folder/x.json"], 2, "--out takes a file"),
        (["train", "trades-s7", "--set", "start=no-such-model"], 3, "no model is called"),
        (["train", "rnascl-s7-wrt34-2", "--set", "teacher.name=no-such-model"], 3, "no model is called"),
        (
            ["train", "rnascl-l-wrt34-10"],
            3,
            "'trades-wrn34-10' is a recipe and no released model: make it with `zoo train trades-wrn34-10`, "
            "then --set teacher.name=runs/trades-wrn34-10/model",
        ),
        (
            ["train", "trades-s7", "--set", "start=rnascl-l-wrt34-10"],
            3,
            "make it with `zoo train rnascl-l-wrt34-10`, then --set start=runs/rnascl-l-wrt34-10/trades/model",
        ),
        (["train", "ard-mobilenetv2"], 4, "'runs/trades-wrn34-10/model': make it with `zoo train trades-wrn34-10`"),
        (["train", "ard-s7", "--set", "teacher.name=runs/mine/model"], 4, "no folder 'runs/mine/model'"),
        (["train", "proard-tuned", "--set", "start=hf-hub:org/none", "--offline"], 4, "the network must not be used"),
        (["export", "trades-s3", "--tolerance", "inf"], 2, "a tolerance is 0 or more, and finite, not inf"),
        (["export", "trades-s3", "-n", "-5"], 2, "1 image or more, not -5"),
        (["export", "trades-s3", "--seed", str(2**70)], 2, "a seed is 0 or more"),
        (["search", "proard-tiny", "--seed", "-1"], 2, "--seed"),
        (["eval", "trades-s3", "--replace"], 2, "--replace is for --write"),
    ],
    ids=lambda one: " ".join(one) if isinstance(one, list) else "",
)
def test_requests_that_cannot_be_met(arguments, code, told, capsys):
    refused(capsys, arguments, code, told)


TAUGHT = """
name = "taught"
description = "a student"
family = "try"
method.name = "{method}"
teacher.name = "{teacher}"
train.epochs = 8
{attack}

[arch]
arch = "staged"
widths = [[4]]
resolutions = [16]
"""


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"classes": 7}, "the model has 7 classes, but the student has 10"),
        ({"image_size": 34}, "the model takes images of 34 pixels, but the student those of 32"),
    ],
    ids=lambda one: "".join(one) if isinstance(one, dict) else "",
)
@pytest.mark.parametrize("method", [*(name for name, one in METHODS.items() if one.takes_teacher), "a dynamic net"])
def test_a_teacher_of_other_classes_or_images(method, changes, told, capsys, tmp_path):
    teacher = tmp_path / "teacher"
    ModelFolder(teacher).write(ModelConfig(spec=info("trades-s3").spec | changes))
    ModelFolder(teacher).weights.write_bytes(b"")
    recipe = tmp_path / "taught.toml"
    attack = "attack.step = 0.03" if method in METHODS and METHODS[method]().attacks else ""  # for one step
    recipe.write_text(TAUGHT.format(method=method, teacher=teacher, attack=attack))
    asked = ["proard-tiny", "--set", f"teacher.name={teacher}"] if method == "a dynamic net" else [str(recipe)]
    refused(capsys, ["train", *asked], 2, f"the teacher '{teacher}' does not fit: {told}")


def test_a_teacher_of_as_many_other_classes(capsys, tmp_path):
    teacher, (first, second, *others) = tmp_path / "teacher", CIFAR10.classes
    ModelFolder(teacher).write(ModelConfig(spec=info("trades-s3").spec, classes=(second, first, *others)))
    ModelFolder(teacher).weights.write_bytes(b"")
    (tmp_path / "taught.toml").write_text(TAUGHT.format(method="kd", teacher=teacher, attack=""))
    told = f"does not fit: its classes are others or in another order, such as '{second}' in place of '{first}'"
    refused(capsys, ["train", "taught.toml"], 2, told)


def test_a_bench_of_what_is_not_there(capsys, found, monkeypatch):
    monkeypatch.delenv("ZOO_DATA", raising=False)
    found(DataNotFound("CIFAR-10 is not here"))
    refused(capsys, ["bench", "trades-s3", "no-such-model"], 3, "no model is called")
    refused(capsys, ["bench", "trades-s3", "./nowhere"], 2, "not a bundle")


@pytest.mark.parametrize("verb", EXPORTS, ids=" ".join)
def test_a_bundle_that_is_there(verb, capsys, tmp_path):
    run(["pick", "--flops", "15M", "--json"])
    picked = json.loads(capsys.readouterr().out)["picked"][0]["name"]
    for name in ("trades-s3", picked):
        (tmp_path / "bundles" / f"{name}--onnxruntime-fp32").mkdir(parents=True)
    refused(capsys, verb, 2, "exists already: pass --force")
    refused(capsys, [*verb, "--force"], 2, "is not a bundle, and will not be replaced")


@pytest.mark.parametrize("place", ["taken", "taken/deeper"])
@pytest.mark.parametrize(
    "verb",
    [
        *([*verb, "--verify", "none", "--out"] for verb in EXPORTS),
        ["export", "trades-s3", "--verify", "none", "--triton"],
        ["train", "trades-s7", "--out"],
        ["search", "proard-tiny", "--out"],
    ],
    ids=" ".join,
)
def test_a_folder_that_is_a_file(verb, place, capsys):
    Path("taken").touch()
    refused(capsys, [*verb, place], 2, "'taken' is a file, not a folder: choose another folder")


def test_a_model_that_the_triton_repository_has(capsys, tmp_path):
    (tmp_path / "models" / "trades-s3").mkdir(parents=True)
    refused(capsys, ["export", "trades-s3", "--verify", "none", "--triton", "models"], 2, "has a 'trades-s3' already")


def test_a_run_or_a_model_that_is_there(capsys, tmp_path):
    (tmp_path / "checkpoint.pt").write_bytes(b"")
    refused(capsys, ["train", "trades-s7", "--out", str(tmp_path)], 2, "already holds a run")
    (tmp_path / "config.json").write_text("{}")
    refused(capsys, ["search", "proard-tiny", "--out", str(tmp_path)], 2, "already holds a model")


@pytest.mark.parametrize(
    "arguments",
    [
        *([*verb, "--verify", level] for verb in EXPORTS for level in ("clean", "attacked")),
        *([*verb, "--precision", "int8", "--verify", "parity"] for verb in EXPORTS),
        ["eval", "trades-s3"],
        ["sweep", "trades-s3"],
        ["search", "proard-tiny", "--out", "out"],
        ["search", "proard-tiny", "--measure", "1"],
        ["train", "trades-s7"],
    ],
    ids=" ".join,
)
def test_data_that_are_missing(arguments, capsys, found):
    found(DataNotFound("CIFAR-10 is not here"))
    refused(capsys, arguments, 4, "CIFAR-10 is not here")


def test_several_exports_are_checked_before_the_first_is_built(capsys, tmp_path, monkeypatch):
    (tmp_path / "bundles" / "trades-s5--onnxruntime-fp32").mkdir(parents=True)
    check, steps = exporter.job_of, []

    def checked(name, options, **rest):
        steps.append(f"check {name} {options.precision}")
        return check(name, options, **rest)

    def built(job, progress, examples):
        steps.append(f"build {job.known.name} {job.options.precision}")
        raise DataNotFound("enough")

    monkeypatch.setattr(exporter, "job_of", checked)
    monkeypatch.setattr(exporter.Job, "run", built)
    assert run([*FAMILY, "--precision", "fp32,fp16", "--verify", "none", "--json", "-q"]) == 4
    assert [step.split()[0] for step in steps] == 4 * ["check"] + 3 * ["build"]
    assert "build trades-s5 fp32" not in steps
    told = json.loads(capsys.readouterr().out)["exports"]
    assert [one["error"]["exit_code"] for one in told] == [4, 4, 2, 4]
