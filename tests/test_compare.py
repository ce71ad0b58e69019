from __future__ import annotations

import contextlib
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_registry import TOOLCHAIN, model, registry_data, result, timed

from zoo.cli.app import run
from zoo.evaluation.measure import Measurement
from zoo.evaluation.protocols import PROTOCOLS
from zoo.evaluation.statistics import Paired
from zoo.export.bench.times import REPORT, Bench, Timed, Times
from zoo.export.bundle.folder import MANIFEST, write_sums
from zoo.export.bundle.manifest import IO, Artifact, Compute, Manifest, Port, Report, Rung, Source, now, to_json
from zoo.export.compare import compare
from zoo.export.ladder.gate import compared
from zoo.export.ladder.report import write_reports
from zoo.registry.write import write_aliases
from zoo.system.errors import IntegrityError
from zoo.system.files import pretty, sha256_file
from zoo.train.methods import METHODS
from zoo.train.recipes.published import published_recipes
from zoo.weights.folder import ModelConfig, ModelFolder
from zoo.weights.release import _with_bits

N = 400
DEVICE = "laptop-4c-avx2-linux-1t"


def right(share: float, seed: int, n: int = N) -> np.ndarray:
    return np.random.default_rng(seed).random(n) < share


BITS = {
    "strong": {"clean": right(0.8, 0), "pgd20": right(0.5, 1), "fgsm": right(0.6, 2), "apgd50": right(0.5, 3)},
    "weak": {
        "clean": right(0.75, 4),
        "pgd20": right(0.2, 5, n=N - 100),
        "cw20": right(0.3, 6),
        "apgd50": right(0.4, 7),
    },
}


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch) -> Path:
    """Two released models with their bits; those of "weak" under APGD are not kept."""
    models: dict[str, Any] = {}
    for width, (name, measured) in enumerate(BITS.items(), start=8):
        sha = f"{width:x}" * 64
        entry = model(width)
        entry["weights"]["sha256"] = sha[:64]
        entry["results"] = {key: result(int(bits.sum()), len(bits), sha[:64]) for key, bits in measured.items()}
        entry["latency"] = {DEVICE: {"slow": {"1": timed(9.0)}, "fast": {"1": timed(0.25 * width)}}}
        models[name] = entry
        kept = {key: bits for key, bits in measured.items() if (name, key) != ("weak", "apgd50")}
        store(tmp_path / f"{name}.bits.npz", sha[:64], kept)
    (tmp_path / "registry.json").write_text(pretty(registry_data(models)))
    monkeypatch.setenv("ZOO_REGISTRY", str(tmp_path / "registry.json"))
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "80")
    return tmp_path


def store(path: Path, weights_sha256: str, bits: dict[str, np.ndarray]) -> None:
    measured = [Measurement(PROTOCOLS[key], {}, one, 10_000) for key, one in bits.items()]
    np.savez_compressed(path, **_with_bits({}, weights_sha256, measured))


def bundle_of(folder: Path, rungs: dict[str, np.ndarray], *, dataset: str = "d" * 64, **protocol: Any) -> Path:
    """A whole bundle whose engine got ``rungs`` right; the engine itself is a few bytes."""
    (folder / "reports").mkdir(parents=True)
    (folder / "model.onnx").write_bytes(folder.name.encode())
    digest, entry = sha256_file(folder / "model.onnx"), model(8)
    bound = {"artifact_sha256": digest, "seed": 0, "dataset": "test", "dataset_sha256": dataset, "seconds": 1.0}
    attack = PROTOCOLS["pgd20"].model_copy(update=protocol)
    report = Report(
        **{"artifact_sha256": digest, "asked": "attacked", "reached": "attacked", "engine": {}, "toolchain": TOOLCHAIN},
        created=now(),
        rungs=tuple(
            Rung(**bound, **compared(name, (bits, bits), () if name == "clean" else (attack,), 0.5))
            for name, bits in rungs.items()
        ),
    )
    size = entry["spec"]["image_size"]
    manifest = Manifest(
        **{"name": folder.name, "spec": entry["spec"], "source": Source(name="strong", tensors_sha256="a" * 64)},
        cost=Compute(macs=entry["macs"], params=entry["params"]),
        io=IO(
            input=Port(name="images", shape=("batch", 3, size, size), layout="NCHW"),
            output=Port(name="logits", shape=("batch", 10), layout="NK"),
        ),
        artifact=Artifact(
            **{"file": "model.onnx", "format": "onnx", "precision": "int8", "opset": 20, "batches": (1,)},
            **{"size": 12_300, "sha256": digest},
        ),
        **{"labels": (), "toolchain": TOOLCHAIN, "engine": "onnxruntime", "device": "cpu", "verified": "attacked"},
        **{"robustness": "nothing was attacked", "gates": (), "command": "test", "created": now()},
    )
    write_reports(folder, manifest, report)
    return folder


