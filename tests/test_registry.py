from __future__ import annotations

import copy
import hashlib
import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import zoo.registry.file
from zoo.cli.app import run
from zoo.evaluation.protocols import PROTOCOLS, RELEASED, protocol
from zoo.evaluation.statistics import wilson
from zoo.registry.entry import Entry, Registry
from zoo.registry.file import info, linked, load_registry
from zoo.registry.pick import list_models, pareto, pick
from zoo.registry.schema import check, json_schema
from zoo.registry.write import write_model
from zoo.specs import StagedSpec, cost
from zoo.system.cache import cache_root
from zoo.system.errors import IntegrityError, NothingMatches, UnknownModel, UsageError
from zoo.system.files import pretty
from zoo.weights.load import find
from zoo.weights.release import candidate

ROOT = Path(__file__).parent.parent
FINGERPRINT = "d" * 64
TEST_SPLIT = {"cifar10": {"splits": {"test": {"n": 10_000, "sha256": FINGERPRINT}}}}
TOOLCHAIN = {"robust-zoo": "0.1.0", "torch": "2.11.0", "cpu": "some processor"}


def result(right: int, n: int = 10_000, sha256: str = "a" * 64) -> dict[str, Any]:
    return {
        "accuracy": {"value": right / n, "n": n, "ci95": list(wilson(right, n))},
        "weights_sha256": sha256,
        "dataset_sha256": FINGERPRINT,
        "toolchain": dict(TOOLCHAIN),
        "measured_at": "2025-06-01T12:00:00+00:00",
        "wall_s": 12.5,
        "extra": {},
    }


def model(width: int, family: str = "trades", **right: int) -> dict[str, Any]:
    """An entry of a small staged net; ``right`` are correct images of 10,000 by protocol."""
    spec = StagedSpec(widths=((width,), (width,)), resolutions=(16, 8), stem=4)
    macs, params = cost(spec)
    return {
        "family": family,
        "description": "A small student",
        "spec": spec.to_dict(),
        "macs": macs,
        "params": params,
        "weights": {"file": f"w{width}.safetensors", "size": 4 * params, "sha256": "a" * 64},
        "license": "Apache-2.0",
        "train": {
            "recipe": "trades-small",
            "recipe_sha256": "b" * 64,
            "seed": 0,
            "teacher": None,
            "epochs": 2.5,
            "images_seen": 122_500,
            "wall_s": 60.0,
            "device": "2 CPU cores",
            "torch": "2.11.0",
        },
        "results": {name: result(count) for name, count in right.items()},
    }


def timed(p50_ms: float) -> dict[str, Any]:
    """A latency as the registry has it."""
    return {
        "p50_ms": p50_ms,
        "p95_ms": p50_ms + 5,
        "p99_ms": p50_ms + 6,
        "images_per_s": 1000 / p50_ms,
        "memory_mb": 100.0,
        "calls": 100,
        "busy": False,
        "runtime": "onnxruntime 1.0",
        "measured_at": "2025-06-01T12:00:00+00:00",
    }


TEACHER = {
    "name": "nfgsm-wide",
    "weights_sha256": "c" * 64,
    "accuracy": {"clean": result(7900)["accuracy"], "pgd20": result(480, 1000)["accuracy"]},
}
PHASES = [
    {"name": "search", "epochs": 2, "images_seen": 98_000, "wall_s": 150.0},
    {"name": "training", "epochs": 0.5, "images_seen": 24_500, "wall_s": 45.5},
]
REPORTED = {
    "pgd20": {"value": 0.52, "source": "A paper, Table 2"},
    "apgd50": {"value": 0.5, "source": "A paper, Table 2"},
}


def taught(width: int = 20, **right: int) -> dict[str, Any]:
    """An entry that learned from :data:`TEACHER` in two phases."""
    entry = model(width, family="rnascl", **right)
    entry["train"] |= {"teacher": copy.deepcopy(TEACHER), "phases": copy.deepcopy(PHASES)}
    return entry


