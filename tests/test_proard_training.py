"""The training of a dynamic net, and what it leaves."""

from __future__ import annotations

import copy
import json
import os
import signal
import tomllib
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from micro import RECIPE, micro
from scipy.stats import kstest

from zoo import info
from zoo.cli.app import run as cli
from zoo.models import build
from zoo.specs import StagedSpec, cost
from zoo.system.errors import UnknownModel, UsageError
from zoo.system.files import sha256_file
from zoo.train.methods import METHODS
from zoo.train.methods.losses import kl
from zoo.train.methods.method import Step
from zoo.train.methods.n_fgsm import single_step
from zoo.train.pipeline import run
from zoo.train.proard import accounting, measuring, sampling
from zoo.train.proard.dynamic import dynamic
from zoo.train.proard.labelled import Labelling
from zoo.train.proard.trainer import SupernetTrainer
from zoo.train.recipes.differences import differences, planned
from zoo.train.recipes.phases import load_phases, load_recipe
from zoo.train.recipes.schema import Supernet, parse_recipe
from zoo.train.run.loop import Interrupted, fit
from zoo.train.spaces import SPACES
from zoo.weights.folder import ModelConfig, ModelFolder
from zoo.weights.load import load
from zoo.weights.tensors import read_tensors, save_weights

TRAIN = 49_000  # images of CIFAR-10 that are trained on

PROGRESSIVE = """
[phase.teacher]
method = "trades"
teacher = {}
"supernet.random" = 0
"supernet.smallest" = false

[phase.width]
"supernet.elastic" = ["width"]
"supernet.largest" = 0
"supernet.smallest" = false
"supernet.random" = 1
"supernet.redraw" = "epoch"
teacher = "teacher"
method = "rslad"

[phase.depth]
"supernet.elastic" = ["width", "depth"]
"supernet.choices" = 2
"supernet.sort" = true
"""


@pytest.fixture(autouse=True)
def space(monkeypatch):
    monkeypatch.setitem(SPACES, "micro", micro)


@pytest.fixture
def written(tmp_path):
    """A recipe file: the given text in place of its phases."""

    def write(phases: str = "[phase.train]", text: str = RECIPE):
        path = tmp_path / "proard-micro.toml"
        path.write_text(text.replace("[phase.train]", phases))
        return path

    return write


@pytest.fixture
def recipe(written):
    return load_phases(written())["train"]


def trainer(
    toy, *, method: str | None = None, how: dict | None = None, taught_by="trades-s3", **supernet
) -> SupernetTrainer:
    data = tomllib.loads(RECIPE)
    del data["phase"], data["preset"]
    data["supernet"] |= supernet if method else {"own": {"name": "n-fgsm"}, **supernet}
    if method is not None:
        del data["teacher"]
        data["method"] = {"name": method, **(how or {})}
        data |= {"teacher": {"name": str(taught_by)}} if METHODS[method].takes_teacher else {}
        data["attack"] = data.get("attack", {}) if METHODS[method]().attacks else {}
    data["arch"] = micro().spec(micro().largest[0]).to_dict()
    return SupernetTrainer(parse_recipe(data, "test"), toy)


def in_place(*, method: str, own: str, **supernet):
    data = tomllib.loads(RECIPE)
    del data["phase"], data["preset"]
    data["supernet"] |= {"own": {"name": own}, **supernet}
    data |= {"method": method, "teacher": {"name": "largest"}, "arch": micro().spec(micro().largest[0]).to_dict()}
    data["attack"] = data["attack"] if METHODS[method]().attacks or METHODS[own]().attacks else {}
    return parse_recipe(data, "test")


# -- which sub-nets ----------------------------------------------------------------------------------------------