def call(*arguments: str) -> tuple[int, str]:
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()):
        code = run(arguments)
    return code, out.getvalue()


# -- models --------------------------------------------------------------------------------------------------------


def test_an_alias_brings_the_bits_and_latency_of_its_entry(home):
    write_aliases("strong", ["st"])
    by_alias, by_name = compare("st", "weak"), compare("strong", "weak")
    assert by_alias.protocols == by_name.protocols
    assert by_alias.a.facts() == by_name.a.facts()


def test_only_the_same_images_under_the_same_attack_are_compared():
    found = compare("strong", "weak")
    assert list(found.protocols) == ["clean"]
    assert found.left_out == {
        "pgd20": "measured on 400 images and on 300",
        "fgsm": "only A was measured so",
        "apgd50": "no per-image bits are stored for B",
        "cw20": "only B was measured so",
    }


def test_accuracies_are_compared_image_by_image():
    a, b = BITS["strong"]["clean"], BITS["weak"]["clean"]
    clean = compare("strong", "weak").protocols["clean"]
    assert (clean["n"], clean["only_a_right"], clean["only_b_right"]) == (N, (a & ~b).sum(), (b & ~a).sum())
    assert clean["difference"] == pytest.approx(a.mean() - b.mean())
    assert clean["a"]["accuracy"] == pytest.approx(a.mean())
    assert clean["mcnemar_p"] == Paired.of(a, b).mcnemar
    low, high = clean["ci95"]
    assert low < clean["difference"] < high
    # Tango's interval is what his score test does not reject: at its ends the statistic is the normal quantile.
    pair = Paired.of(a, b)
    assert abs(pair._score(high)) == pytest.approx(1.959964, abs=1e-4)
    assert abs(Paired(pair.n, b=pair.c, c=pair.b)._score(-low)) == pytest.approx(1.959964, abs=1e-4)


def test_the_other_way_round_everything_changes_sign():
    one, other = (compare(*pair).protocols["clean"] for pair in (("strong", "weak"), ("weak", "strong")))
    assert other["difference"] == -one["difference"]
    assert other["ci95"] == pytest.approx([-one["ci95"][1], -one["ci95"][0]])
    assert other["mcnemar_p"] == one["mcnemar_p"]


def test_a_model_does_not_differ_from_itself():
    found = compare("strong", "strong")
    assert set(found.protocols) == set(BITS["strong"])
    for one in found.protocols.values():
        assert (one["difference"], one["mcnemar_p"], one["only_a_right"]) == (0.0, 1.0, 0)
        assert one["ci95"][0] < 0 < one["ci95"][1]


def test_bits_that_contradict_the_registry_are_refused(home):
    store(home / "strong.bits.npz", "8" * 64, {"clean": ~BITS["strong"]["clean"]})
    with pytest.raises(IntegrityError, match="bits of 'strong' under clean are not those of its registry entry"):
        compare("strong", "weak")


def test_cost_and_latency_of_the_fastest_engine_are_told():
    found = compare("strong", "weak")
    assert found.a.facts() == {
        **{"name": "strong", "kind": "released weights", "macs": model(8)["macs"], "params": model(8)["params"]},
        "size": model(8)["weights"]["size"],
        "latency": {DEVICE: {"1": {"p50_ms": 2.0, "engine": "fast"}}},
        "flags": [],
    }
    assert found.b.latency[DEVICE][1] == (2.25, "fast")


