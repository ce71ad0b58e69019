"""The phases of a recipe: how they are read, and what one leaves for the next."""

from __future__ import annotations

import json
import os
import shutil
import signal
from dataclasses import replace

import pytest
import torch

from zoo import info
from zoo.datasets.cifar10 import CIFAR10
from zoo.evaluation.statistics import Accuracy
from zoo.models import build
from zoo.registry.entry import Registry
from zoo.specs import parse_spec
from zoo.system.errors import IntegrityError, UsageError
from zoo.system.notice import say_once
from zoo.train import pipeline
from zoo.train.recipes.phases import load_phases, load_recipe
from zoo.train.rnascl.search import Searcher
from zoo.train.run.loop import Interrupted
from zoo.train.run.trainer import Trainer
from zoo.train.spaces.rnascl import SPACES, SearchSpace
from zoo.train.teachers import teacher
from zoo.train.teachers.hooks import conv_names
from zoo.weights.load import load, weights_sha256
from zoo.weights.tensors import save_weights

TINY = SearchSpace("tiny", (2, 1), ((8, 6, 2), (12, 4)), (16, 8), stem_resolution=16, stem=4)

PHASED = """
name = "rnascl-tiny"
description = "for tests"
family = "rnascl"

[search]
space = "tiny"
budget = "180k"
lr = 0.1

[teacher]
name = "{teacher}"

[method]
name = "rnascl"
hard = "natural"
tutors = "searched"
map_size = 8

[train]
epochs = 1
batch_size = 50
images = 250
compile = false
precision = "fp32"

[ema]
recalibrate = 100
decay = 0.9

[guard]
images = 50
steps = 1

[phase.search]
"train.epochs" = 2

[phase.train]

[phase.trades]
name = "rnascl-tiny-trades"
"method.hard" = "trades"
"attack.step" = 0.02

[phase.longer]
name = "rnascl-tiny-longer"

[preset.smoke]
"train.images" = 100
"""


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    monkeypatch.setitem(SPACES, "tiny", TINY)


@pytest.fixture
def phased(tmp_path, teacher_folder):
    path = tmp_path / "rnascl-tiny.toml"
    path.write_text(PHASED.format(teacher=teacher_folder))
    return path


def facts(folder) -> dict:
    return json.loads((folder / "config.json").read_text())


# -- reading -----------------------------------------------------------------------------------------------------


def test_a_phase_changes_what_it_names_and_shares_the_rest(phased):
    phases = load_phases(phased)
    assert list(phases) == ["search", "train", "trades", "longer"]
    assert [one.train.epochs for one in phases.values()] == [2, 1, 1, 1]
    assert [one.method.hard for one in phases.values()] == ["natural", "natural", "trades", "natural"]
    assert [one.name for one in phases.values()] == [
        "rnascl-tiny",
        "rnascl-tiny",
        "rnascl-tiny-trades",
        "rnascl-tiny-longer",
    ]
    assert [one.search is not None for one in phases.values()] == [True, False, False, False]
    assert all(one.arch == TINY.largest for one in phases.values())
    assert phases["search"].search.budget == 180_000


def test_presets_and_overrides_reach_all_phases_and_win_over_what_a_phase_says(phased):
    phases = load_phases(phased, preset="smoke", overrides=["train.epochs=3"])
    assert {one.train.images for one in phases.values()} == {100}
    assert {one.train.epochs for one in phases.values()} == {3}