@given(
    elastic=st.sets(st.sampled_from(["width", "depth"])),
    progress=st.floats(0, 1),
    opening=st.tuples(st.floats(0, 1), st.floats(0, 1)).map(sorted),
    choices=st.none() | st.integers(1, 4),
    draw=st.sampled_from(["choices", "macs"]),
    seed=st.integers(0, 9),
)
def test_drawn_sub_nets_keep_to_what_is_open(elastic, progress, opening, choices, draw, seed):
    space = micro()
    settings = Supernet.model_construct(
        space="micro", random=5, elastic=tuple(sorted(elastic)), opening=tuple(opening), choices=choices, draw=draw
    )
    rows = sampling.drawn(space, settings, progress, np.random.default_rng(seed))
    least = sampling.least(space, settings, progress)
    assert rows.shape == (6, 4)
    assert (rows[0] == space.canonical(least)[0]).all()
    assert (rows >= least).all()
    for index, gene in enumerate(space.genes):
        if gene.name.split(".")[1] not in elastic:
            assert (rows[:, index] == len(gene.choices) - 1).all()
    if elastic and choices:
        last = sorted(elastic)[-1]
        for index, gene in enumerate(space.genes):
            if gene.name.endswith(last):
                assert (rows[:, index] >= len(gene.choices) - choices).all()


def test_choices_open_gradually():
    space, settings = micro(), Supernet.model_construct(elastic=("width", "depth"), choices=None, opening=(0.2, 0.8))
    sizes = [int(space.macs(sampling.least(space, settings, p))[0]) for p in (0.0, 0.2, 0.5, 0.8, 1.0)]
    assert sizes[0] == sizes[1] == space.macs(space.largest)[0]
    assert sizes[3] == sizes[4] == space.macs(space.smallest)[0]
    assert all(a >= b for a, b in pairwise(sizes))


@pytest.mark.parametrize("name", SPACES)
def test_sub_nets_can_be_drawn_evenly_over_the_logarithm_of_their_macs(name):
    space, rng, apart = SPACES[name](), np.random.default_rng(0), {}
    low, high = (np.log(space.macs(genes)[0]) for genes in (space.smallest, space.largest))
    for draw in ("choices", "macs"):
        settings = Supernet(space=name, smallest=False, draw=draw)
        rows = np.concatenate([sampling.drawn(space, settings, 1.0, rng) for _ in range(300)])
        apart[draw] = kstest((np.log(space.macs(rows)) - low) / (high - low), "uniform").statistic
    assert apart["macs"] < 0.08 < 0.2 < apart["choices"], apart


def test_sub_nets_change_with_every_step_or_with_every_epoch(toy):
    by_step, by_epoch = trainer(toy, random=3), trainer(toy, random=3, redraw="epoch")
    assert len({tuple(by_step.drawn(step)) for step in range(10)}) > 5
    assert len({tuple(by_epoch.drawn(step)) for step in range(10)}) == 1  # ten steps make an epoch
    assert by_epoch.drawn(0) != by_epoch.drawn(10)
    assert by_step.drawn(3) == trainer(toy, random=3).drawn(3)


# -- a step ------------------------------------------------------------------------------------------------------


def test_a_step_descends_the_sum_of_its_sub_nets_losses(recipe, toy):
    run = trainer(toy, random=1)
    run.net.train()
    net, batch, (smallest, other) = run.net, run.batch(0), run.drawn(0)
    full, soft = net.full.spec, net(batch.x).detach()

    def attacked(spec):
        return single_step(Step(net.subnet(spec, attacked=True), net, batch, recipe.attack))

    expected = F.cross_entropy(net(attacked(full)), batch.y)
    for spec in (smallest, other):
        logits = net(attacked(spec), spec)
        expected = expected + 0.5 * F.cross_entropy(logits, batch.y) + 0.5 * kl(soft, logits)
    expected.backward()
    gradients = {name: p.grad.clone() for name, p in net.named_parameters()}
    net.zero_grad()
    taken = {}
    run.optimizer.register_step_pre_hook(
        lambda *_: taken.update({name: p.grad.clone() for name, p in net.named_parameters()})
    )
    loss = run.train_step()
    torch.testing.assert_close(loss, expected.detach() / 3)
    for name, gradient in gradients.items():
        torch.testing.assert_close(taken[name], gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("method", [name for name, one in METHODS.items() if one.trains_subnets()])
def test_sub_nets_learn_by_any_method_but_one(toy, method, tmp_path, monkeypatch):
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path))  # of the robust data
    shared = {"attacker": "largest", "refine": int(METHODS[method]().attacks)}
    if METHODS[method]().replays > 1:
        run = trainer(toy, method=method, how={"m": 2})
    else:
        run = trainer(toy, method=method, how={"steps": 2} if method == "rdt" else {}, **shared)
    before = {name: p.detach().clone() for name, p in run.net.full.named_parameters()}
    assert torch.isfinite(run.train_step())
    assert all(not torch.equal(p, before[name]) for name, p in run.net.full.named_parameters())