def config_of(**changes: Any) -> dict[str, Any]:
    """The config.json that training leaves, with ``changes``."""
    student = taught()
    trained = {key: value for key, value in student["train"].items() if key != "recipe_sha256"}
    return {
        "name": "student",
        **{key: student[key] for key in ("family", "description", "spec")},
        "paper": None,
        "train": trained | {"commit": None, "settings": {"epochs": 2.5}, "history": []},
        **changes,
    }


def registry_data(models: dict[str, Any]) -> dict[str, Any]:
    return {
        "schema_version": 1,
        "protocols": {name: PROTOCOLS[name].model_dump(mode="json") for name in RELEASED},
        "datasets": copy.deepcopy(TEST_SPLIT),
        "models": models,
    }


MODELS = {
    "small": model(8, clean=5000, pgd20=3000),
    "middle": model(16, clean=6000, pgd20=4000),
    "wide": model(32, family="nfgsm", clean=7000, pgd20=4500),
    "dull": model(24, clean=6500, pgd20=3900),  # dearer than middle, and weaker
    "unmeasured": model(12, clean=9000),
}
MACS = {name: entry["macs"] for name, entry in MODELS.items()}


@pytest.fixture
def path(tmp_path, monkeypatch) -> Path:
    """A valid registry, which is the default one for this test, and a cache of its own."""
    place = tmp_path / "registry.json"
    place.write_text(pretty(registry_data(copy.deepcopy(MODELS))) + "\n")
    monkeypatch.setenv("ZOO_REGISTRY", str(place))
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    return place


def test_the_environment_and_an_argument_say_which_registry(path, tmp_path):
    assert set(load_registry().models) == set(MODELS)
    other = tmp_path / "other.json"
    other.write_text(json.dumps(registry_data({})))
    assert not load_registry(other).models


def test_an_entry_gives_back_what_the_file_has(path):
    entry = info("wide")
    assert (entry.name, entry.macs, entry.params) == ("wide", MACS["wide"], MODELS["wide"]["params"])
    assert entry.results["pgd20"].accuracy.value == 0.45
    assert entry.results["pgd20"].accuracy.ci95 == wilson(4500, 10_000)
    assert Entry.from_dict("wide", entry.to_dict()) == entry
    assert entry.accuracy("autoattack") is None


def test_an_entry_has_its_teacher_and_training_phases(path):
    write_model("student", taught(clean=6000), path=path)
    entry = info("student")
    assert (entry.train.teacher.name, entry.train.teacher.accuracy["pgd20"].value) == ("nfgsm-wide", 0.48)
    assert entry.train.teacher.accuracy["clean"].ci95 == wilson(7900, 10_000)
    assert [(phase.name, phase.epochs) for phase in entry.train.phases] == [("search", 2), ("training", 0.5)]
    assert json.loads(json.dumps(entry.to_dict()["train"])) == {
        **taught()["train"],
        **dict.fromkeys(("precision", "commit", "start", "settings")),
    }
    assert Entry.from_dict("student", entry.to_dict()) == entry
    assert (info("small").train.teacher, info("small").train.phases) == (None, ())


TRAIN_FAULTS = {
    "a teacher that is but a name": (lambda t: t.update(teacher="wide"), "train.teacher"),
    "a teacher without a hash": (lambda t: t["teacher"].pop("weights_sha256"), "train.teacher.weights_sha256"),
    "a teacher's share in percent": (
        lambda t: t["teacher"]["accuracy"]["clean"].update(value=79.0),
        "train.teacher.accuracy.clean.value.*less than or equal to 1",
    ),
    "a teacher's interval": (
        lambda t: t["teacher"]["accuracy"]["clean"].update(ci95=[0.1, 0.9]),
        "train.teacher.accuracy.clean.ci95.*is not the Wilson interval",
    ),
    "a phase without a name": (lambda t: t["phases"][1].update(name=""), "train.phases.1.name"),
    "a phase of negative length": (lambda t: t["phases"][0].update(epochs=-1), "train.phases.0.epochs"),
    "an unknown field of a phase": (lambda t: t["phases"][0].update(loss=0.1), "train.phases.0.loss"),
}