def test_a_recipe_without_phases_is_one_phase_and_one_with_phases_is_no_single_recipe(phased):
    assert load_phases("trades-s7") == {"train": load_recipe("trades-s7")}
    with pytest.raises(UsageError, match="has the phases search, train, trades, longer") as caught:
        load_recipe(phased)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("search.space=s77", "no search space is called 's77'; did you mean 's7'"),
        ("search.budget=50k", "no network within 50.0k MACs: its networks have 59.9k to 304.2k"),
        ("search.budget=many", "search.budget"),
        ("search.tau=[0, 1]", "search.tau"),
        ("search.latensy=1", "did you mean 'latency'"),
        ("method.hard=mart", r"method\.hard"),
        ("method.hard=trades", r"a search needs method.name = 'rnascl' with hard = 'natural'"),
        ("method.tutors=deep", r"method\.tutors"),
        ("method.gama=1", "did you mean 'gamma'"),
        ("phase.trades=1", "names no key of a phase"),
        ("phase.trade.train.epochs=1", "names no key of a phase"),
    ],
)
def test_a_bad_value_is_one_sentence_that_names_it(phased, override, says):
    with pytest.raises(UsageError, match=says) as caught:
        load_phases(phased, overrides=[override])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("written", "instead", "says"),
    [
        ('[phase.search]\n"train.epochs" = 2\n\n[phase.train]', "[phase.train]\n\n[phase.search]", "before 'train'"),
        ('"method.hard" = "trades"', 'method.hard = "trades"', r'single keys, in quotes: "method.KEY" = VALUE'),
        ("[phase.search]", "[phase.serach]", r"add a table \[phase.search\]"),
    ],
)
def test_a_file_whose_phases_are_wrong_is_refused(phased, written, instead, says):
    phased.write_text(phased.read_text().replace(written, instead))
    with pytest.raises(UsageError, match=says):
        load_phases(phased)


# -- running -----------------------------------------------------------------------------------------------------


def test_every_phase_trains_what_the_search_found_from_where_the_one_before_left_it(phased, toy, tmp_path, monkeypatch):
    started: dict[str, torch.Tensor] = {}
    whole_init = Trainer.__init__

    def noting(self, *args, phase, **options):
        whole_init(self, *args, phase=phase, **options)
        started[phase] = self.net.features[1].conv.weight.detach().clone()

    monkeypatch.setattr(Trainer, "__init__", noting)
    epochs: list[tuple[str, float]] = []
    left = pipeline.run(load_phases(phased), toy, tmp_path / "run", report=lambda p, m: epochs.append((p, m["epoch"])))
    assert list(left) == ["search", "train", "trades", "longer"]
    assert epochs == [("search", 1), ("search", 2), ("train", 1), ("trades", 1), ("longer", 1)]

    found = json.loads(left["search"].read_text())
    for phase, name in (("train", "tiny"), ("trades", "tiny-trades"), ("longer", "tiny-longer")):
        config = facts(left[phase])
        assert config["name"] == f"rnascl-{name}"
        assert config["spec"] == found["spec"]
        assert config["tutors"] == found["tutors"]
        assert config["train"]["teacher"]["weights_sha256"]
        assert set(config["train"]["teacher"]["accuracy"]) == {"validation-clean", "validation-pgd20"}
        net = load(f"local-dir:{left[phase]}")
        assert conv_names(net) == list(found["tutors"])
    assert torch.equal(started["trades"], load(f"local-dir:{left['train']}").features[1].conv.weight)
    assert torch.equal(started["longer"], load(f"local-dir:{left['trades']}").features[1].conv.weight)

    config = facts(left["longer"])["train"]
    assert [(one["name"], one["epochs"], one["images_seen"]) for one in config["phases"]] == [
        ("search", 2, 500),
        ("train", 1, 250),
        ("trades", 1, 250),
        ("longer", 1, 250),
    ]
    assert (config["epochs"], config["images_seen"]) == (5, 1250)
    assert config["wall_s"] == pytest.approx(sum(one["wall_s"] for one in config["phases"]), abs=0.01)
    assert [one["name"] for one in facts(left["train"])["train"]["phases"]] == ["search", "train"]


