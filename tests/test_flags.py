from __future__ import annotations

import copy
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from test_registry import MODELS, registry_data
from torch import nn

from zoo.cli.app import run
from zoo.evaluation.flags import FLAGS, disagree, explained
from zoo.evaluation.protocols import PROTOCOLS, protocol
from zoo.evaluation.threat import LINF_8, ThreatModel
from zoo.registry.pick import list_models, pick
from zoo.system.errors import NothingMatches
from zoo.system.files import pretty
from zoo.system.notice import say_once
from zoo.train.teachers.teacher import held_out_accuracy
from zoo.weights.release import flags_of


def bits(right: float, n: int = 1000) -> np.ndarray:
    return np.arange(n) < round(right * n)


@pytest.mark.parametrize(
    ("pgd20", "other", "name", "expected"),
    [
        (0.60, 0.00, "autoattack", True),
        (0.43, 0.37, "autoattack", False),  # a robust net may lose so much
        (0.60, 0.30, "square", True),
        (0.50, 0.40, "cw20", False),  # ten points are not shown to be more than ten
        (0.50, 0.55, "fgsm", False),
        (0.50, 0.45, "fgsm", True),
        (0.50, 0.49, "fgsm", False),
        (0.60, 0.00, "clean", False),
        (0.60, 0.00, "noise", False),
    ],
)
def test_protocols_disagree_where_an_iterative_one_misses_what_another_finds(pgd20, other, name, expected):
    square = PROTOCOLS["cw20"].model_copy(update={"name": "square", "attack": "square"})
    asked = square if name == "square" else protocol(name)
    measured = [(protocol("pgd20"), bits(pgd20, 10_000)), (asked, bits(other))]
    measured[0][1][:1000] = bits(pgd20)
    assert disagree(measured) is disagree(reversed(measured)) is expected


def test_protocols_of_other_threat_models_and_splits_are_not_compared():
    weak = protocol("pgd20").under(ThreatModel(eps=1 / 255))
    strong = protocol("autoattack")
    assert not disagree([(weak, bits(0.6)), (strong, bits(0.0))])
    assert not disagree([(protocol("pgd20"), bits(0.6)), (strong.on("cifar100"), bits(0.0))])


def test_few_images_show_nothing():
    assert not disagree([(protocol("pgd20"), bits(0.6, 10)), (protocol("autoattack"), bits(0.4, 10))])


def test_an_entry_has_the_flags_of_its_results_and_of_their_disagreement():
    results = {"pgd20": {"flags": ["random"]}, "autoattack": {}}
    assert flags_of(results, {"pgd20": bits(0.4), "autoattack": bits(0.38)}, PROTOCOLS) == ["random"]
    assert flags_of(results, {"pgd20": bits(0.6), "autoattack": bits(0)}, PROTOCOLS) == ["random", "unreliable"]
    assert [line.split(":")[0] for line in explained(FLAGS)] == sorted(FLAGS)


@pytest.fixture
def flagged(tmp_path, monkeypatch) -> str:
    """A registry in which the best model is flagged; its name."""
    models = copy.deepcopy(MODELS)
    models["wide"]["flags"] = ["unreliable"]
    place = tmp_path / "registry.json"
    place.write_text(pretty(registry_data(models)))
    monkeypatch.setenv("ZOO_REGISTRY", str(place))
    return "wide"


def test_pick_passes_over_flagged_entries_unless_told(flagged, capsys):
    with pytest.warns(UserWarning, match="passed over because their accuracy may be too high: wide"):
        assert pick("1G").name == "middle"
    assert pick("1G", flagged=True).name == flagged
    assert flagged in list_models()
    assert run(["pick", "--flops", "1G", "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["flagged"] == [flagged]
    assert "passed over because their accuracy may be too high: wide" in err
    assert run(["pick", "--flops", "1G", "--flagged"]) == 0
    assert "\nwide ! " in capsys.readouterr().out


def test_where_only_flagged_entries_are_left_pick_says_so(flagged):
    with pytest.raises(NothingMatches, match=r"flagged.*: wide; --flagged takes them too"):
        pick("1G", family=MODELS[flagged]["family"], min_clean=MODELS[flagged]["results"]["clean"]["accuracy"]["value"])


def test_the_table_marks_flagged_entries_and_says_why(flagged, capsys):
    assert run(["list"]) == 0
    out = capsys.readouterr().out
    assert "wide !" in out
    assert "middle !" not in out
    assert "! means that the accuracy may be too high" in out
    assert FLAGS["unreliable"] in " ".join(out.split())


def test_a_flag_of_a_teacher_is_said_in_one_sentence(toy, capsys):
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 10), Rounded())
    found = SimpleNamespace(task=SimpleNamespace(threat=LINF_8), title="mine", sha256="0" * 64, load=lambda: net)
    say_once.cache_clear()
    held_out_accuracy(found, toy, 64)
    told = "zoo: the accuracy of 'mine' may be too high: coarse: its logits take few values"
    assert capsys.readouterr().err.startswith(told)


class Rounded(nn.Module):
    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return z.round()