# -- trainings -----------------------------------------------------------------------------------------------------

TEACHER = {"name": "nfgsm-w15", "weights_sha256": "c" * 64}


def trained(*, phases: tuple[float, ...] = (4.0,), teacher: dict | None = None, **changes: Any) -> dict:
    """The record of a training in a config.json: the epochs of its phases, and what its settings change."""
    settings: dict[str, Any] = {
        **{"name": "any", "description": "any", "family": "any", "dataset": "cifar10", "start": None},
        "method": {"name": "trades", "beta": 6.0, "label_smoothing": 0.0},
        "teacher": {"name": teacher["name"], "versions": 0} if teacher else None,
        "train": {"epochs": 60, "precision": "auto", "seed": 0},
        "attack": {"norm": "linf", "eps": 0.03, "step": 0.02, "steps": 2},
        "optimizer": {"lr": 0.2, "weight_decay": 5e-4},
    }
    for key, value in changes.items():
        settings[key] = {**settings[key], **value} if key != "method" else value
    record = {"recipe": "mine", "teacher": teacher, "epochs": sum(phases), "precision": "bf16", "settings": settings}
    names = ("search", "train", "trades")[-len(phases) :]
    return record | {"phases": [{"name": name, "epochs": epochs} for name, epochs in zip(names, phases, strict=True)]}


def folder_of(folder: Path, train: dict | None, width: int = 8) -> str:
    config = ModelConfig(name=folder.name, spec=model(width)["spec"], train=train)
    ModelFolder(folder).write(config)
    (folder / "model.safetensors").write_bytes(b"")
    return f"local-dir:{folder}"


def differing(*names: str) -> dict[str, Any]:
    code, out = call("compare", *names, "--json")
    assert code == 0, out
    return json.loads(out)["training"]


def test_the_settings_that_differ_between_two_trainings_are_listed_and_counted(home):
    student = folder_of(home / "student", trained(teacher=TEACHER, optimizer={"lr": 0.1}, train={"seed": 1}))
    control = folder_of(home / "control", trained())
    found = differing(student, control)
    assert found == {
        "differ": {
            "teacher": {"a": {"name": "nfgsm-w15", "versions": 0, "weights": "c" * 12}, "b": None},
            "train.seed": {"a": 1, "b": 0},
            "optimizer.lr": {"a": 0.1, "b": 0.2},
        },
        "unstated": [],
        "notes": {},
    }
    lines = call("compare", student, control)[1].splitlines()
    assert "Training: 3 settings differ: teacher, train.seed, optimizer.lr." in lines
    assert "  optimizer.lr: A 0.1; B 0.2" in lines
    assert all(len(line) <= 80 or str(home) in line for line in lines[2:])  # a path stays whole
    assert differing(control, control)["differ"] == {}
    assert "Training: No settings differ." in call("compare", control, control)[1]


def test_another_method_is_one_thing_and_what_both_methods_have_is_compared(home):
    ard = {"name": "ard", "ce": 1.0, "kl": 1.0, "label_smoothing": 0.1}
    control = folder_of(home / "b", trained())
    found = differing(folder_of(home / "a", trained(method=ard)), control)
    assert found["differ"] == {
        "method": {"a": {"name": "ard", "ce": 1.0, "kl": 1.0}, "b": {"name": "trades", "beta": 6.0}},
        "method.label_smoothing": {"a": 0.1, "b": 0.0},
    }
    free = {
        "name": "free-at",
        "m": 4,
        "label_smoothing": 0.0,
    }  # each image four times in a row: one epoch is run as four
    found = differing(folder_of(home / "free", trained(method=free, phases=(1.0,))), control)
    assert found["differ"] == {"method": {"a": {"name": "free-at", "m": 4}, "b": {"name": "trades", "beta": 6.0}}}


