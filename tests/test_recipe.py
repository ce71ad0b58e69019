from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from zoo.specs import cost
from zoo.system.errors import UsageError
from zoo.train.recipes.phases import load_phases, load_recipe
from zoo.train.recipes.published import published_recipes

MINIMAL = """
name = "at-tiny"
description = "for tests"
family = "at"
[arch]
arch = "staged"
widths = [[4]]
resolutions = [16]
[method]
name = "pgd-at"
[train]
epochs = 2
[attack]
step = 0.01
steps = 2
[preset.smoke]
"train.epochs" = 1
"""


@pytest.fixture
def minimal(tmp_path):
    path = tmp_path / "at-tiny.toml"
    path.write_text(MINIMAL)
    return path


@pytest.mark.parametrize("name", published_recipes())
def test_a_published_recipe_is_valid_is_named_as_its_file_and_has_a_smoke_preset(name):
    phases = load_phases(name, preset="smoke")
    assert next(iter(phases.values())).name == name
    assert all(recipe.train.images is not None for recipe in phases.values())


def presets_of(name):
    return set(tomllib.loads(published_recipes()[name].read_text(encoding="utf-8"))["preset"])


@pytest.mark.parametrize("name", published_recipes())
def test_every_preset_is_valid_and_a_teacher_that_is_not_released_has_a_recipe(name):
    for recipe in (recipe for preset in presets_of(name) for recipe in load_phases(name, preset=preset).values()):
        run = Path(recipe.teacher.name if recipe.teacher else "").parts
        if run[:1] == ("runs",):
            teacher = load_recipe(run[1])
            assert teacher.dataset == recipe.dataset
            assert teacher.attack.threat == recipe.attack.threat


@pytest.mark.parametrize(
    ("student", "control"),
    [
        ("ard-s3", "pgd-at-s3"),
        ("ard-s5", "pgd-at-s5"),
        ("ard-s7", "pgd-at-s7"),
        ("fast-ard-s7", "free-at-s7"),
        ("ard-mobilenetv2", "pgd-at-mobilenetv2"),
        ("ard-mobilenetv2-r18", "pgd-at-mobilenetv2"),
        ("ard-mobilenetv2-self", "pgd-at-mobilenetv2"),
        ("fast-ard-mobilenetv2", "free-at-mobilenetv2"),
        ("ard-resnet18", "pgd-at-resnet18"),
        ("ard-s3-cifar100", "pgd-at-s3-cifar100"),
        ("ard-s5-cifar100", "pgd-at-s5-cifar100"),
        ("ard-s7-cifar100", "pgd-at-s7-cifar100"),
        ("fast-ard-s7-cifar100", "free-at-s7-cifar100"),
        ("ard-mobilenetv2-cifar100", "pgd-at-mobilenetv2-cifar100"),
        ("fast-ard-mobilenetv2-cifar100", "free-at-mobilenetv2-cifar100"),
        ("ard-resnet18-cifar100", "pgd-at-resnet18-cifar100"),
    ],
)
def test_a_student_and_its_control_differ_in_the_teachers_loss_alone(student, control):
    presets = presets_of(student)
    assert presets == presets_of(control) >= {"cpu", "gpu", "smoke"}
    for preset in (None, *presets):
        one, other = (load_recipe(name, preset=preset).model_dump() for name in (student, control))
        differs = {key for key in one if one[key] != other[key]}
        assert differs <= {"name", "description", "family", "paper", "reported", "method", "teacher"}


@pytest.mark.parametrize("taught", ["ard-s7", "fast-ard-s7", "rrm-s7"])
@pytest.mark.parametrize(("dataset", "suffix"), [("cifar10", ""), ("cifar100", "-cifar100")])
def test_the_s_family_has_the_papers_settings_as_a_preset(taught, dataset, suffix):
    paper = {"ard-s7": "ard-mobilenetv2", "fast-ard-s7": "fast-ard-mobilenetv2", "rrm-s7": "rrm-resnet50-r18"}[taught]
    ours, theirs = load_recipe(taught + suffix, preset="paper"), load_recipe(paper + suffix)
    assert ours.dataset == theirs.dataset == dataset
    for section in ("method", "optimizer", "attack"):
        assert getattr(ours, section) == getattr(theirs, section)
    assert (ours.train.epochs, ours.train.batch_size) == (theirs.train.epochs, theirs.train.batch_size)


