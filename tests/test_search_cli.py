"""``zoo search``: what a user types, and what comes out."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from micro import micro
from test_subnet import left

from zoo.cli import search
from zoo.cli.app import run
from zoo.system.files import sha256_file
from zoo.train.proard import measuring, predictor
from zoo.train.proard.labelled import Labelling, Labels
from zoo.train.spaces import SPACES
from zoo.weights.folder import PREDICTOR
from zoo.weights.load import load


@pytest.fixture(autouse=True)
def space(monkeypatch):
    monkeypatch.setitem(SPACES, "micro", micro)
    monkeypatch.setenv("COLUMNS", "100")
    return micro()


LABELLING = Labelling(images=500, steps=7, calibration=256)


@pytest.fixture
def net(tmp_path, space):
    """A dynamic net's folder, with a predictor that takes larger for better."""
    folder = left(tmp_path / "model", seed=0)
    genes = measuring.drawn(space, 40, 0)
    share = space.macs(genes) / space.macs(space.largest)[0]
    sha256 = sha256_file(folder / "model.safetensors")
    labels = Labels(genes, 0.3 + 0.5 * share, 0.2 + 0.3 * share, 1000, sha256)
    replace(predictor.fit(space, labels, members=2), labelling=LABELLING).save(folder / PREDICTOR)
    return str(folder)


@pytest.fixture
def call(capsys):
    def called(*arguments: str):
        capsys.readouterr()
        code = run(["search", *arguments])
        said = capsys.readouterr()
        return code, said.out, said.err

    return called


def test_a_front_within_the_budget_and_its_best(net, call, space):
    code, out, _ = call(net, "--flops", "150k", "--json", "--seed", "3")
    assert code == 0
    assert call(net, "--flops", "150k", "--json", "--seed", "3")[:2] == (0, out)
    result = json.loads(out)
    assert result["space"] == "micro"
    assert result["sub_nets"] == space.size()
    macs = [one["macs"] for one in result["front"]]
    assert macs == sorted(macs)
    assert macs[-1] <= 150_000
    assert result["best"] == max(result["front"], key=lambda one: one["robust"]["predicted"])
    for one in result["front"]:
        assert space.macs(space.genes_of(one["values"])[None])[0] == one["macs"]


def test_a_table_for_people(net, call):
    code, out, err = call(net, "-n", "3")
    assert code == 0, err
    assert "M MACs" in out
    assert out.count("<- best") == 1
    assert len([line for line in out.splitlines() if "x" in line and "±" in line]) >= 3


def test_the_best_is_cut_out_and_is_a_model(net, call, space, toy, tmp_path, found):
    found(toy)
    code, out, _ = call(net, "--flops", "150k", "--out", str(tmp_path / "cut"), "--json")
    assert code == 0
    result = json.loads(out)
    model = load(f"local-dir:{result['cut']}")
    assert model.spec == space.spec(space.genes_of(result["best"]["values"]))
    assert json.loads((tmp_path / "cut" / "config.json").read_text())["name"] == "proard-micro@150k"
    again = call(net, "--flops", "150k", "--out", str(tmp_path / "cut"))
    assert again[0] == 2
    assert "already holds a model" in again[2]


def test_measured_sub_nets_are_ranked_by_what_was_measured(net, call, toy, found, monkeypatch):
    found(toy)
    measurements, asked = iter(2 * [(0.5, 0.30), (0.4, 0.35), (0.6, 0.20)]), []

    def measured(net, genes, dataset, labelling):
        asked.append(labelling)
        return next(measurements)

    monkeypatch.setattr(measuring, "measured", measured)
    assert "PGD-7 %" in call(net, "--measure", "3")[1]
    code, out, _ = call(net, "--measure", "3", "--json")
    assert code == 0
    assert asked == 6 * [LABELLING]  # as the sub-nets were that the predictor learned from
    assert json.loads(out)["predicted_for"] == json.loads(out)["measured_on"] == LABELLING._asdict()
    best = json.loads(out)["best"]
    assert (best["clean"]["measured"], best["robust"]["measured"]) == (0.4, 0.35)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--flops", "1k"], 3, "its sub-nets have"),
        (["--flops", "1k", "--latency-ms", "1"], 3, "its sub-nets have"),  # before anything is timed
        (["--flops", "much"], 2, "is not a count"),
        (["--min-robust", "90%"], 3, "robust accuracy"),
        (["--latency-ms", "-1"], 2, "positive"),
    ],
)
def test_a_budget_that_cannot_be_kept_is_refused(net, call, arguments, code, message):
    got, out, err = call(net, *arguments)
    assert (got, out) == (code, "")
    assert message in err


def test_a_looser_budget_is_no_limit(net, call, space, monkeypatch):
    monkeypatch.setattr(search, "_latencies", lambda space, output: lambda genes: space.macs(genes) / 1e6)
    code, out, _ = call(net, "--json")
    assert code == 0
    best, largest = json.loads(out)["best"], space.macs(space.largest)[0]
    assert best["macs"] == largest  # by the predictor, larger is better
    code, out, err = call(net, "--flops", "1G", "--json")
    assert (code, json.loads(out)["best"]) == (0, best)
    assert err.count("1.0G MACs is no limit: the largest sub-net of space micro has") == 1
    code, out, err = call(net, "--latency-ms", "100", "--json")
    assert (code, json.loads(out)["best"]["macs"]) == (0, largest)
    assert "100 ms is no limit" in err


def test_a_net_that_cannot_be_searched_is_refused(net, call, tmp_path):
    model = tmp_path / "model"
    (model / "model.safetensors").write_bytes((left(tmp_path / "other", seed=1) / "model.safetensors").read_bytes())
    code, _, err = call(net)
    assert (code, "fitted to other weights" in err) == (2, True)
    (model / PREDICTOR).unlink()
    code, _, err = call(net)
    assert (code, "has no predictor" in err) == (4, True)
    code, _, err = call("nfgsm-w15")
    assert (code, "not a dynamic net" in err) == (2, True)