def test_another_architecture_other_weights_of_the_teacher_and_phases_differ(home):
    retrained = TEACHER | {"weights_sha256": "e" * 64}
    one = folder_of(home / "a", trained(teacher=TEACHER, phases=(4.0, 8.0, 20.0)))
    other = folder_of(home / "b", trained(teacher=retrained, phases=(23.0,)), width=12)
    found = differing(one, other)
    assert found["differ"] == {
        "arch.widths": {"a": [[8], [8]], "b": [[12], [12]]},
        "teacher.weights": {"a": "c" * 12, "b": "e" * 12},
        "train.epochs": {"a": 20.0, "b": 23.0},  # those that were run, not the 60 of both recipes
        "phases before": {"a": ["search (4 epochs)", "train (8 epochs)"], "b": []},
    }
    assert found["notes"] == {"a": "of its phases, only the last one's settings are known"}


def test_settings_that_one_release_does_not_have_are_no_differences(home):
    older = trained()
    del older["settings"]["optimizer"]["weight_decay"], older["precision"]
    found = differing(folder_of(home / "older", older), folder_of(home / "today", trained()))
    assert (found["differ"], found["unstated"]) == ({}, ["optimizer.weight_decay", "train.precision"])


@pytest.mark.parametrize(
    ("train", "said"),
    [
        (None, "nothing is stored about its training"),
        ({"recipe": "mine"}, "its settings are not stored, and no recipe 'mine' is published"),
        ({"recipe": "mine", "settings": {"method": "x"}}, "the record of its training cannot be read"),
        (trained() | {"phases": ["x"]}, "the record of its training cannot be read"),
        (trained() | {"settings": [1]}, "the record of its training cannot be read: it is damaged"),
    ],
)
def test_a_model_whose_settings_are_not_known_says_why(home, train, said):
    names = folder_of(home / "a", train), folder_of(home / "b", trained())
    found = differing(*names)
    assert found["differ"] is None
    assert found["notes"]["a"].startswith(said)
    out = " ".join(call("compare", *names)[1].split())
    assert "The settings of their trainings cannot be compared. A: " + said in out


def test_an_entry_without_settings_has_those_of_its_published_recipe(home):
    data = json.loads((home / "registry.json").read_text())
    for name, recipe in (("strong", "rnascl-s7-wrt34-2-trades"), ("weak", "trades-s7")):
        data["models"][name]["train"] |= {"recipe": recipe, "epochs": 20.0}
    (home / "registry.json").write_text(pretty(data))
    found = differing("strong", "weak")
    assert found["differ"]["method"]["a"]["name"] == "rnascl"
    assert found["differ"].keys() >= {"teacher", "optimizer.lr", "optimizer.weight_decay"}
    assert found["notes"]["b"] == "its settings are those of the recipe 'trades-s7' as published today"


def test_entries_with_settings_are_compared_without_torch(home):
    data = json.loads((home / "registry.json").read_text())
    for name, lr in (("strong", 0.1), ("weak", 0.2)):
        data["models"][name]["train"] |= {"settings": trained(optimizer={"lr": lr})["settings"], "precision": "fp32"}
    (home / "registry.json").write_text(pretty(data))
    code = "import sys; from zoo.cli.app import run; code = run(sys.argv[1:]); sys.exit(code or 'torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code, "compare", "strong", "weak"], capture_output=True, text=True, check=True
    )
    assert "2 settings differ: optimizer.lr, arch.widths." in done.stdout


@pytest.mark.parametrize("preset", ["", ":gpu"])
def test_a_recipe_is_compared_with_its_control_before_anything_is_trained(home, preset):
    found = json.loads(call("compare", f"ard-s7{preset}", f"pgd-at-s7{preset}", "--json")[1])
    assert found["a"] == {"name": f"ard-s7{preset}", "kind": "recipe"}
    assert set(found["training"]["differ"]) == {"method", "teacher"}
    assert found["training"]["unstated"] == []
    mine = home / "mine.toml"
    mine.write_text(published_recipes()["pgd-at-s7"].read_text(encoding="utf-8").replace("epochs = 24", "epochs = 12"))
    _, out = call("compare", f"pgd-at-s7{preset}", f"{mine}{preset}")
    assert f"B  {mine}{preset} (recipe)" in out
    assert ("train.epochs: A 24; B 12" in out) == (not preset)
    assert ("No settings differ." in out) == bool(preset)  # which sets the epochs of both