@pytest.mark.parametrize("name", ["trades-s7", "nfgsm-w15"])
def test_the_15m_students_fit_their_budget(name):
    assert cost(load_recipe(name).arch).macs <= 15_000_000


def test_overrides_win_over_the_preset_which_wins_over_the_file(minimal):
    assert load_recipe(minimal).train.epochs == 2
    assert load_recipe(minimal, preset="smoke").train.epochs == 1
    assert load_recipe(minimal, preset="smoke", overrides=["train.epochs=7"]).train.epochs == 7


def test_sizes_of_another_norm_are_asked_for_anew(minimal):
    with pytest.raises(UsageError, match=r"the default eps is for norm = 'linf': set it"):
        load_recipe(minimal, overrides=["attack.norm=l2"])
    with pytest.raises(UsageError, match=r"the default attack.step is for norm = 'linf': set it"):
        load_recipe(minimal, overrides=["attack.norm=l2", "attack.eps=0.5"])
    assert load_recipe(minimal, overrides=["attack.norm=linf"]).attack.step == 0.01
    attack = load_recipe(minimal, overrides=["attack.norm=l2", "attack.eps=0.5", "attack.step=0.1"]).attack
    assert (attack.norm, attack.eps, attack.step, attack.steps) == ("l2", 0.5, 0.1, 2)


def test_a_preset_or_a_phase_of_another_norm_does_not_keep_its_sizes(minimal):
    text = MINIMAL.replace('"train.epochs" = 1', '"attack.step" = 0.02\n"attack.eps" = 0.1')
    minimal.write_text(text)
    assert load_recipe(minimal, preset="smoke").attack.eps == 0.1
    with pytest.raises(UsageError, match="the default eps"):
        load_recipe(minimal, preset="smoke", overrides=["attack.norm=l2"])
    with pytest.raises(UsageError, match=r"the default attack.step"):
        load_recipe(minimal, preset="smoke", overrides=["attack.norm=l2", "attack.eps=0.5"])
    minimal.write_text(
        text + '"attack.norm" = "l2"\n[phase.one]\n"attack.steps" = 3\n[phase.two]\n"attack.step" = 0.05'
    )
    assert [one.attack.step for one in load_phases(minimal).values()] == [0.01, 0.05]
    assert [one.attack.step for one in load_phases(minimal, preset="smoke").values()] == [0.02, 0.02]
    back = load_phases(minimal, preset="smoke", overrides=["attack.norm=linf"])
    assert {(one.attack.eps, one.attack.step) for one in back.values()} == {(8 / 255, 2 / 255)}


@pytest.mark.parametrize(
    ("name", "preset"), [("ard-s7", "paper"), ("rnascl-s7-wrt34-2", None), ("methods-s3", "trades"), ("ard-s7", "gpu")]
)
def test_no_published_recipe_keeps_the_step_of_another_norm(name, preset):
    with pytest.raises(UsageError, match=r"the default attack.step is for norm = 'linf'"):
        load_phases(name, preset=preset, overrides=["attack.norm=l2", "attack.eps=0.5"])


def test_an_override_for_all_phases_wins_over_a_preset_for_one(minimal):
    minimal.write_text(MINIMAL.replace('"train.epochs"', '"phase.two.train.epochs"') + "[phase.one]\n[phase.two]")
    assert [one.train.epochs for one in load_phases(minimal, preset="smoke").values()] == [2, 1]
    asked = {"preset": "smoke", "overrides": ["train.epochs=5"]}
    assert [one.train.epochs for one in load_phases(minimal, **asked).values()] == [5, 5]


def test_an_empty_table_removes_a_section(minimal):
    minimal.write_text(MINIMAL + '[preset.clean]\nattack = {}\nmethod = "natural"\n"attack.eps" = 0.02\n')
    attack = load_recipe(minimal, preset="clean").attack
    assert (attack.eps, attack.model_fields_set) == (0.02, {"eps"})


def test_a_teacher_is_set_by_its_name_alone(minimal):
    for overrides in (["teacher=trades-s3"], ["teacher.name=trades-s3"]):
        assert load_recipe("ard-s3", overrides=overrides).teacher.model_dump() == {"name": "trades-s3", "versions": 0}
    minimal.write_text(MINIMAL.replace("[arch]", 'teacher = "trades-s3"\nmethod = "rslad"\n[arch]'))
    minimal.write_text(minimal.read_text().replace('[method]\nname = "pgd-at"\n', ""))
    assert load_recipe(minimal).teacher.name == "trades-s3"
    assert load_recipe(minimal, overrides=["teacher=none", "method=pgd-at"]).teacher is None