@pytest.mark.parametrize("what", TRAIN_FAULTS)
def test_a_faulty_teacher_or_phase_is_refused_by_place_and_fault(path, what):
    data = registry_data({"student": taught()})
    TRAIN_FAULTS[what][0](data["models"]["student"]["train"])
    assert_refused(path, data, f"(?s)models.student.{TRAIN_FAULTS[what][1]}")


@pytest.fixture
def trained(tmp_path):
    """Write the folder that training leaves, its config.json with ``changes``; returns the name that opens it."""

    def written(**changes: Any) -> str:
        (tmp_path / "config.json").write_text(json.dumps(config_of(**changes)))
        (tmp_path / "model.safetensors").write_bytes(b"weights")
        return f"local-dir:{tmp_path}"

    return written


def test_a_candidate_brings_the_papers_numbers_its_teacher_its_phases_and_its_settings(path, trained):
    assert "reported" not in candidate(find(trained())).entry
    entry = candidate(find(trained(reported=REPORTED))).entry
    assert entry["reported"] == REPORTED
    assert (entry["train"]["teacher"], entry["train"]["phases"]) == (TEACHER, PHASES)
    write_model("student", entry, path=path)
    assert info("student").reported["pgd20"].source == "A paper, Table 2"
    assert info("student").train.settings == {"epochs": 2.5}


def test_the_papers_numbers_are_taken_over_for_weights_that_were_released_before(path, trained):
    sha256 = hashlib.sha256(b"weights").hexdigest()
    released = taught() | {"results": {"pgd20": result(4000, sha256=sha256)}}
    released["weights"]["sha256"] = sha256
    write_model("student", released, path=path)
    entry = candidate(find(trained(reported=REPORTED))).entry
    assert entry["reported"] == REPORTED
    assert entry["results"]["pgd20"]["accuracy"]["value"] == 0.4
    write_model("student", entry, path=path)
    assert set(candidate(find(trained())).entry["reported"]) == set(REPORTED)  # a config that has none takes none away
    assert candidate(find(trained(reported={}))).entry["reported"] == {}


@pytest.mark.parametrize(
    ("reported", "place"),
    [
        ({"pgd20": 0.5}, "reported.pgd20"),
        ({"pgd20": {"value": 52.0, "source": "A paper"}}, "reported.pgd20.value"),
        ({"pgd20": {"value": 0.5}}, "reported.pgd20.source"),
        ([0.5], "reported"),
    ],
)
def test_a_papers_number_that_is_malformed_is_refused_before_anything_is_measured(path, trained, reported, place):
    with pytest.raises(UsageError, match=rf"config\.json' cannot become a registry entry: .*'{place}'"):
        candidate(find(trained(reported=reported)))


def test_an_unknown_name_is_answered_with_the_nearest(path):
    with pytest.raises(UnknownModel, match="no model is called 'smal'; did you mean 'small'"):
        info("smal")