def test_a_run_that_was_stopped_in_its_second_phase_resumes_there_to_the_same_weights(
    phased, toy, tmp_path, monkeypatch
):
    monkeypatch.setattr(
        "zoo.train.teachers.teacher.record", lambda name, dataset: {"name": name}
    )  # PGD-20 of 1,000 images
    phases = {name: one for name, one in load_phases(phased).items() if name != "longer"}
    whole = pipeline.run(phases, toy, tmp_path / "whole")

    step = Trainer.train_step

    def stopping(self):
        if (self.phase, self.position.step) == ("train", 2):
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_step", stopping)
        with pytest.raises(Interrupted, match="step 3 of 5"):
            pipeline.run(phases, toy, tmp_path / "parts")
    assert not (tmp_path / "parts" / "trades").exists()
    with pytest.raises(UsageError, match="--resume"):
        pipeline.run(phases, toy, tmp_path / "parts")

    trained: list[str] = []
    parts = pipeline.run(phases, toy, tmp_path / "parts", resume=True, report=lambda phase, m: trained.append(phase))
    assert trained == ["train", "trades"]  # the finished search is not run again
    for phase in ("train", "trades"):
        assert (whole[phase] / "model.safetensors").read_bytes() == (parts[phase] / "model.safetensors").read_bytes()
    assert json.loads(whole["search"].read_text())["tutors"] == json.loads(parts["search"].read_text())["tutors"]


def test_what_a_time_budget_ended_stays_ended_when_the_run_is_resumed_without_one(phased, toy, tmp_path, monkeypatch):
    monkeypatch.setattr("zoo.train.teachers.teacher.record", lambda name, dataset: {"name": name})
    phases = {name: one for name, one in load_phases(phased).items() if name in ("search", "train")}
    epochs: list[float] = []
    left = pipeline.run(phases, toy, tmp_path, time_budget=1e-3, report=lambda phase, m: epochs.append(m["epoch"]))
    assert epochs == [0.2, 0.2]  # a step of each
    found = left["search"].read_text()
    again = pipeline.run(phases, toy, tmp_path, resume=True, report=lambda phase, m: pytest.fail("trained again"))
    assert again["search"].read_text() == found


LATER = """
name = "two"
description = "for tests"
family = "rnascl"

[arch]
arch = "staged"
widths = [[4], [6]]
resolutions = [16, 8]

[train]
epochs = 1
batch_size = 50
images = 250

[phase.first]
method = "natural"

[phase.second]
method = "rrm"
teacher = "{teacher}"
"method.student_layer" = "{layer}"
"""


def test_what_a_later_phase_cannot_do_is_refused_before_the_first(toy, teacher_folder, tmp_path, monkeypatch):
    def phases(teacher, layer="features.1"):
        (tmp_path / "two.toml").write_text(LATER.format(teacher=teacher, layer=layer))
        return load_phases(tmp_path / "two.toml")

    monkeypatch.setattr(pipeline, "fit", lambda *_, **__: pytest.fail("the first phase was trained"))
    with pytest.raises(UsageError, match=r"the student has no layer 'features.7'; did you mean"):
        pipeline.run(phases(teacher_folder, "features.7"), toy, tmp_path / "run")
    other = tmp_path / "other"
    shutil.copytree(teacher_folder, other)
    save_weights(build(parse_spec(info("trades-s3").spec)).state_dict(), other / "model.safetensors")
    with pytest.raises(IntegrityError):
        pipeline.run(phases(other), toy, tmp_path / "run")
    renamed = replace(toy, classes=toy.classes[::-1])
    with pytest.raises(UsageError, match=r"its classes are others or in another order, such as 'airplane' in place"):
        pipeline.run(phases("trades-s3"), renamed, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    with pytest.raises(pytest.fail.Exception, match="the first phase"):
        pipeline.run(phases(teacher_folder), toy, tmp_path / "run")


def test_two_runs_in_one_folder_are_refused(phased, toy, tmp_path, monkeypatch):
    def fitted(recipe, dataset, out, **options):
        with pytest.raises(UsageError, match=f"another process trains in '{tmp_path}'"):
            pipeline.run(phases, toy, tmp_path, resume=True)
        raise KeyboardInterrupt

    phases = load_phases(phased)
    monkeypatch.setattr(pipeline, "fit", fitted)
    for _ in range(2):  # the folder is free again after the first
        with pytest.raises(KeyboardInterrupt):
            pipeline.run(phases, toy, tmp_path)


def test_a_time_budget_is_shared_out_by_the_passes_of_each_phase(phased, toy, tmp_path, monkeypatch):
    shares: dict[str, float] = {}

    def fitted(recipe, dataset, out, *, phase, time_budget, **options):
        shares[phase] = time_budget
        raise KeyboardInterrupt

    phases = load_phases(phased)
    monkeypatch.setattr(pipeline, "fit", fitted)
    with pytest.raises(KeyboardInterrupt):
        pipeline.run(phases, toy, tmp_path, time_budget=60.0)
    assert shares["search"] == pytest.approx(60 * 2 * 3 / (2 * 3 + 3 + 8 + 3))
    assert pipeline._per_image(load_recipe("nfgsm-w15"), {}) == 5  # one to the input, of the attack, costs two as well


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"features.0.conv": None}, "no tutor for 'features.0.conv'"),
        ({"features.9.conv": "features.0.conv"}, "layers that the student does not have"),
        ({"features.1.conv": "features.7.conv"}, "no convolution 'features.7.conv'; did you mean"),
    ],
)
def test_tutors_by_name_must_name_one_layer_of_the_teacher_for_each_of_the_student(phased, toy, tmp_path, change, says):
    train = load_phases(phased)["train"]
    tutors = {f"features.{i}.conv": "features.2.conv" for i in range(4)} | change
    tutors = {layer: tutor for layer, tutor in tutors.items() if tutor}
    train = train.model_copy(update={"method": train.method.model_copy(update={"tutors": tutors})})
    with pytest.raises(UsageError, match=says):
        Trainer(train, toy)