def test_a_recipe_is_compared_with_a_model_by_the_settings_that_both_state(home):
    trained_so = folder_of(home / "run", trained(teacher=TEACHER))
    found = json.loads(call("compare", "ard-s7", trained_so, "--json")[1])["training"]
    assert found["differ"]["teacher.name"] == {"a": "nfgsm-w15-int8", "b": "nfgsm-w15"}
    assert {"teacher.weights", "train.precision"} <= set(found["unstated"])
    phases = json.loads(call("compare", "rnascl-s7-wrt34-2", trained_so, "--json")[1])["training"]["differ"]
    assert phases["phases before"] == {"a": ["search (4 epochs)", "train (8 epochs)"], "b": []}


@pytest.mark.parametrize("name", METHODS)
def test_a_method_that_makes_no_attack_has_no_attack_settings(home, name):
    attacks = METHODS[name]().attacks
    method = METHODS[name]().model_dump(mode="json")
    one, other = folder_of(home / "a", trained(method=method)), folder_of(home / "b", trained())
    differ = differing(one, other)["differ"]
    assert ("attack.steps" in differ) == (not attacks)
    assert attacks or differ["attack.steps"]["a"] is None
    assert "attack.eps" not in differ


def test_of_a_bundle_no_training_is_compared(home):
    engine = bundle_of(home / "engine", {"clean": BITS["strong"]["clean"]})
    assert call("compare", "ard-s7", str(engine))[0] == 2
    assert differing("strong", str(engine)) is None
    assert "Training" not in call("compare", "strong", str(engine))[1]


# -- bundles -------------------------------------------------------------------------------------------------------


def test_engines_are_compared_rung_by_rung(home):
    one = bundle_of(home / "one", {"clean": right(0.8, 10), "surrogate": right(0.5, 11)})
    other = bundle_of(home / "other", {"clean": right(0.8, 12), "surrogate": right(0.45, 13)})
    found = compare(str(one), str(other))
    assert list(found.protocols) == ["clean", "surrogate"]
    assert found.protocols["surrogate"]["difference"] == pytest.approx(right(0.5, 11).mean() - right(0.45, 13).mean())
    assert found.a.kind == "onnxruntime-int8"
    assert found.a.size == 12_300


def test_attacks_with_other_settings_or_images_are_not_compared(home):
    rungs = {"clean": right(0.8, 10), "surrogate": right(0.5, 11)}
    one = bundle_of(home / "one", rungs)
    reseeded = bundle_of(home / "reseeded", rungs, seed=7)
    assert compare(str(one), str(reseeded)).left_out == {"surrogate": "the attacks have other settings"}
    elsewhere = bundle_of(home / "elsewhere", rungs, dataset="e" * 64)
    assert set(compare(str(one), str(elsewhere)).left_out.values()) == {"measured on other images"}


def test_an_engine_is_compared_with_a_released_model_where_no_attack_differs(home):
    engine = bundle_of(home / "engine", {"clean": BITS["strong"]["clean"], "surrogate": right(0.5, 11)})
    found = compare("strong", str(engine))
    assert found.protocols["clean"]["difference"] == 0
    assert found.left_out["surrogate"] == "only B was measured so"


def test_a_bundles_own_times_are_found(home):
    engine = bundle_of(home / "engine", {"clean": BITS["strong"]["clean"]})
    times = (Times(batch=1, p50_ms=0.5, p95_ms=0.6, p99_ms=0.7, images_per_s=2000.0, calls=10),)
    facts = {"model": "engine", "source": "strong", "tensors_sha256": "a" * 64, "device": DEVICE, "times": times}
    report = Bench(
        **{
            "threads": 1,
            "seconds": 1.0,
            "rounds": 10,
            "machine": {},
            "warnings": (),
            "toolchain": {},
            "created": now(),
        },
        engines=(
            Timed(**facts, engine="pytorch-fp32"),
            Timed(**facts, engine="onnxruntime-int8", artifact_sha256=sha256_file(engine / "model.onnx")),
        ),
    )
    (engine / REPORT).write_text(to_json(report))
    write_sums(engine)
    assert compare("strong", str(engine)).b.latency == {DEVICE: {1: (0.5, "onnxruntime-int8")}}