FAULTS = {
    "macs": (lambda d: d["models"]["small"].update(macs=1), r"models.small.macs.*the spec has \d+"),
    "params": (lambda d: d["models"]["small"].update(params=1), "models.small.params"),
    "spec": (lambda d: d["models"]["small"]["spec"].update(widths=[]), "models.small.spec"),
    "unknown field": (lambda d: d["models"]["small"].update(stars=5), "models.small.stars"),
    "missing field": (lambda d: d["models"]["small"].pop("license"), "models.small.license"),
    "a number as text": (lambda d: d["models"]["small"].update(macs="1"), "models.small.macs"),
    "name": (lambda d: d["models"].update({"../evil": d["models"]["small"]}), "a name has 1 to 40"),
    "weights outside the folder": (
        lambda d: d["models"]["small"]["weights"].update(file="../x.safetensors"),
        "models.small.weights.file",
    ),
    "pickled weights": (lambda d: d["models"]["small"]["weights"].update(file="x.pt"), "models.small.weights.file"),
    "undefined protocol": (lambda d: d["protocols"].pop("pgd20"), "no protocol of that name"),
    "protocol under another name": (lambda d: d["protocols"]["pgd20"].update(name="pgd"), "its name is 'pgd'"),
    "schema version": (lambda d: d.update(schema_version=2), "schema_version"),
    "no models": (lambda d: d.pop("models"), "models"),
    "no fingerprint": (lambda d: d["datasets"].clear(), "has no test split of cifar10"),
    "latency": (
        lambda d: d["models"]["small"].update(latency={"cpu": {"ort": {"1": timed(2.0) | {"p95_ms": 1.0}}}}),
        "latency.cpu.ort.1.*the median is above",
    ),
    "latency of no batch": (
        lambda d: d["models"]["small"].update(latency={"cpu": {"ort": {"0": timed(2.0)}}}),
        r"latency\.cpu\.ort\.0",
    ),
    "latency without a time": (
        lambda d: d["models"]["small"].update(latency={"cpu": {"ort": {"1": timed(2.0) | {"measured_at": "today"}}}}),
        "latency.cpu.ort.1.measured_at",
    ),
}
RESULT_FAULTS = {
    "no provenance": (lambda r: r.pop("toolchain"), "toolchain"),
    "no processor": (lambda r: r["toolchain"].pop("cpu"), "does not name the cpu"),
    "no date": (lambda r: r.update(measured_at="yesterday"), "not an ISO 8601 time"),
    "no time zone": (lambda r: r.update(measured_at="2025-06-01T12:00:00"), "not an ISO 8601 time"),
    "other weights": (lambda r: r.update(weights_sha256="c" * 64), "other weights"),
    "other data": (lambda r: r.update(dataset_sha256="c" * 64), "another test split"),
    "no hash": (lambda r: r.update(weights_sha256="abc"), "weights_sha256"),
    "interval": (lambda r: r["accuracy"].update(ci95=[0.2, 0.4]), "is not the Wilson interval"),
    "interval without value": (lambda r: r["accuracy"].update(value=0.31), "is not the Wilson interval"),
    "not a share of n": (lambda r: r["accuracy"].update(value=0.30001), "not a number of images out of 10000"),
    "over one": (lambda r: r["accuracy"].update(value=30.0), "less than or equal to 1"),
    "not a number": (lambda r: r["accuracy"].update(value=float("nan")), "finite"),
    "more images than the protocol": (lambda r: r.update(result(6000, 20_000)), "but the protocol has 10000"),
}


def assert_refused(path: Path, data: Any, fault: str) -> None:
    path.write_text(json.dumps(data))
    with pytest.raises(IntegrityError, match=fault) as refusal:
        load_registry(path)
    assert str(path) in str(refusal.value)


@pytest.mark.parametrize("what", FAULTS)
def test_a_faulty_registry_is_refused_by_place_and_fault(path, what):
    data = registry_data(copy.deepcopy(MODELS))
    FAULTS[what][0](data)
    assert_refused(path, data, FAULTS[what][1])


@pytest.mark.parametrize("what", RESULT_FAULTS)
def test_a_number_without_sound_provenance_is_refused(path, what):
    data = registry_data(copy.deepcopy(MODELS))
    RESULT_FAULTS[what][0](data["models"]["small"]["results"]["pgd20"])
    assert_refused(path, data, f"(?s)models.small.results.pgd20.*{RESULT_FAULTS[what][1]}")


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '"text"', "{} {}", "\udcff"])
def test_a_file_that_is_not_a_registry_is_refused(path, text):
    path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(IntegrityError, match="registry"):
        load_registry()
    path.unlink()
    with pytest.raises(IntegrityError, match=r"registry\.json' cannot be read: No such file"):
        load_registry()


def test_a_registry_is_checked_once_and_again_after_any_edit(path, monkeypatch):
    load_registry()
    import zoo.registry.schema

    monkeypatch.setattr(zoo.registry.schema, "check", lambda *arguments: pytest.fail("checked again"))
    load_registry()
    monkeypatch.undo()
    monkeypatch.setenv("ZOO_CACHE", str(path.parent / "cache"))
    path.write_text(path.read_text().replace('"macs": ', '"macs": 1'))
    with pytest.raises(IntegrityError, match="macs"):
        load_registry(path)