def test_bare_words_are_strings(minimal):
    assert load_recipe(minimal, overrides=["method=mart"]).method.name == "mart"


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("train.epoch=3", "train.epoch.*did you mean 'epochs'"),
        ("optimiser.lr=0.1", "optimiser.*did you mean 'optimizer'"),
        ("arch.width=[[4]]", "did you mean 'widths'"),
        ("train.epochs=none", "train.epochs"),
        ("train.epochs=0", "greater than or equal to 1"),
        ("train.epochs", "KEY=VALUE"),
        ("name.x=1", "'name' is a value"),
        ("method=n-fgsm", "one attack step"),
        ("attack.objective=cw", "'ce' or 'kl'"),
        ("guard.images=2000", "guard.images"),
        ("arch={ arch = 'staged', widths = [[4]], resolutions = [16], method = 'x' }", "unknown key 'arch.method'"),
        ("optimizer.lr=inf", "'optimizer.lr' is wrong: Input should be a finite number"),
        ("optimizer.lr=nan", "'optimizer.lr' is wrong: Input should be a finite number"),
        ("optimizer.lr=1e9", "'optimizer.lr' is wrong"),
        ("optimizer.weight_decay=inf", "'optimizer.weight_decay' is wrong"),
        ("optimizer.momentum=0", "nesterov needs momentum"),
        ("optimizer.milestones=[nan]", "'optimizer.milestones.0' is wrong"),
        ("ema.decay=nan", "'ema.decay' is wrong"),
        ("attack.step=inf", "'attack.step' is wrong"),
        ("attack.eps=8", r"attack.eps is on the scale of pixels in \[0, 1\]"),
        ("train.seed=-1", "'train.seed' is wrong"),
        ("arch.std=[0.2, 0.0, 0.2]", "'arch.std.1' is wrong: Input should be greater than 0"),
        ("arch.mean=[0.2, nan, 0.2]", "'arch.mean.1' is wrong"),
        ("supernet=x", r"'supernet' must be a section: write \[supernet\]"),
    ],
)
def test_a_bad_override_is_one_sentence_that_names_the_key(minimal, override, says):
    with pytest.raises(UsageError, match=says) as caught:
        load_recipe(minimal, overrides=[override])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("line", "instead", "says"),
    [
        ("epochs = 2", "epoch = 2", "unknown key 'train.epoch'; did you mean 'epochs'"),
        ("epochs = 2", "", "'train.epochs' is missing"),
        ('[method]\nname = "pgd-at"', "", "'method' is missing"),
        ('name = "pgd-at"', "", "'method.name' is missing"),
    ],
)
def test_a_missing_key_is_named_unless_it_is_misspelt(minimal, line, instead, says):
    minimal.write_text(MINIMAL.replace(line, instead))
    with pytest.raises(UsageError, match=says):
        load_recipe(minimal)


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ("preset = 3", r"at-tiny.toml: 'preset' must be made of tables: \[preset.NAME\]"),
        ("phase = 3", "'phase' must be made of tables"),
        ("phase = { a = 3 }", "'phase' must be made of tables"),
        ("preset = { x = 5 }", "'preset' must be made of tables"),
        ('[phase."../../out"]', "'../../out' is no name for a phase: use letters, digits, - and _"),
        ('[phase."a.b"]', "'a.b' is no name for a phase"),
    ],
)
def test_phases_and_presets_are_tables_with_names_that_a_folder_may_have(minimal, more, says):
    text = MINIMAL.partition("[preset")[0]
    minimal.write_text(f"{more}\n{text}" if "=" in more else f"{text}\n{more}\n")
    with pytest.raises(UsageError, match=says):
        load_phases(minimal)


def test_what_is_not_there_is_named_with_its_neighbours(minimal, tmp_path):
    with pytest.raises(UsageError, match="did you mean 'trades-s7'"):
        load_recipe("trades-s77")
    with pytest.raises(UsageError, match="it has: smoke"):
        load_recipe(minimal, preset="quick")
    (tmp_path / "broken.toml").write_text("name = ")
    with pytest.raises(UsageError, match="not TOML"):
        load_recipe(tmp_path / "broken.toml")