def test_a_method_that_cannot_train_sub_nets_is_refused(toy):
    with pytest.raises(UsageError, match=r"method 'rnascl' cannot train a \[supernet\].*: choose natural, .* or rdt"):
        trainer(toy, method="rnascl")
    with pytest.raises(UsageError, match=r"sub-nets have other layers than the largest: remove method.student_layer"):
        trainer(toy, method="rrm", how={"student_layer": "features.1"})
    with pytest.raises(UsageError, match=r"'rrm' asks a frozen teacher: name one in place of 'largest'"):
        in_place(method="rrm", own="natural")
    with pytest.raises(UsageError, match=r"method 'kd' trains on clean images: set supernet.refine = 0"):
        trainer(toy, method="kd", attacker="largest", refine=1)
    with pytest.raises(UsageError, match=r"'free-at' has no attack to share: set supernet.attacker = 'each'"):
        trainer(toy, method="free-at", how={"m": 2}, attacker="largest")
    with pytest.raises(UsageError, match=r"without replays, not 'free-at'"):
        in_place(method="rslad", own="free-at")
    with pytest.raises(UsageError, match=r"'kd' has no attack to share: set supernet.attacker = 'each'"):
        in_place(method="kd", own="pgd-at", attacker="largest")  # it would learn on clean images
    assert in_place(method="kd", own="pgd-at").attack.step == tomllib.loads(RECIPE)["attack"]["step"]
    in_place(method="rslad", own="natural")  # whose settings of the attack are for [method]


def test_the_attack_of_the_largest_nets_own_method_is_compared(tmp_path):
    text = """
name = "own"
description = "the largest learns by itself"
family = "own"
method = "kd"
teacher = "largest"
train = {{ epochs = 1, compile = false }}
attack = {{ step = {step}, steps = {steps} }}
supernet = {{ space = "tiny", largest = 1, smallest = 1, own = {{ name = "pgd-at" }} }}
"""
    one, other = tmp_path / "one.toml", tmp_path / "other.toml"
    one.write_text(text.format(step=0.03, steps=1))
    other.write_text(text.format(step=0.01, steps=9))
    found = differences(planned(str(one)).settings, planned(str(other)).settings)
    assert found.settings == {"attack.step": (0.03, 0.01), "attack.steps": (1, 9)}