def test_a_cache_that_cannot_be_written_does_no_harm(path, monkeypatch):
    (path.parent / "file").touch()
    monkeypatch.setenv("ZOO_CACHE", str(path.parent / "file" / "cache"))
    assert set(load_registry().models) == set(MODELS)


@pytest.mark.filterwarnings("ignore:left out")
def test_what_lists_and_picks_ask_is_answered_without_reading_the_entries(path, monkeypatch, capsys):
    for name, facts in {
        "small": {"description": 'gefährlich, \\"{}[] ⟂', "aliases": ["wee"], "flags": ["coarse"], "paper": "p"},
        "middle": {"threat": {"norm": "l2", "eps": 0.5}, "supernet": "tiny"},
    }.items():
        write_model(name, {**json.loads(path.read_bytes())["models"][name], **facts}, path=path)
    models = json.loads(path.read_bytes())["models"]
    whole = {name: Entry.from_dict(name, model) for name, model in models.items()}
    assert run(["list"]) == 0  # which has it validated
    shown = capsys.readouterr().out
    monkeypatch.setattr("zoo.registry.schema.check", lambda *given: pytest.fail("it was validated again"))
    zoo.registry.file._parsed.cache_clear()  # as in another process
    with monkeypatch.context() as patched:
        patched.setattr(Entry, "from_dict", lambda *data: pytest.fail("an entry was read"))
        assert run(["list"]) == 0
        assert capsys.readouterr().out == shown
        assert pick("1G", flagged=True).name == "wide"
        for name, entry in load_registry().models.items():
            for field in ("aliases", "dataset", "flags", "macs", "paper", "size", "subnet", "supernet", "threat"):
                assert getattr(entry, field) == getattr(whole[name], field)
    for name, entry in load_registry().models.items():
        assert entry.description == whole[name].description
        assert entry == whole[name]
        with pytest.raises(AttributeError, match="has no 'colour'"):
            entry.colour  # noqa: B018


@pytest.mark.parametrize(
    "damage", [b"", b"[", b"{}", b'{"models": []}', b'{"protocols": {}, "datasets": {}, "models": {"small": [1]}}']
)
def test_a_damaged_index_is_made_again(path, damage):
    models = load_registry().models
    (note,) = (cache_root() / "valid-registries").iterdir()
    true = note.read_bytes()
    note.write_bytes(damage)
    zoo.registry.file._parsed.cache_clear()
    assert load_registry().models == models
    assert note.read_bytes() == true


def test_the_published_json_schema_is_current_and_agrees_with_the_checks(path):
    jsonschema = pytest.importorskip("jsonschema")
    published = json.loads((ROOT / "docs" / "registry.schema.json").read_text())
    assert published == json_schema(), "python -m zoo.registry.schema > docs/registry.schema.json"
    jsonschema.validate(json.loads(path.read_text()), published)
    broken = registry_data(copy.deepcopy(MODELS))
    broken["models"]["small"]["spec"]["arch"] = "transformer"
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(broken, published)


def test_the_packaged_registry_is_valid_and_its_protocols_are_the_codes():
    packaged = ROOT / "zoo" / "registry.json"
    assert packaged.resolve() == ROOT / "registry.json"
    check(packaged.read_bytes(), packaged)
    stored = json.loads(packaged.read_text())["protocols"]
    assert stored.keys() >= set(RELEASED)
    assert stored == {name: protocol(name).model_dump(mode="json") for name in stored}


def test_writing_keeps_what_is_there_sorted_and_stable(path):
    write_model("aardvark", model(20, clean=100), path=path)
    data = json.loads(path.read_text())
    assert list(data["models"]) == sorted([*MODELS, "aardvark"])
    assert {name: data["models"][name] for name in MODELS} == MODELS
    before = path.read_bytes()
    write_model("aardvark", model(20, clean=100), path=path)
    assert path.read_bytes() == before
    assert before.endswith(b"}\n")