def test_tutors_of_equal_depth_rise_with_the_layer_and_random_ones_follow_the_seed(phased, toy):
    phases = load_phases(phased, overrides=["method.tutors=depth"])
    tutors = Trainer(phases["train"], toy).parts.tutors
    assert list(tutors.values()) == [f"features.{i}.conv" for i in range(4)]  # as many layers as the student has
    drawn = [
        Trainer(load_phases(phased, overrides=["method.tutors=random", f"train.seed={seed}"])["train"], toy)
        for seed in (1, 1, 2)
    ]
    one, again, other = (trainer.parts.tutors for trainer in drawn)
    assert one == again != other


@pytest.mark.parametrize("gamma", [0, 1])
def test_a_step_on_cached_answers_has_the_loss_of_one_that_asks_the_teacher(phased, toy, tmp_path, monkeypatch, gamma):
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    settings = [f"method.gamma={gamma}", "method.tutors=depth", "teacher.versions=2"]
    losses = []
    for _ in ("written", "found again", "asked"):
        trainer = Trainer(load_phases(phased, overrides=settings)["train"], toy)
        if len(losses) == 2:
            trainer.teacher.cached = None
        trainer.net.train()
        losses.append(trainer.train_step().item())
    assert losses[0] == losses[1] == pytest.approx(losses[2], rel=1e-3)  # kept in half precision
    assert len(list((tmp_path / "cache").glob("lessons-*"))) == 1


def test_a_teacher_of_other_images_or_classes_is_refused(phased, toy, teacher_folder, tmp_path):
    spec = json.loads((teacher_folder / "config.json").read_text())["spec"] | {"classes": 7}
    save_weights(build(parse_spec(spec)).state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"spec": spec}))
    phases = load_phases(phased, overrides=[f"teacher.name={tmp_path}", "method.tutors=depth"])
    for phase, kind in (("search", Searcher), ("train", Trainer)):
        with pytest.raises(UsageError, match=r"the teacher '.*' does not fit: the model has 7 classes"):
            kind(phases[phase], toy)


