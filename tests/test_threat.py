"""Threat models and data sets other than the usual ones, from a model's config.json to its bundle and its registry."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from sturdy import SPEC
from test_registry import model as entry_of

from zoo.attacks.ball import norm_of
from zoo.cli.app import run
from zoo.datasets import DATASETS
from zoo.datasets.base import to_float
from zoo.datasets.cifar10 import CIFAR10
from zoo.datasets.cifar100 import CIFAR100
from zoo.evaluation.measure import measure
from zoo.evaluation.protocols import PROTOCOLS, Protocol, dataset_of, protocol
from zoo.evaluation.threat import LINF_8, ThreatModel
from zoo.export import export_model, read_bundle, sign_off, verify_bundle
from zoo.export.bundle.claims import _of_the_reports as claims_of
from zoo.export.bundle.folder import MANIFEST, write_sums
from zoo.export.bundle.manifest import read_manifest
from zoo.export.engines.twin import Twin
from zoo.export.ladder.rungs import right
from zoo.export.ladder.surrogate import surrogate_pgd
from zoo.export.onnx.calibration import Sampling
from zoo.export.onnx.graph import metadata_of, save_onnx
from zoo.export.triton import write_triton
from zoo.models import Classifier, build
from zoo.registry.file import info
from zoo.specs import StagedSpec
from zoo.system.errors import DataNotFound, IntegrityError, RobustnessGateFailed, UsageError
from zoo.system.files import sha256_file
from zoo.train.proard import measuring
from zoo.train.proard.labelled import Labelling
from zoo.train.recipes.schema import parse_recipe
from zoo.train.run.loop import fit
from zoo.train.teachers.teacher import held_out_accuracy
from zoo.weights.load import find, load
from zoo.weights.release import stored_bits

L2 = ThreatModel(norm="l2", eps=2.0)  # the faint texture of the pictures has an l2 norm of 1.5, the loud colours of 13


def folder_of(folder: Path, model: Classifier, **config) -> str:
    folder.mkdir(parents=True)
    save_file(model.state_dict(), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"name": "model", "spec": model.spec.to_dict(), **config}))
    return f"local-dir:{folder}"


# -- the value ---------------------------------------------------------------------------------------------------


def test_an_absurd_size_of_another_program_is_shown_too():
    assert str(ThreatModel(norm="linf", eps=1e308)) == "linf 1e+308"


@pytest.mark.parametrize("text", ["linf 8/255", "linf 4/255", "linf 0.1", "l2 0.5", "l2 1"])
def test_the_short_form_is_read_back(text):
    assert str(ThreatModel.parse(text)) == text


@pytest.mark.parametrize(
    "text", ["", "linf", "l1 8/255", "linf 8", "linf 0", "l2 -1", "l2 nan", "l2 inf", "l2 1/0", "2"]
)
def test_an_invalid_threat_model_is_refused(text):
    with pytest.raises(UsageError, match="a norm and its eps"):
        ThreatModel.parse(text)


@given(st.sampled_from(["linf", "l2"]), st.floats(1e-9, 1, allow_subnormal=False))
def test_every_threat_model_has_a_name_of_its_own_that_is_read_back(norm, eps):
    threat = ThreatModel(norm=norm, eps=eps)
    assert ThreatModel.parse(str(threat)) == threat
    named = PROTOCOLS["pgd20"].under(threat)
    assert protocol(named.name) == named
    assert abs(threat.eps - eps) < 1e-8


def test_decimals_of_eight_grey_levels_are_eight_grey_levels():
    assert ThreatModel.parse("linf 0.031372549") == ThreatModel(eps=0.0313725490) == LINF_8
    assert PROTOCOLS["pgd20"].under(ThreatModel.parse("linf 0.031372549")) == PROTOCOLS["pgd20"]
    assert ThreatModel.parse("linf 0.03137") != LINF_8


@pytest.mark.parametrize(
    "threat", [{"norm": "linf", "eps": 5.0}, {"norm": "linf", "eps": 0.0}, {"norm": "l2", "eps": 0.0}]
)
def test_a_folder_that_states_an_impossible_threat_model_is_refused(tmp_path, capsys, threat):
    name = folder_of(tmp_path / "model", build(SPEC), threat=threat)
    assert run(["eval", name, "-n", "10", "-q"]) == 5
    assert "its eps must be above 0, and at most 1 in linf" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "threat", "derived", "step"),
    [
        ("pgd20", "linf 8/255", "pgd20", 2 / 255),
        ("pgd20", "linf 4/255", "pgd20-linf-4-255", 1 / 255),
        ("pgd20", "l2 0.5", "pgd20-l2-0.5", 2.5 * 0.5 / 20),
        ("autoattack", "l2 0.5", "autoattack-l2-0.5", None),
        ("pgd20-step0.003", "linf 4/255", "pgd20-step0.003-linf-4-255", 0.003),
        ("pgd20-step0.003", "linf 0.031", "pgd20-step0.003-linf-0.031", 0.003),  # that of TRADES
        ("pgd1000", "l2 1", "pgd1000-l2-1", 2.5 / 1000),
        ("deepfool", "linf 0.031", "deepfool-linf-0.031", None),
        ("clean", "l2 0.5", "clean", None),
    ],
)
def test_a_protocol_under_another_threat_model_says_so_in_its_name(name, threat, derived, step):
    base, threat = PROTOCOLS[name], ThreatModel.parse(threat)
    found = base.under(threat)
    assert (found.name, found.step) == (derived, pytest.approx(step))
    assert base.attack == "none" or found.threat == threat
    assert found.under(LINF_8) == base
    assert protocol(derived) == protocol(name, threat) == found
    elsewhere = found.on("cifar100")
    assert protocol(f"cifar100-{derived}") == elsewhere
    assert (elsewhere.name, elsewhere.dataset) == (f"cifar100-{derived}", "cifar100")
    assert base.on("cifar100").under(threat) == elsewhere
    assert elsewhere.on("cifar10") == found


def test_a_stated_step_has_no_form_in_another_norm_nor_in_a_ball_that_it_cannot_cross(in_l2, capsys):
    assert run(["eval", in_l2, "-p", "pgd20-step0.003", "-n", "10", "-q"]) == 2
    told = "the steps of 'pgd20-step0.003' are in linf and go 0.06 far: take another protocol for "
    assert f"{told}l2 2" in capsys.readouterr().err
    assert PROTOCOLS["pgd20-step0.003"].under(ThreatModel.parse("linf 0.06")).step == 0.003
    with pytest.raises(UsageError, match=f"{told}linf 0.061"):
        protocol("pgd20-step0.003-linf-0.061")


def test_a_name_that_states_a_threat_model_keeps_it(in_l2, capsys):
    stated = protocol("pgd20-l2-0.5", ThreatModel.parse("linf 4/255"))
    assert stated == PROTOCOLS["pgd20"].under(ThreatModel.parse("l2 0.5"))
    assert protocol("pgd20-linf-8-255", L2) == PROTOCOLS["pgd20"]
    asked = [f"--protocol={name}" for name in ("pgd20", "pgd20-l2-2", "deepfool-linf-8-255", "pgd20-l2-0.5")]
    assert run(["eval", in_l2, *asked, "-n", "10", "--json", "-q"]) == 0
    results = json.loads(capsys.readouterr().out)["results"]
    assert results.keys() == {"pgd20-l2-2", "deepfool", "pgd20-l2-0.5"}, "no worst case over different threat models"
    swept = ["sweep", in_l2, "-n", "5", "--attack", "fgsm-l2-0.5,fgsm", "--eps", "0.1", "--json", "-q"]
    assert run(swept) == 2
    assert "name the attack 'fgsm', not 'fgsm-l2-0.5'" in capsys.readouterr().err
    assert run(["eval", in_l2, "-p", "cifar100-pgd20", "-q"]) == 2
    assert "is evaluated on cifar10: leave cifar100-pgd20 out" in capsys.readouterr().err


def test_a_name_that_states_the_usual_data_set_states_one():
    names = ("pgd20", "cifar10-pgd20", "cifar10-c", "cifar100-pgd20-l2-0.5")
    assert [dataset_of(name) for name in names] == [None, "cifar10", None, "cifar100"]
    assert protocol("cifar10-pgd20") == protocol("pgd20")


def test_a_data_set_may_extend_the_name_of_another(monkeypatch):
    monkeypatch.setitem(DATASETS, "cifar10-gray", CIFAR10)
    assert [protocol(f"{name}-pgd20").dataset for name in ("cifar10-gray", "cifar10")] == ["cifar10-gray", "cifar10"]


@pytest.mark.parametrize("name", ["pgd21-l2-0.5", "pgd20-l1-0.5", "pgd20-l2", "mnist-pgd20", "-l2-0.5"])
def test_a_name_that_derives_from_nothing_is_refused(name):
    with pytest.raises(UsageError, match=f"no protocol is called '{name}'"):
        protocol(name)


@pytest.mark.parametrize("name", ["pgd20-l2-0", "pgd20-linf-3", "pgd20-l2-1.2.3"])
def test_a_name_with_an_impossible_eps_is_refused(name):
    with pytest.raises(UsageError, match="is not a threat model"):
        protocol(name)


# -- what a model is for -----------------------------------------------------------------------------------------


def test_a_model_states_its_task(robust, tmp_path):
    def told(**config):
        return find(folder_of(tmp_path / str(len(list(tmp_path.iterdir()))), robust, **config)).task

    assert told() == (None, LINF_8)
    assert told(dataset="cifar100", threat={"norm": "l2", "eps": 0.5}) == ("cifar100", ThreatModel(norm="l2", eps=0.5))
    assert told(train={"settings": "damaged"}) == (None, LINF_8)
    assert find("trades-s7").task == ("cifar10", LINF_8)


def test_a_training_names_its_data_set_and_its_eps(toy, tmp_path):
    from test_training import recipe

    settings = recipe(train={"epochs": 1, "images": 200}, attack={"eps": 4 / 255}).model_dump()
    brief = parse_recipe(settings | {"dataset": "cifar100", "arch": ARCH}, "brief.toml")
    hundred = replace(CIFAR100, root=toy.root)
    assert (brief.arch.classes, brief.arch.mean) == (100, CIFAR100.mean)
    assert find(f"local-dir:{fit(brief, hundred, tmp_path)}").task == ("cifar100", ThreatModel(eps=4 / 255))
    with pytest.raises(UsageError, match="did you mean 'cifar100'"):
        parse_recipe(settings | {"dataset": "cifar-100"}, "typo.toml")


ARCH = {"arch": "staged", "widths": [[4]], "resolutions": [16], "stem": 4}


# -- in l2 -------------------------------------------------------------------------------------------------------


@pytest.fixture
def in_l2(robust, world, found, tmp_path) -> str:
    """A model for perturbations in l2; loads of CIFAR-10 find the pictures."""
    found(world)
    return folder_of(tmp_path / "l2", robust, dataset="cifar10", threat={"norm": L2.norm, "eps": L2.eps})


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> Path:
    """Where the one bundle is kept that the tests of l2 have copies of."""
    return tmp_path_factory.mktemp("exported") / "bundle"


@pytest.fixture
def bundle(in_l2, exported, tmp_path) -> Path:
    if not exported.exists():
        export_model(in_l2, out=tmp_path / "out", n=150, margin=0.02).folder.rename(exported)
    return Path(shutil.copytree(exported, tmp_path / "bundle"))


def test_an_l2_model_is_exported_and_verified_in_l2(bundle, robust, split):
    manifest = read_bundle(bundle)
    assert manifest.verified == "attacked"
    assert (manifest.dataset, manifest.threat_model) == ("cifar10", L2)
    assert json.loads((bundle / MANIFEST).read_text())["threat_model"]["access"] == "white-box, untargeted"
    attacks = {rung.name: [Protocol(**one) for one in rung.protocols] for rung in manifest.gates if rung.protocols}
    assert attacks.keys() == {"transfer", "surrogate", "targeted"}
    assert all(one.threat == L2 and one.name.endswith("-l2-2") for each in attacks.values() for one in each)
    assert manifest.gates[-1].measured["engine"]["accuracy"] > 0.9
    assert manifest.robustness.startswith(
        "attacked with pgd20-l2-2, apgd50-l2-2, pgd20-t-l2-2 (l2 2), the exported engine is right on"
    )
    readme = (bundle / "README.md").read_text()
    assert readme.split("\n\n")[1].startswith("Attacked with pgd20-l2-2")
    assert "l2 perturbations of 2.\n" in readme
    assert metadata_of(bundle / "model.onnx")["threat_model"] == "l2, eps 2 of [0, 1]"
    clean, attacked = (np.load(bundle / "probe" / f"{kind}.npz")["images"] for kind in ("clean", "adversarial"))
    assert np.linalg.norm((attacked - clean).reshape(len(clean), -1), axis=1) == pytest.approx(2.0, abs=0.01)
    report = verify_bundle(bundle, n=150)
    assert report.reached == "attacked"
    assert {one["norm"] for rung in report.rungs for one in rung.protocols} == {"l2"}


def test_a_report_with_decimals_of_grey_levels_does_not_contradict_its_manifest():
    attacked = {"norm": "linf", "eps": 0.031372549}  # as older bundles have it
    rung = SimpleNamespace(name="transfer", holds=True, n=9, threshold={}, measured={}, protocols=[attacked])
    report = SimpleNamespace(reached="attacked", rungs=[rung], engine={})
    told = {"verified": "attacked", "conditions": None, "gates": [rung]}
    for threat, agrees in ((LINF_8, True), (ThreatModel(eps=4 / 255), False)):
        claims = claims_of(SimpleNamespace(**told, threat_model=threat), report)
        assert all(one.said == one.known for one in claims) == agrees


def test_an_engine_that_is_not_robust_in_l2_fails_the_gate(bundle, fragile):
    save_onnx(fragile, bundle / "model.onnx")
    manifest = json.loads((bundle / MANIFEST).read_text())
    manifest["artifact"]["sha256"] = sha256_file(bundle / "model.onnx")
    (bundle / MANIFEST).write_text(json.dumps(manifest))
    write_sums(bundle)
    report = verify_bundle(bundle, n=150, tolerance=1e6)
    assert report.reached == "clean"
    with pytest.raises(RobustnessGateFailed, match="the engine is worse"):
        sign_off(report)


def test_the_surrogate_attack_stays_in_its_l2_ball_and_breaks_what_is_fragile(fragile, robust, split):
    x, y = to_float(split.images[:60]), torch.from_numpy(split.labels[:60])
    for model, low, high in ((fragile, 0.0, 0.1), (robust, 0.9, 1.0)):
        engine = Twin(model)
        (x_adv,) = surrogate_pgd(model, [engine], x, y, eps=2.0, norm="l2", step=0.25, steps=20, seed=0)
        assert norm_of(x_adv - x, "l2").max() <= 2.0 + 1e-4
        assert 0 <= x_adv.min() <= x_adv.max() <= 1
        assert right(engine, x, y).mean() > 0.9
        assert low <= right(engine, x_adv, y).mean() <= high


def test_an_l2_model_is_evaluated_and_swept_in_l2_by_default(in_l2, capsys):
    def told(*arguments: str):
        assert run([*arguments, "--json", "-q"]) == 0
        return json.loads(capsys.readouterr().out)

    assert told("eval", in_l2, "-n", "20")["results"].keys() == {"clean", "pgd20-l2-2"}
    assert told("eval", in_l2, "-n", "20", "-p", "pgd20", "--threat", "linf 8/255")["results"].keys() == {"pgd20"}
    swept = told("sweep", in_l2, "-n", "20", "--attack", "pgd20", "--eps", "0,2")
    assert (swept["norm"], [point["step"] for point in swept["curves"]["pgd20"]]) == ("l2", [None, 0.25])
    assert told("sweep", in_l2, "-n", "5", "--attack", "fgsm", "--norm", "linf", "--eps", "0.1")["norm"] == "linf"


def test_held_out_images_are_attacked_in_l2_too(in_l2, monkeypatch):
    found, seen = find(in_l2), []
    dataset = CIFAR10.load()
    assert held_out_accuracy(found, dataset, 20).keys() == {"clean", "pgd20-l2-2"}

    net = SimpleNamespace(found=found, cut=lambda genes, dataset, images: found.load())
    monkeypatch.setattr(measuring, "evaluate_split", lambda model, split, one: seen.append(one) or np.ones(1))
    measuring.measured(net, np.zeros(1, np.int64), dataset, Labelling(images=20, steps=5))
    assert [(one.attack, one.threat, one.steps, one.step) for one in seen[1:]] == [("pgd", L2, 5, 1.0)]


# -- data sets ---------------------------------------------------------------------------------------------------


def test_ten_classes_do_not_make_a_model_one_of_cifar10(robust, world, found, tmp_path):
    asked = found(world)
    name = folder_of(tmp_path / "unknown", robust)
    bundle = export_model(name, out=tmp_path / "out", notify=lambda told: None).folder
    manifest = read_bundle(bundle)
    assert (manifest.labels, manifest.dataset, manifest.verified, asked) == ((), None, "parity", [])
    assert "names no data set" in manifest.robustness
    assert metadata_of(bundle / "model.onnx")["labels"] == "[]"
    assert "airplane" not in (bundle / "README.md").read_text()
    assert not (write_triton(bundle, tmp_path / "triton", notify=lambda told: None) / "labels.txt").exists()
    with pytest.raises(UsageError, match="names none"):
        export_model(name, out=tmp_path / "int8", precision="int8")


def test_a_manifest_may_name_no_data_set_but_one_kind_of_access_only(robust, tmp_path):
    name = folder_of(tmp_path / "model", robust, dataset="cifar10", classes=CIFAR10.classes)
    bundle = export_model(name, out=tmp_path, verify="none").folder
    manifest = json.loads((bundle / MANIFEST).read_text())
    path = tmp_path / MANIFEST
    path.write_text(json.dumps({key: value for key, value in manifest.items() if key != "dataset"}))
    assert (read_manifest(path).dataset, read_manifest(path).threat_model) == (None, LINF_8)
    manifest["threat_model"]["access"] = "black-box"
    path.write_text(json.dumps(manifest))
    with pytest.raises(IntegrityError, match="access"):
        read_manifest(path)


@pytest.fixture
def hundred(world, found, tmp_path) -> str:
    """A model of CIFAR-100; loads find the pictures."""
    found(replace(CIFAR100, root=world.root))
    torch.manual_seed(0)
    spec = StagedSpec(**{**SPEC.to_dict(), "classes": 100})
    known = {
        "dataset": "cifar100",
        "classes": CIFAR100.classes,
        "family": "try",
        "description": "for tests",
        "train": entry_of(8)["train"],
    }
    return folder_of(tmp_path / "hundred", build(spec).eval(), **known)


def test_an_evaluation_on_another_data_set_goes_into_the_registry_under_its_own_name(
    hundred, world, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("ZOO_REGISTRY", str(tmp_path / "mine" / "registry.json"))  # made, with the weights beside it
    assert run(["eval", hundred, "-p", "clean", "-p", "fgsm", "--threat", "l2 0.5", "--write", "-q"]) == 0
    entry = info("model")
    assert (entry.dataset, entry.threat) == ("cifar100", LINF_8)
    assert entry.license == "unknown"  # only its owner knows
    assert entry.results.keys() == {"cifar100-clean", "cifar100-fgsm-l2-0.5"}
    assert entry.results["cifar100-clean"].dataset_sha256 == world.split("test").fingerprint
    assert find("model").task == ("cifar100", LINF_8)
    kept = {path.name for path in (tmp_path / "mine").iterdir()}
    assert kept == {"registry.json", "model.safetensors", "model.bits.npz"}
    assert load("model")(torch.rand(1, 3, 32, 32)).shape == (1, 100)
    capsys.readouterr()
    assert run(["list", "--by", "cifar100-fgsm-l2-0.5"]) == 0
    assert "fgsm, l2 0.5" in " ".join(capsys.readouterr().out.split())


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.fixture
def moved(hundred, world, found, tmp_path, monkeypatch) -> Path:
    """The folder of a registry with two results of "model", measured before an image of the data set changed."""
    home = tmp_path / "mine"
    monkeypatch.setenv("ZOO_REGISTRY", str(home / "registry.json"))
    assert run(["eval", hundred, "-p", "clean", "-p", "fgsm", "--write", "-q"]) == 0
    changed = Path(shutil.copytree(world.root, tmp_path / "changed"))
    np.load(changed / "test_images.npy", mmap_mode="r+")[0] ^= 255
    found(replace(CIFAR100, root=changed))
    return home


def test_other_images_than_the_registrys_are_refused_before_anything_is_measured(moved, hundred, monkeypatch, capsys):
    before = files_of(moved)
    monkeypatch.setattr("zoo.evaluation.measure.measure", lambda *given, **more: pytest.fail("it was measured"))
    assert run(["eval", hundred, "-p", "clean", "--write", "-q"]) == 5
    told = "results of 'model' on other images of cifar100: measure cifar100-fgsm anew too, or add --replace"
    assert told in capsys.readouterr().err
    assert files_of(moved) == before


@pytest.mark.parametrize(("options", "left"), [(["-p", "clean"], {"clean", "fgsm"}), (["--replace"], {"fgsm"})])
def test_all_results_of_a_model_may_move_to_other_images(options, left, moved, capsys):
    old = info("model").results["cifar100-clean"].dataset_sha256
    capsys.readouterr()
    assert run(["eval", "model", "-p", "fgsm", *options, "--write"]) == 0
    told = "results on other images were removed: cifar100-clean"
    assert (told in capsys.readouterr().err) == ("clean" not in left)
    results = info("model").results
    assert results.keys() == stored_bits("model").keys() == {f"cifar100-{name}" for name in left}
    assert old not in {one.dataset_sha256 for one in results.values()}
    with np.load(moved / "model.bits.npz") as kept:
        assert {key for key in kept if not key.endswith(".n")} == {*results, "weights_sha256"}


def test_an_interruption_before_all_are_measured_on_other_images_leaves_the_registry_as_it_was(moved, monkeypatch):
    def stopped(*given, **more):
        yield next(measure(*given, **more))
        raise KeyboardInterrupt

    before = files_of(moved)
    monkeypatch.setattr("zoo.evaluation.measure.measure", stopped)
    assert run(["eval", "model", "-p", "clean", "-p", "fgsm", "--write", "-q"]) == 130
    assert files_of(moved) == before


def test_int8_ranges_are_chosen_by_the_models_own_data_set(hundred, tmp_path):
    few = Sampling(n=8)
    manifest = export_model(hundred, out=tmp_path, precision="int8", calibration=few, verify="none").manifest
    assert (manifest.dataset, manifest.calibration.dataset, manifest.labels) == (
        "cifar100",
        "cifar100",
        CIFAR100.classes,
    )


def test_an_int8_engine_for_image_folders_calibrates_on_one_and_is_refused_at_once_without(tmp_path, monkeypatch):
    from test_imagefolder import draw, tiny_spec

    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("ZOO_IMAGENET", raising=False)
    monkeypatch.delenv("ZOO_DATA", raising=False)
    name = folder_of(tmp_path / "model", build(tiny_spec(224, 3)).eval(), dataset="imagefolder")
    with monkeypatch.context() as patch:
        patch.setattr("zoo.weights.load.read_tensors", lambda *_, **__: pytest.fail("the model was loaded first"))
        with pytest.raises(DataNotFound, match="ZOO_IMAGENET"):
            export_model(name, out=tmp_path / "out", precision="int8")
    images = draw(tmp_path / "images", classes=3, train=5, val=2)
    few = Sampling(n=4, adversarial=0.5)
    bundle = export_model(name, out=tmp_path / "out", precision="int8", calibration=few, data=images, verify="none")
    assert bundle.manifest.calibration.dataset == "imagefolder"