def test_writing_through_a_link_keeps_the_link(path, tmp_path):
    link = tmp_path / "link.json"
    link.symlink_to(path.name)
    write_model("new", model(20), path=link)
    assert link.is_symlink()
    assert "new" in load_registry(path).models


def test_a_link_that_git_wrote_as_text_is_followed(path, tmp_path):
    stub = tmp_path / "zoo" / path.name
    stub.parent.mkdir()
    stub.write_text(f"../{path.name}")
    assert load_registry(linked(stub)).models == load_registry(path).models
    assert linked(path) == path


def test_writing_brings_the_datasets_and_protocols_that_results_refer_to(tmp_path):
    path = tmp_path / "registry.json"
    path.write_text(json.dumps({"schema_version": 1, "protocols": {}, "datasets": {}, "models": {}}))
    with pytest.raises(IntegrityError, match="has no test split"):
        write_model("new", model(8, pgd20=10), path=path)
    write_model("new", model(8, pgd20=10), datasets=TEST_SPLIT, path=path)
    assert list(load_registry(path).protocols) == ["pgd20"]
    other = {"cifar10": {"splits": {"test": {"n": 10_000, "sha256": "e" * 64}}}}
    with pytest.raises(IntegrityError, match="other images in the test split"):
        write_model("new", model(8, pgd20=10), datasets=other, path=path)


def test_numbers_of_a_protocol_that_has_changed_are_not_mixed_with_the_old(path):
    data = registry_data({})
    data["protocols"]["pgd20"]["steps"] = 10
    path.write_text(json.dumps(data))
    with pytest.raises(IntegrityError, match="defines protocol 'pgd20' differently"):
        write_model("new", model(8, pgd20=10), path=path)


def test_a_write_that_would_be_invalid_or_is_cut_short_leaves_the_file_as_it_was(path, monkeypatch):
    before = path.read_bytes()
    with pytest.raises(IntegrityError, match=r"models\.bad\.macs"):
        write_model("bad", {**model(8), "macs": 5}, path=path)
    assert path.read_bytes() == before

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_model("good", model(8), path=path)
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir() if "registry" in file.name] == ["registry.json"]


def test_writers_at_the_same_time_lose_nothing(path):
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); from test_registry import model; "
        "from zoo.registry.write import write_model; [write_model(f'{sys.argv[3]}-{i}', model(8), path=sys.argv[2])"
        " for i in range(8)]"
    )
    writers = [
        subprocess.Popen([sys.executable, "-c", code, str(ROOT / "tests"), str(path), name])
        for name in ("left", "right")
    ]
    assert [writer.wait(timeout=100) for writer in writers] == [0, 0]
    assert len(load_registry(path).models) == len(MODELS) + 16


def test_globs_and_budgets_narrow_the_list(path):
    assert list_models() == sorted(MODELS)
    assert list_models("*l*") == ["dull", "middle", "small"]
    assert list_models(family="nfg*") == ["wide"]
    assert list_models(max_flops=MACS["middle"]) == ["middle", "small", "unmeasured"]
    assert list_models(max_flops=str(MACS["small"])) == ["small"]
    assert list_models(min_clean="65%") == ["dull", "unmeasured", "wide"]
    assert list_models(min_robust=0.4) == ["middle", "wide"]
    assert list_models("none-*") == []
    with pytest.raises(UsageError, match="no protocol is called 'pgd2'; did you mean 'pgd20'"):
        list_models(by="pgd2")


