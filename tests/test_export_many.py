"""``zoo export`` of several models, engines and precisions, and what it adds to a bundle."""

from __future__ import annotations

import json

import onnxruntime
import pytest

from zoo.cli.app import run
from zoo.export import read_bundle
from zoo.registry.pick import list_models


@pytest.fixture
def no_data(monkeypatch, tmp_path):
    monkeypatch.delenv("ZOO_DATA", raising=False)
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def export(*arguments: str) -> list[str]:
    return ["export", *arguments, "--batch", "1", "--offline", "-q", "--json"]


def test_a_family_goes_on_past_a_failure_and_returns_the_worst_code(no_data, tmp_path, capsys):
    code = run(export("trades-s[35]", "-f", "onnx", "--precision", "fp32,int8", "-o", str(tmp_path / "out")))
    told = json.loads(capsys.readouterr().out)["exports"]
    assert [(one["name"], one["precision"], "error" in one) for one in told] == [
        ("trades-s3", "fp32", False),
        ("trades-s3", "int8", True),  # there is nothing to calibrate by
        ("trades-s5", "fp32", False),
        ("trades-s5", "int8", True),
    ]
    assert code == told[1]["error"]["exit_code"] == 4
    assert "int8 ranges are chosen by training images" in told[1]["error"]["message"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "trades-s3--onnxruntime-fp32",
        "trades-s5--onnxruntime-fp32",
    ]
    assert {one["verified"] for one in told if "error" not in one} == {"parity"}


def test_a_table_sums_up_for_people(no_data, tmp_path, capsys):
    assert run(["export", "trades-s3", "--precision", "fp32,fp16", "--batch", "1", "-o", str(tmp_path / "out")]) == 0
    table = capsys.readouterr().out
    assert "trades-s3  onnx    fp16       parity" in table


def test_patterns_are_of_names(no_data, tmp_path, capsys):
    assert run(export("nothing-*", "-o", str(tmp_path / "out"))) == 3
    assert "no model's name matches 'nothing-*'" in capsys.readouterr().err
    assert "trades-s3" in list_models("trades-s[35]")


def test_uint8_and_triton_are_added(no_data, tmp_path, capsys):
    out, models = tmp_path / "out", tmp_path / "models"
    assert run(export("trades-s3", "--uint8", "--triton", str(models), "-o", str(out))) == 0
    (bundle,) = out.iterdir()
    read_bundle(bundle)  # the graph is among the files that are checked
    (port,) = onnxruntime.InferenceSession(bundle / "model-uint8.onnx").get_inputs()
    assert (port.type, port.shape[1:]) == ("tensor(uint8)", [32, 32, 3])
    assert sorted(path.name for path in (models / "trades-s3").iterdir()) == ["1", "config.pbtxt", "labels.txt"]