@pytest.mark.parametrize(("side", "features"), [("teacher", 64), ("student", 64), ("teacher", 12), ("student", 12)])
def test_sub_nets_match_representations_by_the_leading_channels_of_one_layer(toy, side, features, tmp_path):
    teacher = "trades-s3"
    if features == 12:  # as many as the largest has
        teacher, spec = ModelFolder(tmp_path / "teacher"), StagedSpec(widths=((4,), (12,)), resolutions=(16, 8))
        teacher.write(ModelConfig(spec=spec.to_dict()))
        save_weights(build(spec).state_dict(), teacher.weights)
        teacher = teacher.path
    run = trainer(toy, method="rrm", how={"side": side, "lam": 0.3}, taught_by=teacher, random=0)
    run.net.train()
    assert run.parts.get_submodule(side).weight.shape == ((12, features) if side == "teacher" else (features, 12))
    batch, (smallest,), teacher, expected = run.batch(0), run.drawn(0), run.teacher.model, 0.0

    def features(net):
        kept = []
        handle = net.head.register_forward_pre_hook(lambda module, inputs: kept.append(inputs[0]))
        logits = net(batch.x)
        handle.remove()
        return logits, kept[0]

    plain = {spec: run.net.freeze(spec, [batch.x]).train() for spec in (run.net.full.spec, smallest)}
    layer = copy.deepcopy(run.parts)
    with torch.no_grad():
        _, g_t = features(teacher)
    for net in plain.values():
        logits, g_s = features(net)
        k = g_s.shape[1]
        if side == "teacher":
            ours, theirs = g_s, g_t @ layer.teacher.weight.T[:, :k]
        else:
            ours, theirs = g_s @ layer.student.weight[:, :k].T + layer.student.bias, g_t
        expected += 0.3 * F.cross_entropy(logits, batch.y) + (1 - F.cosine_similarity(ours, theirs)).mean()
    expected.backward()
    taken = {}
    run.optimizer.register_step_pre_hook(
        lambda *_: taken.update({name: p.grad for name, p in run.parts.named_parameters()})
    )
    run.optimizer.register_step_pre_hook(lambda *_: taken.update({"head": run.net.full.head.weight.grad.clone()}))
    torch.testing.assert_close(run.train_step(), expected.detach() / 2)
    full, small = (net.head.weight.grad for net in plain.values())
    full[:, : small.shape[1]] += small
    torch.testing.assert_close(taken["head"], full, rtol=1e-4, atol=1e-6)
    if side == "student":
        torch.testing.assert_close(taken["student.weight"], layer.student.weight.grad, rtol=1e-4, atol=1e-6)
    assert not any(module._forward_pre_hooks for module in run.net.subnet(smallest).layers.modules())


def test_replays_descend_and_climb_the_sum_of_the_sub_nets_losses(toy):
    run = trainer(toy, method="free-at", how={"m": 2}, random=0)
    run.net.train()
    plain, x, y = copy.deepcopy(run.net), *run.batch(0)[:2]
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.01, momentum=0.9, nesterov=True, weight_decay=5e-4)
    for group in run.optimizer.param_groups:
        group["lr"] = 0.01
    (smallest,), x_adv = run.drawn(0), x
    loss = run.train_step()
    for _ in range(2):
        x_adv = x_adv.detach().requires_grad_()
        expected = F.cross_entropy(plain(x_adv), y) + F.cross_entropy(plain(x_adv, smallest), y)
        optimizer.zero_grad()
        expected.backward()
        optimizer.step()
        x_adv = run.recipe.attack.ball(x).project(x_adv.detach() + 0.03 * x_adv.grad.sign())
    torch.testing.assert_close(loss, expected.detach() / 2, rtol=1e-4, atol=1e-5)
    assert ((x + run.parts.delta - x_adv).abs() < 1e-6).float().mean() > 0.98  # small gradients have any sign
    found, wanted = dict(run.net.named_parameters()), dict(plain.named_parameters())
    torch.testing.assert_close(found, wanted, rtol=1e-2, atol=2e-4)
    assert run.total_steps == 10  # two epochs of replays


def test_shared_images_are_those_of_the_attacker_and_refined_ones_stay_within_the_ball(recipe, toy):
    shared = trainer(toy, attacker="largest", refine=2)
    batch, method = shared.batch(0), shared.recipe.method
    first = method.attacked(shared.subnet_step(shared.net.full.spec, batch, None))
    step = shared.subnet_step(shared.drawn(0)[0], batch, None)
    refined = shared.refined(method, step, first)
    assert not torch.equal(refined, first)
    assert (refined - batch.x).abs().max() <= recipe.attack.eps + 1e-6
    assert torch.equal(trainer(toy, attacker="largest").refined(method, step, first), first)