def test_pick_takes_the_most_robust_within_the_budget(path):
    with pytest.warns(UserWarning, match="unmeasured"):
        assert pick(flops=MACS["dull"]).name == "middle"
    with pytest.warns(UserWarning, match="unmeasured"):
        assert pick(flops="1G", min_clean=0.7, min_robust="45%").name == "wide"
    with pytest.warns(UserWarning, match="left out"):
        assert [entry.name for entry in pick(n=3)] == ["wide", "middle", "dull"]
    with pytest.warns(UserWarning, match="unmeasured"):
        assert pick(by="clean", min_robust=0.39).name == "wide"  # min_robust is of pgd20 then
    assert pick(by="clean").name == "unmeasured"
    assert pick(family="nfgsm").name == "wide"
    assert pick(params=MODELS["small"]["params"]).name == "small"
    assert pick(size=MODELS["small"]["weights"]["size"]).name == "small"


def test_ties_go_to_the_cheaper_model(path):
    write_model("cheap-twin", model(10, pgd20=4500), path=path)
    with pytest.warns(UserWarning, match="unmeasured"):
        assert [entry.name for entry in pick(n=2, min_robust=0.45)] == ["cheap-twin", "wide"]


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"flops": "1k"}, r"no model has at most 1\.0k MACs; the smallest is small with [\d.]+k"),
        ({"flops": MACS["small"] - 1}, f"the smallest is small with {MACS['small']:,}$"),  # rounded it would look equal
        ({"params": 10}, "no model has at most 10 parameters; the smallest is small"),
        ({"size": "1kB"}, r"no model has at most 1\.0kB of weights; the smallest is small"),
        ({"min_robust": 0.9}, r"no model has at least 90\.0% accuracy under pgd20; the best is wide with 45\.0%"),
        ({"min_clean": 0.95}, r"at least 95\.0% accuracy \(clean\); the best is unmeasured with 90\.0%"),
        ({"by": "autoattack"}, "no model was measured under 'autoattack'"),
        ({"min_robust": 0.4, "by": "fgsm"}, "no model has a measurement of accuracy under fgsm"),
        ({"family": "rslad"}, r"no model is of family 'rslad' \(families: nfgsm, trades\)"),
        ({"latency_ms": 2.0, "device": "phone"}, r"no latency was measured on 'phone' \(measured devices: none\)"),
        ({"latency_ms": 2.0}, "no latency was measured on any device"),
        ({"flops": MACS["middle"], "min_robust": 0.45}, "no model has .* and .*; the nearest, middle, has 40.0% acc"),
    ],
)
def test_when_nothing_matches_the_binding_constraint_and_the_nearest_miss_are_named(path, limits, message):
    with pytest.raises(NothingMatches, match=message):
        pick(**limits)


@pytest.mark.filterwarnings("ignore:left out")
def test_floors_are_on_the_data_set_of_the_entry(path):
    names = {one.name: one for one in (PROTOCOLS[name].on("cifar100") for name in ("clean", "pgd20"))}
    splits = {"cifar100": TEST_SPLIT["cifar10"]}
    for name, clean, pgd20 in (("weak", 9000, 500), ("strong", 6000, 3000)):
        entry = model(8, **{"cifar100-clean": clean, "cifar100-pgd20": pgd20})
        write_model(name, {**entry, "dataset": "cifar100"}, datasets=splits, protocols=names.values(), path=path)
    assert pick(by="cifar100-clean", min_clean=0.8).name == "weak"
    assert pick(by="cifar100-clean", min_robust=0.2).name == "strong"
    assert pick(by="cifar100-pgd20", min_clean=0.5, min_robust=0.2).name == "strong"
    assert list_models(min_clean=0.6) == ["dull", "middle", "strong", "unmeasured", "weak", "wide"]
    with pytest.raises(NothingMatches, match=r"at least 40\.0% accuracy under cifar100-pgd20; the best is strong"):
        pick(by="cifar100-clean", min_robust=0.4)


def test_invalid_budgets_are_usage_errors(path):
    for limits in ({"flops": "-1"}, {"n": 0}, {"min_clean": 70}, {"device": "phone"}, {"latency_ms": -1.0}):
        with pytest.raises(UsageError):
            pick(**limits)