def test_a_report_of_another_engine_is_refused(home):
    engine = bundle_of(home / "engine", {"clean": right(0.8, 10)})
    report = json.loads((engine / "reports" / "verify.json").read_text())
    report["artifact_sha256"] = "0" * 64
    (engine / "reports" / "verify.json").write_text(json.dumps(report))
    write_sums(engine)
    with pytest.raises(IntegrityError, match="of another engine"):
        compare("strong", str(engine))
    (engine / "reports" / "verify.json").write_text("{}")
    write_sums(engine)
    with pytest.raises(IntegrityError, match=r"verify\.json' is damaged at 'artifact_sha256': Field required"):
        compare("strong", str(engine))


def test_an_altered_bundle_is_refused_with_its_exit_code(home):
    engine = bundle_of(home / "engine", {"clean": right(0.8, 10)})
    with open(engine / MANIFEST, "a") as file:
        file.write(" ")
    assert call("compare", "strong", str(engine))[0] == 5


# -- the command ---------------------------------------------------------------------------------------------------


def test_the_tables_tell_cost_accuracy_and_what_was_left_out():
    code, out = call("compare", "strong", "weak")
    assert code == 0
    lines = out.splitlines()
    assert lines[:2] == ["A  strong (released weights)", "B  weak (released weights)"]
    assert any(line.split()[:1] == ["MACs"] for line in lines)
    assert f"p50 ms, batch 1, {DEVICE}" in out
    assert "2.25 (fast)" in out
    clean = next(line for line in lines if line.startswith("clean "))
    difference = compare("strong", "weak").protocols["clean"]["difference"]
    assert f"{100 * difference:+.2f}" in clean
    assert "Not compared: pgd20 (measured on 400 images and on 300)." in out
    assert max(map(len, lines)) <= 80


def test_a_flag_is_told_of_the_model_that_has_it(home):
    assert "flagged" not in call("compare", "strong", "weak")[1]
    data = json.loads((home / "registry.json").read_text())
    data["models"]["weak"]["flags"] = ["masked"]
    (home / "registry.json").write_text(pretty(data))
    assert "B is flagged, its accuracy may be too high: masked." in call("compare", "strong", "weak")[1]
    assert compare("strong", "weak").b.facts()["flags"] == ["masked"]


def test_where_nothing_can_be_compared_it_says_so(home):
    engine = bundle_of(home / "engine", {"surrogate": right(0.5, 11)})
    _, out = call("compare", "strong", str(engine))
    assert "No accuracy can be compared." in out
    assert "Not compared: clean, pgd20, fgsm, apgd50 (only A was measured so)." in out


def test_json_has_all_of_it_and_nothing_else():
    code, out = call("compare", "strong", "weak", "--json")
    told = json.loads(out)
    assert code == 0
    assert set(told) == {"a", "b", "protocols", "left_out", "training"}
    assert told["protocols"]["clean"]["n"] == N
    assert told["left_out"]["cw20"] == "only B was measured so"


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["strong", "wek"], 3, "no model is called 'wek'; did you mean 'weak'"),
        (["strong", "no/bundle"], 2, "'no/bundle' is not a bundle"),
        (["strong"], 2, "Missing argument 'B'"),
        (["ard-s7:gup", "strong"], 2, "has no preset 'gup'; did you mean 'gpu'"),
        (["strong", "mine.toml"], 2, "no recipe file 'mine.toml'"),
        (["local-dir:mine.toml", "ard-s7"], 4, "there is no folder 'mine.toml'"),
    ],
)
def test_what_is_neither_a_model_nor_a_bundle_is_told(arguments, code, told):
    found, out = call("compare", *arguments, "--json")
    assert found == code
    assert told in json.loads(out)["error"]["message"]