def test_the_record_of_a_teacher_describes_the_weights_that_are_loaded(toy, teacher_folder, tmp_path, monkeypatch):
    """Also where a folder has a name of the registry, and where the registry lacks one of the two accuracies."""
    monkeypatch.setattr(teacher, "held_out_accuracy", lambda found, dataset: {"clean": {"value": 1.0}})
    monkeypatch.chdir(tmp_path)
    entry = info("trades-s7")
    assert teacher.record("trades-s7", toy)["accuracy"]["pgd20"]["n"] == entry.results["pgd20"].accuracy.n
    (tmp_path / "trades-s7").symlink_to(teacher_folder)
    recorded = teacher.record("trades-s7", toy)
    assert recorded["weights_sha256"] == weights_sha256(load(f"local-dir:{teacher_folder}"))
    assert recorded["accuracy"] == {"validation-clean": {"value": 1.0}}

    (tmp_path / "trades-s7").unlink()
    partly = replace(entry, results={"clean": entry.results["clean"]})
    monkeypatch.setattr("zoo.registry.file.load_registry", lambda: Registry({}, {}, {"trades-s7": partly}))
    assert set(teacher.record("trades-s7", toy)["accuracy"]) == {"validation-clean"}


@pytest.mark.parametrize("pgd", [10, 60, 80, None])  # right of 500 by held_out.json; None: it is measured
def test_a_teacher_that_is_not_robust_is_said_once_with_the_number(phased, toy, teacher_folder, tmp_path, capfd, pgd):
    say_once.cache_clear()
    folder = shutil.copytree(teacher_folder, tmp_path / "mine")
    if pgd is not None:
        bits = {"clean": [True] * 500, "pgd20": [True] * pgd + [False] * (500 - pgd)}
        accuracy = {key: Accuracy.of(one).to_dict() for key, one in bits.items()}
        (folder / "held_out.json").write_text(json.dumps(accuracy))
    phases = load_phases(phased, overrides=[f"teacher.name={folder}", "method.tutors=depth"])
    recorded = [Trainer(phases[phase], toy).teacher_record for phase in ("train", "trades")]
    assert recorded[0] == recorded[1]
    found = recorded[0]["accuracy"]["validation-pgd20"]
    assert found["n"] == (len(toy.split("validation")) if pgd is None else 500)
    said = capfd.readouterr().err.count(
        f"the teacher '{folder}' is not shown to be robust: its accuracy is {found['value']:.1%} under validation-pgd20"
    )
    assert said == int(found["ci95"][0] <= 1 / 10)  # 60 of 500 are 12.0 (9.4 to 15.1) %


@pytest.mark.parametrize(("classes", "right", "robust"), [(100, 20, False), (100, 60, True), (9, 60, False)])  # of 500
def test_chance_is_that_of_the_teachers_own_classes(classes, right, robust, toy, teacher_folder, tmp_path, capfd):
    say_once.cache_clear()
    folder = shutil.copytree(teacher_folder, tmp_path / "mine")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"spec": config["spec"] | {"classes": classes}}))
    accuracy = Accuracy.of([True] * right + [False] * (500 - right)).to_dict()
    (folder / "held_out.json").write_text(json.dumps({"clean": accuracy, "pgd20": accuracy}))
    teacher.record(str(folder), toy)
    assert ("is not shown to be robust" in capfd.readouterr().err) != robust


def test_a_teacher_of_the_registry_is_judged_by_its_entry(phased, toy, capfd, monkeypatch):
    say_once.cache_clear()
    monkeypatch.setattr(teacher, "held_out_accuracy", lambda *_: pytest.fail("it was measured again"))
    weak = info("rnascl-s3-wrt34-2").results["pgd20"].accuracy
    teacher.record("rnascl-s3-wrt34-2", CIFAR10)
    assert f"is {weak.value:.1%} under pgd20 (n = 10,000)" in capfd.readouterr().err
    teacher.record("trades-s7", CIFAR10)
    assert "not robust" not in capfd.readouterr().err


def test_every_process_averages_at_the_end_though_one_writes(phased, toy, tmp_path, monkeypatch):
    """SyncBatchNorm's statistics are gathered from all processes: the first would wait for the others forever."""
    trainer = Trainer(load_phases(phased, overrides=["method.tutors=depth"])["train"], toy)
    averaged = []
    monkeypatch.setattr(trainer, "averaged", lambda: averaged.append(True) or trainer.net)
    monkeypatch.setattr(type(trainer.accelerator), "is_main_process", False)
    trainer.finish(tmp_path)
    assert averaged
    assert not list(tmp_path.glob("model"))