@pytest.mark.parametrize(
    ("settings", "judges", "floor"),
    [
        ({}, ["smallest", "middle", "largest"], {"width": 0, "depth": 0}),
        ({"smallest": False, "random": 0}, ["largest"], {"width": 2, "depth": 1}),
        ({"smallest": False, "elastic": ("width",)}, ["smallest", "middle", "largest"], {"width": 0, "depth": 1}),
    ],
)
def test_a_run_is_judged_by_sub_nets_that_it_trains(toy, settings, judges, floor):
    run, space = trainer(toy, **settings), micro()
    assert list(run.judges) == judges
    assert run.judges["largest"] == run.net.full.spec
    for widths in (spec.widths for spec in run.judges.values()):
        for stage, own in zip(("stage1", "stage2"), widths, strict=True):
            choices = {gene.name: gene.choices for gene in space.genes}
            assert len(own) >= choices[f"{stage}.depth"][floor["depth"]]
            assert own[0] >= choices[f"{stage}.width"][floor["width"]]
    run.guarded_accuracy(run.net)
    assert list(run.judged) == [judges[len(judges) // 2]]  # the raw weights by the one in the middle
    run.guarded_accuracy(run.ema.module)
    assert set(run.judged) == set(judges)


def test_a_frozen_teacher_teaches_the_largest_too(recipe, toy):
    halves = {"inner": "n-fgsm", "ce": 0.5, "kl": 0.5}
    run = trainer(toy, method="ard", how=halves, taught_by="trades-s3", random=0, smallest=False)
    run.net.train()
    net, batch = run.net, run.batch(0)
    soft = run.teacher(batch.x).logits
    x_adv = run.recipe.method.attacked(run.subnet_step(net.full.spec, batch, None))
    logits = net(x_adv)
    expected = 0.5 * F.cross_entropy(logits, batch.y) + 0.5 * kl(soft, logits)
    torch.testing.assert_close(run.train_step(), expected.detach())
    assert run.teacher_name == "trades-s3"
    assert trainer(toy).teacher_name is None


TWO_PROCESSES = """
from micro import micro
from test_proard_training import trainer
from zoo.train.methods.method import Batch
from zoo.train.spaces import SPACES

SPACES["micro"] = micro
taken = []

def learning(run):
    nets = (run.net, run.parts) if run.parts else (run.net,)
    return [p for net in nets for p in net.parameters() if p.requires_grad]

def step(halves):
    run = trainer(dataset, {options})
    for half in halves:
        x, y, noise, _ = run.batch(0)
        run.batch = lambda step: Batch(x[half::2], y[half::2], noise[half::2], None)
    run.optimizer.register_step_pre_hook(
        lambda *_: taken.append([value for p in learning(run) for value in p.grad.flatten().tolist()])
    )
    run.net.train()
    run.train_step()
    return run.accelerator

accelerator = step([])
if accelerator.num_processes == 1:  # batch statistics are each process's own, so: what each half of the batch gives
    taken.clear()
    step([0]), step([1])
    taken = [[(a + b) / 2 for a, b in zip(*taken)]]
report(accelerator, taken[0])
"""


@pytest.mark.parametrize("options", ["", "method='rrm', how={'side': 'student'}"])
def test_two_processes_descend_the_mean_of_their_gradients(options, toy, on_processes):
    one, two = (on_processes(TWO_PROCESSES, processes, toy.root, options=options) for processes in (1, 2))
    np.testing.assert_allclose(two, one, rtol=1e-3, atol=1e-6)
    assert np.abs(one).max() > 0.01


# -- runs --------------------------------------------------------------------------------------------------------


def test_a_run_leaves_its_largest_sub_net_and_a_predictor_that_is_searched(written, toy, tmp_path, found, capsys):
    found(toy)
    assert cli(["train", str(written()), "--preset", "phases", "--out", str(tmp_path / "run"), "--json", "-q"]) == 0
    model = json.loads(capsys.readouterr().out)["model"]
    folder = Path(model.removeprefix("local-dir:"))
    config = json.loads((folder / "config.json").read_text())
    assert config["supernet"] == "micro"
    assert load(f"local-dir:{folder}").spec == micro().spec(micro().largest[0])
    assert {one.name for one in folder.iterdir()} >= {"labels.json", "predictor.json", "predictor.safetensors"}
    (history,) = config["train"]["history"]
    assert {f"{who}_{what}" for who in ("smallest", "middle", "largest") for what in ("clean", "pgd")} <= {*history}
    tensors = read_tensors(folder / "model.safetensors")
    assert all(torch.isfinite(tensor).all() for tensor in tensors.values())
    net = dynamic(str(folder))
    with pytest.raises(UsageError, match="another measurement"):
        measuring.label(net, net.space.smallest, toy, folder / "labels.json", Labelling(50, 3, 100))
    assert cli(["search", model, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["space"] == "micro"


def test_an_interrupted_run_ends_as_if_it_had_not_been(recipe, toy, tmp_path):
    whole = fit(recipe, toy, tmp_path / "whole", kind=SupernetTrainer)

    def stop(step, total, loss):
        os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted):
        fit(recipe, toy, tmp_path / "cut", kind=SupernetTrainer, tick=stop)
    cut = fit(recipe, toy, tmp_path / "cut", kind=SupernetTrainer, resume=True)
    one, other = (read_tensors(folder / "model.safetensors") for folder in (whole, cut))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_phases_open_one_dimension_after_the_other_and_resume_in_a_folder_that_was_moved(written, toy, tmp_path):
    phases = load_phases(written(PROGRESSIVE), preset="phases")
    left = run(phases, toy, tmp_path / "run")
    assert list(left) == ["teacher", "width", "depth"]
    config = json.loads((left["width"] / "config.json").read_text())
    assert config["train"]["settings"]["teacher"]["name"] == "teacher"  # wherever the folder is
    assert config["train"]["teacher"]["weights_sha256"] == sha256_file(left["teacher"] / "model.safetensors")
    assert [phase["name"] for phase in config["train"]["phases"]] == ["teacher", "width"]
    assert not (left["width"] / "predictor.safetensors").exists()  # the last phase's only
    assert (left["depth"] / "predictor.safetensors").exists()
    trained = {phase: (folder / "model.safetensors").stat().st_mtime_ns for phase, folder in left.items()}
    (tmp_path / "run").rename(tmp_path / "moved")
    after = run(phases, toy, tmp_path / "moved", resume=True)
    assert {phase: (folder / "model.safetensors").stat().st_mtime_ns for phase, folder in after.items()} == trained


# -- recipes that make no sense ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ("supernet.space=nano", "no space is called 'nano'"),
        ("supernet.largest=0 supernet.smallest=false supernet.random=0", "trains no sub-net"),
        ("supernet.opening=[0.5,0.2]", "opening ends before it begins"),
        ("train.compile=true", "train.compile = false"),
        ("train.int8=true", "cannot be combined"),
        ("supernet.rndom=3", "'random'"),
        ("supernet.refine=2", "refine needs shared images"),
        ("ema.recalibrate=0", "set ema.recalibrate above 0"),
        ("supernet.sort=true", "supernet.sort is for weights that are trained"),
    ],
)
def test_a_recipe_that_cannot_be_trained_is_refused(written, overrides, message):
    with pytest.raises(UsageError, match=message):
        load_phases(written(), overrides=overrides.split())


def test_a_method_for_a_net_that_is_never_trained_is_refused():
    data = tomllib.loads(RECIPE)
    del data["phase"], data["preset"]
    data["supernet"] |= {"largest": 0.0, "own": {"name": "pgd-at"}}
    data |= {"method": {"name": "rslad"}, "teacher": {"name": "largest"}}
    data["arch"] = micro().spec(micro().largest[0]).to_dict()
    with pytest.raises(UsageError, match=r"never trains the largest sub-net: remove supernet\.own"):
        parse_recipe(data, "test")


def test_a_teacher_that_does_not_exist_is_missed_before_the_phases_before_it(written):
    with pytest.raises(UnknownModel, match="no model is called 'techer'"):
        load_phases(written(PROGRESSIVE), overrides=["phase.width.teacher=techer"])


def test_weights_of_another_space_are_refused(written, toy, tmp_path, monkeypatch):
    folder = fit(load_phases(written())["train"], toy, tmp_path / "run", kind=SupernetTrainer)
    small = load_phases(written(), overrides=["supernet.space=tiny"])["train"]
    with pytest.raises(UsageError, match="do not fit the dynamic net of space tiny"):
        fit(small, toy, tmp_path / "other", kind=SupernetTrainer, start=str(folder))
    assert not (tmp_path / "other").exists()


# -- what it costs -----------------------------------------------------------------------------------------------


def test_cost_of_a_step_is_that_of_its_passes(written):
    space = micro()
    largest, smallest = float(space.macs(space.largest)[0]), float(space.macs(space.smallest)[0])
    phases = load_phases(written(PROGRESSIVE), preset="phases")
    costs = {name: accounting.per_image(recipe, phases) for name, recipe in phases.items()}
    assert costs["teacher"] == pytest.approx(8 * largest)  # TRADES with one attack step
    settings = load_phases(written(), overrides=["supernet.random=0"])["train"]
    # Each: attack (2) and training (3) on the largest and the smallest, and the largest's soft labels.
    assert accounting.per_image(settings) == pytest.approx(5 * largest + 5 * smallest + largest)
    shared = load_phases(written(), overrides=["supernet.random=0", "supernet.attacker=largest", "supernet.refine=2"])
    # The largest is attacked, and both refine by two steps of their own.
    assert accounting.per_image(shared["train"]) == pytest.approx(2 * largest + 7 * (largest + smallest) + largest)
    step = 6 * largest + 5 * smallest
    assert accounting.spent({"train": settings}, 50_000)["train"] == pytest.approx(2 * 500 * step)  # it wants 500
    every = settings.model_copy(update={"train": settings.train.model_copy(update={"images": None})})
    assert accounting.spent({"train": every}, 50_000)["train"] == pytest.approx(2 * 50_000 * step)


@pytest.mark.parametrize("attack", [{}, {"attacker": "largest", "refine": 2}])
@pytest.mark.parametrize("method", ["adaad", "rslad"])
def test_cost_of_a_step_has_the_passes_over_its_frozen_teacher(toy, method, attack, monkeypatch):
    run, passes = trainer(toy, method=method, **attack), []

    def counting(net, inputs, output):
        passes.append(1)
        if output.requires_grad:
            output.register_hook(lambda gradient: passes.append(1))

    run.teacher.model.register_forward_hook(counting)
    run.train_step()
    costs = []
    for macs in (0, 1):
        monkeypatch.setattr(accounting, "_macs_of", lambda teacher, macs=macs: macs)
        costs.append(accounting.per_image(run.recipe))
    assert costs[1] - costs[0] == pytest.approx(len(passes))


def test_cost_of_a_student_alone_is_that_of_its_passes_and_of_its_teachers():
    control, teacher = load_recipe("ard-p4-w15"), cost(load_recipe("nfgsm-w15").arch).macs
    assert accounting.per_image_alone(control) == 5 * cost(control.arch).macs + teacher
    assert (
        accounting.per_image_alone(load_recipe("nfgsm-w15").model_copy(update={"arch": control.arch}))
        == 5 * cost(control.arch).macs
    )


@pytest.mark.parametrize("budget", ["4", "12", "30"])
def test_a_control_has_a_sub_nets_architecture_and_a_ninth_of_the_dynamic_nets_cost(budget):
    control, whole = load_recipe(f"nfgsm-p{budget}"), info("proard-tiny")
    assert control.arch.to_dict() == info(f"proard-tiny@{budget}M").spec
    ninth = whole.train.images_seen * accounting.per_image(load_recipe("proard-tiny")) / 9
    spent = control.train.epochs * TRAIN * accounting.per_image_alone(control)
    assert abs(spent - ninth) < TRAIN * accounting.per_image_alone(control) / 2  # to the nearest epoch