def test_a_latency_budget_counts_the_fastest_engine_on_the_device(path):
    for name, ms in (("small", 1.0), ("middle", 3.0)):
        engines = {"slow": {"1": timed(9.0)}, "fast": {"1": timed(ms)}, "batched": {"32": timed(0.1)}}
        write_model(name, {**MODELS[name], "latency": {"laptop": engines}}, path=path)
    with pytest.warns(UserWarning, match="dull, unmeasured, wide"):
        assert pick(latency_ms=2.0, device="laptop").name == "small"
    with pytest.raises(NothingMatches, match=r"at most 0\.5 ms latency on laptop; the fastest is small with 1 ms"):
        pick(latency_ms=0.5)


@pytest.mark.filterwarnings("ignore:left out")
def test_a_latency_budget_may_be_for_one_engine(path):
    for name, ms in (("small", 1.0), ("middle", 3.0)):
        engines = {"slow-fp32": {"1": timed(9.0 - ms)}, "fast-int8": {"1": timed(ms)}}
        write_model(name, {**MODELS[name], "latency": {"laptop": engines}}, path=path)
    assert pick(latency_ms=7.0, engine="slow-fp32").name == "middle"
    with pytest.raises(NothingMatches, match=r"4 ms latency with slow-fp32 on laptop; the fastest is middle with 6 ms"):
        pick(latency_ms=4.0, engine="slow-fp32")
    with pytest.raises(
        NothingMatches, match=r"no latency of slow-int8 .* laptop \(measured there: fast-int8, slow-fp32"
    ):
        pick(latency_ms=4.0, engine="slow-int8")
    with pytest.raises(UsageError, match="an engine applies only to a latency budget"):
        pick(engine="slow-fp32")


@st.composite
def registries(draw: st.DrawFn) -> Registry:
    """Entries of equal build but random cost and accuracy, some not measured."""
    models = {}
    for i in range(draw(st.integers(1, 8))):
        macs, right = draw(st.integers(1, 6)) * 10**6, draw(st.none() | st.integers(1, 6))
        data = copy.deepcopy(MODELS["small"]) | {"macs": macs}
        data["results"] = {} if right is None else {"pgd20": result(right * 1000)}
        models[f"m{i}"] = Entry.from_dict(f"m{i}", data)
    return Registry(protocols=registry_data({})["protocols"], datasets=TEST_SPLIT, models=models)


@given(registries(), st.integers(1, 6))
@settings(max_examples=100)
@pytest.mark.filterwarnings("ignore:left out")
def test_no_affordable_model_is_better_than_the_one_picked(registry, budget):
    able = [e for e in registry.models.values() if e.macs <= budget * 10**6 and e.results]
    try:
        picked = pick(flops=budget * 10**6, registry=registry)
    except NothingMatches:
        assert not able
        return
    assert picked in able
    assert all((e.accuracy("pgd20"), -e.macs) <= (picked.accuracy("pgd20"), -picked.macs) for e in able)


@given(registries())
@settings(max_examples=100)
def test_the_pareto_front_is_all_that_is_not_dominated(registry):
    measured = [e for e in registry.models.values() if e.results]

    def dominated(entry: Entry) -> bool:
        mine = (-entry.macs, entry.accuracy("pgd20"))
        theirs = [(-other.macs, other.accuracy("pgd20")) for other in measured]
        return any(cost >= mine[0] and gain >= mine[1] and (cost, gain) != mine for cost, gain in theirs)

    front = pareto(registry.models.values())
    expected = {(e.macs, e.accuracy("pgd20")) for e in measured if not dominated(e)}
    assert [(e.macs, e.accuracy("pgd20")) for e in front] == sorted(expected)


def test_an_empty_registry_says_that_it_is_empty(path):
    path.write_text(json.dumps(registry_data({})))
    assert list_models() == []
    with pytest.raises(NothingMatches, match="holds no model yet"):
        pick(flops="15M")
    with pytest.raises(UnknownModel, match="the registry is empty"):
        info("small")


def test_an_entry_can_be_sent_to_another_process():
    entry = pick("15M")
    sent = pickle.dumps(entry)
    assert pickle.loads(sent) == entry
    assert len(sent) < 200_000  # not the whole registry
