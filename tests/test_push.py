"""``zoo push`` against a Hub on loopback: what a repository holds, what is refused first, and what comes back."""

from __future__ import annotations

import hashlib
import json
import re
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hub_repos import Blob, User
from hub_server import HubServer
from huggingface_hub import ModelCard, constants, parse_eval_result_entries
from test_registry import FINGERPRINT, REPORTED, model, registry_data, result
from tiny import SPEC, same_function

from zoo import load
from zoo.cli.app import run
from zoo.hub import repository
from zoo.hub.card import Facts
from zoo.models import build
from zoo.registry.entry import Hub
from zoo.registry.file import PACKAGED, info, load_registry
from zoo.registry.write import write_hub
from zoo.specs import cost
from zoo.system.errors import IntegrityError
from zoo.system.files import pretty, sha256_file
from zoo.train.proard.dynamic import dynamic
from zoo.weights.folder import PREDICTOR
from zoo.weights.load import beside, find
from zoo.weights.tensors import save_weights

TOKEN = "hf_" + "s" * 30
NAMES = ("sturdy", "sturdy@2M", "frail")


@pytest.fixture(scope="module")
def shelf(tmp_path_factory) -> Path:
    """A private registry with three models and their weights, and one that nobody measured."""
    home: Path = tmp_path_factory.mktemp("shelf")
    macs, params = cost(SPEC)
    entries: dict[str, Any] = {}
    for seed, name in enumerate((*NAMES, "unmeasured")):
        torch.manual_seed(seed)
        save_weights(build(SPEC).state_dict(), home / f"{name}.safetensors")
        sha256 = sha256_file(home / f"{name}.safetensors")
        file = {"file": f"{name}.safetensors", "size": (home / f"{name}.safetensors").stat().st_size, "sha256": sha256}
        right = {"clean": 6000} if name == "unmeasured" else {"clean": 6000, "pgd20": 300 if name == "frail" else 3000}
        results = {key: result(count, sha256=sha256) for key, count in right.items()}
        facts = {"spec": SPEC.to_dict(), "macs": macs, "params": params, "weights": file, "results": results}
        entries[name] = {**model(8), **facts}
    entries["frail"] |= {"reported": REPORTED, "flags": ["masked"]}
    entries["sturdy"]["train"]["settings"] = {"teacher": {"name": "local-dir:/home/me/secret/wide"}}
    (home / "registry.json").write_text(pretty(registry_data(entries)))
    return home


@pytest.fixture
def registry(shelf, tmp_path, monkeypatch) -> Path:
    """A copy of that registry, in force."""
    path = tmp_path / "registry.json"
    path.write_bytes((shelf / "registry.json").read_bytes())
    monkeypatch.setenv("ZOO_REGISTRY", str(path))
    monkeypatch.setattr("zoo.weights.load.BUNDLED", shelf)
    return path


@pytest.fixture
def server(tmp_path, monkeypatch):
    with HubServer() as server:
        server.users[TOKEN] = User("me", orgs=("org",))
        server.attach(monkeypatch, tmp_path, token=TOKEN)
        monkeypatch.delenv("ZOO_DATA", raising=False)  # it would be decoded for each test's own cache
        yield server


@pytest.fixture
def call(capsys):
    def call(*arguments: str | Path) -> tuple[int, dict[str, Any], str]:
        code = run([*map(str, arguments), "--json"])
        out, err = capsys.readouterr()
        assert TOKEN not in out + err
        return code, json.loads(out), err

    return call


@pytest.fixture(scope="module")
def made() -> dict[str, Any]:
    return {}


@pytest.fixture(autouse=True)
def graphs(made, monkeypatch):
    """Each ONNX graph is exported once for all tests of this file."""
    export = repository._graph

    def graph(entry, folder: Path, *args: Any) -> dict[str, Any]:
        key = entry.weights.sha256
        if key not in made:
            facts = export(entry, folder, *args)
            made[key] = facts, (folder / repository.ONNX).read_bytes()
        facts, content = made[key]
        (folder / repository.ONNX).parent.mkdir(exist_ok=True)
        (folder / repository.ONNX).write_bytes(content)
        return facts

    monkeypatch.setattr(repository, "_graph", graph)


def push(call, name: str, repo_id: str = "org/{name}", *more: str | Path) -> tuple[int, Any, str]:
    code, told, err = call("push", name, "--repo-id", repo_id, *more)
    return code, told.get("pushed", told.get("error")), err


def held(server: HubServer, repo_id: str, revision: str = "main") -> dict[str, bytes]:
    files = server.hub.repos["model", repo_id].at(revision).files
    return {name: blob.content for name, blob in files.items() if name != ".gitattributes"}


def edit(registry: Path, name: str, **changes: Any) -> None:
    data = json.loads(registry.read_text())
    data["models"][name] |= changes
    registry.write_text(pretty(data))


def somebody_commits(server: HubServer, repo_id: str) -> str:
    repo = server.hub.repos["model", repo_id]
    return repo.commit({**repo.at("main").files, "notes.md": Blob(b"of somebody else", False)}).sha


# -- what a repository holds -----------------------------------------------------------------------------------------


def test_a_dry_run_leaves_every_file_and_the_card_and_asks_nobody(call, registry, shelf, server, tmp_path, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    before = registry.read_bytes()
    code, told, _ = call("push", "sturdy@2M", "--repo-id", "org/{name}", "--dry-run", "--out", tmp_path / "out")
    assert (code, server.asked(), registry.read_bytes()) == (0, [], before)
    (one,) = told["repositories"]
    folder = tmp_path / "out" / "sturdy-2M"
    assert one["repo_id"] == "org/sturdy-2M"
    assert one["card"] == (folder / "README.md").read_text()
    assert {file["path"]: (file["size"], file["sha256"]) for file in one["files"]} == {
        path.relative_to(folder).as_posix(): (path.stat().st_size, sha256_file(path))
        for path in folder.rglob("*")
        if path.is_file()
    }
    assert [file["path"] for file in one["files"]] == [
        *(".eval_results/clean.yaml", ".eval_results/pgd20.yaml", "README.md", "accuracy.svg"),
        *("config.json", "model.safetensors", "onnx/model.onnx"),
    ]
    assert sha256_file(folder / "model.safetensors") == sha256_file(shelf / "sturdy@2M.safetensors")
    assert same_function(load(f"local-dir:{folder}"), load("sturdy@2M"))
    code, told, _ = call("push", "sturdy@2M", "--repo-id", "org/{name}", "--dry-run", "--out", tmp_path / "out")
    assert (code, "exists already" in told["error"]["message"]) == (2, True)


def test_the_licence_of_a_model_can_be_stated(call, registry, server):
    code, told, _ = call("push", "sturdy", "--repo-id", "org/sturdy", "--license", "not a licence")
    assert (code, "is not the name of a licence" in told["error"]["message"], server.asked()) == (2, True, [])
    code, _, _ = call("push", "sturdy", "--repo-id", "org/sturdy", "--license", "mit")
    assert (code, info("sturdy").license) == (0, "mit")
    card = server.hub.repos["model", "org/sturdy"].at("main").files["README.md"].content.decode()
    assert ModelCard(card).data.license == "mit"
    assert "**Licence:** mit" in card


def test_card_and_records_hold_every_measurement_with_protocol_n_interval_and_threat_model(call, registry):
    _, told, _ = call("push", "sturdy", "--repo-id", "org/sturdy", "--dry-run")
    card = ModelCard(told["repositories"][0]["card"])
    data = card.data
    assert (data.library_name, data.license, data.pipeline_tag) == ("robust-zoo", "apache-2.0", "image-classification")
    assert data.datasets == ["uoft-cs/cifar10"]
    assert {"adversarial-robustness", "image-classification", "edge", "trades"} <= set(data.tags)
    entry = info("sturdy")
    assert {one.metric_args["name"]: one.metric_value for one in data.eval_results} == {"clean": 0.6, "pgd20": 0.3}
    attacked = next(one for one in data.eval_results if one.metric_args["name"] == "pgd20")
    assert attacked.metric_args["n"] == 10_000
    assert attacked.metric_args["ci95"] == pytest.approx(entry.results["pgd20"].accuracy.ci95, abs=1e-6)
    assert (attacked.metric_args["threat_model"], attacked.metric_args["steps"]) == ("linf 8/255", 20)
    assert (attacked.dataset_type, attacked.dataset_split) == ("uoft-cs/cifar10", "test")
    assert attacked.source_url == f"{constants.ENDPOINT}/org/sturdy"
    assert attacked.dataset_revision is None  # the fingerprint is not that of the released test split
    assert "**30.00 %** of 10,000 test images" in card.text
    assert "not robust" not in card.text


def test_records_are_read_by_the_hubs_own_class(call, registry, tmp_path):
    call("push", "sturdy", "--repo-id", "org/sturdy", "--dry-run", "--out", tmp_path)
    (record,) = parse_eval_result_entries(yaml.safe_load((tmp_path / "sturdy/.eval_results/pgd20.yaml").read_text()))
    assert (record.dataset_id, record.task_id, record.value) == ("uoft-cs/cifar10", "pgd20", 0.3)
    assert record.date == "2025-06-01T12:00:00+00:00"
    assert "linf 8/255, 20 steps of 2/255" in record.notes
    assert "n = 10000 images of the test split; 95 % interval 0.2911 to 0.3091" in record.notes


def test_a_model_that_an_attack_breaks_is_not_called_robust_and_a_flag_is_a_caution(call, registry):
    _, told, _ = call("push", "frail", "--repo-id", "org/frail", "--dry-run")
    text = ModelCard(told["repositories"][0]["card"]).text
    assert "**3.00 %** of 10,000" in text
    assert "**It is not robust**: guessing has 10.00 %" in text
    assert "**Caution.** masked: its gradient vanishes" in text
    assert "| pgd20 | 52.00 | A paper, Table 2 |" in text  # apart from what was measured


def test_no_folder_of_this_machine_is_published(call, registry, tmp_path):
    call("push", "sturdy", "--repo-id", "org/sturdy", "--dry-run", "--out", tmp_path / "out")
    for path in (tmp_path / "out").rglob("*"):
        content = b"" if path.is_dir() else path.read_bytes()
        assert b"secret" not in content
        assert str(tmp_path).encode() not in content
    config = json.loads((tmp_path / "out" / "sturdy" / "config.json").read_text())
    assert config["train"]["settings"]["teacher"]["name"] == "local-dir:.../wide"


def test_another_data_set_and_threat_model_are_what_the_card_says(call, registry, tmp_path, monkeypatch):
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path))  # images of CIFAR-100 that are at hand would not fit the toy model
    monkeypatch.delenv("ZOO_DATA_CIFAR100", raising=False)
    data = json.loads(registry.read_text())
    for name, dataset in (("cifar100-pgd20-l2-0.5", "cifar100"), ("imagefolder-pgd20-l2-0.5", "imagefolder")):
        asked = {**data["protocols"]["pgd20"], "name": name, "dataset": dataset}
        asked |= {"norm": "l2", "eps": 0.5, "step": 0.0625}
        entry = data["models"]["sturdy"]
        sha256 = entry["weights"]["sha256"]
        own = {"dataset": dataset, "threat": {"norm": "l2", "eps": 0.5}, "results": {name: result(3000, sha256=sha256)}}
        data["models"]["frail" if dataset == "cifar100" else "sturdy@2M"] = {**entry, **own}
        data["protocols"][name] = asked
        data["datasets"][dataset] = {"splits": {"test": {"n": 10_000, "sha256": FINGERPRINT}}}
    registry.write_text(pretty(data))
    cards = {}
    for name in ("frail", "sturdy@2M"):
        code, told, _ = call("push", name, "--repo-id", "org/{name}", "--dry-run")
        assert code == 0, told
        cards[name] = told["repositories"][0]
    card = ModelCard(cards["frail"]["card"])
    assert card.data.datasets == ["uoft-cs/cifar100"]
    assert "change the image by at most 0.5 in the Euclidean norm" in card.text
    assert "| cifar100-pgd20-l2-0.5 | pgd, l2 0.5, 20 steps of 0.0625, loss ce | 30.00 |" in card.text
    assert "zoo eval hf-hub:org/frail -p cifar100-pgd20-l2-0.5 -n 1000" in card.text
    own = ModelCard(cards["sturdy@2M"]["card"])  # its images are nowhere on the Hub
    assert own.data.datasets is None
    assert not [file for file in cards["sturdy@2M"]["files"] if file["path"].startswith(".eval_results")]
    assert own.data.eval_results[0].dataset_type == "imagefolder"


# -- refused first ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["unmeasured", "--repo-id", "org/x"], 2, "'unmeasured' was measured only without attack"),
        (["*", "--repo-id", "org/{name}"], 2, "'unmeasured' was measured only without attack"),
        (["sturd*", "--repo-id", "org/x"], 2, "2 models need a repository each: write {name} into --repo-id"),
        (["sturdy", "--repo-id", "sturdy"], 2, "'sturdy' is not a Hub repository"),
        (["sturdy", "--repo-id", "org/a--b"], 2, "'org/a--b' is not a Hub repository"),
        (["sturdy", "--repo-id", "org/../x"], 2, "'org/../x' is not a Hub repository"),
        (["sturd", "--repo-id", "org/x"], 3, "no model is called 'sturd'; did you mean 'sturdy'"),
        (["none*", "--repo-id", "org/{name}"], 3, "no model's name matches 'none*'"),
        (["sturdy", "--repo-id", "org/x", "--out", "x"], 2, "--out is where --dry-run leaves the files"),
        (["sturdy", "--repo-id", "org/x", "--offline"], 4, "a push needs the Hub"),
        (["sturd*", "--repo-id", "org/{name}", "--parent", "0" * 40], 2, "--parent is a commit of one repository"),
    ],
)
def test_what_can_be_refused_is_refused_before_the_hub_is_asked(arguments, code, told, call, registry, server):
    found, answer, _ = call("push", *arguments)
    assert (found, server.asked()) == (code, [])
    assert told in answer["error"]["message"]


def test_a_registry_that_cannot_be_written_is_found_first(call, registry, server, monkeypatch):
    monkeypatch.setattr("os.access", lambda path, mode: path != registry.parent)  # root may write everywhere
    code, error, _ = push(call, "sturdy")
    assert (code, server.asked()) == (2, [])
    assert f"the registry '{registry}', which gets the commits, cannot be written" in error["message"]


def test_without_a_token_that_may_write_one_sentence_says_how_to_log_in(call, registry, server, monkeypatch):
    server.users["hf_reader"] = User("me", orgs=("org",), may_write=False)
    known = {"": "without a token", "hf_reader": "for reading alone", "hf_old": "does not take the token"}
    for token, told in known.items():
        monkeypatch.setenv("HF_TOKEN", token)
        code, error, _ = push(call, "sturdy")
        assert (code, told in error["message"], "`hf auth login`" in error["message"]) == (4, True, True)
    assert not server.asked("POST")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set" in push(call, "sturdy")[1]["message"]


def test_a_repository_of_something_else_is_refused_before_any_upload(call, registry, server):
    server.hub.add("org/sturdy", {"config.json": b'{"name": "other", "spec": {}}', "model.safetensors": b"x"})
    server.hub.add("org/sturdy-2M", {"pytorch_model.bin": b"x"})
    code, error, _ = push(call, "sturdy*")
    assert (code, error["message"]) == (
        2,
        "'org/sturdy' holds the model 'other', not 'sturdy': choose another repository",
    )
    assert "'org/sturdy-2M' holds something else" in push(call, "sturdy@2M")[1]["message"]
    server.hub.add("org/frail", {".gitattributes": b""})
    assert "is public already" in push(call, "frail", "org/{name}", "--private")[1]["message"]
    assert not server.asked("POST|PUT")


def test_an_organisation_that_the_token_may_not_write_to_is_one_sentence(call, registry, server):
    server.hub.add("closed/sturdy", {".gitattributes": b""}, private=True)
    server.hub.add("gated/sturdy", {".gitattributes": b""}, gated=True)
    for place in ("theirs/sturdy", "closed/sturdy", "gated/sturdy"):
        code, error, _ = push(call, "sturdy", place)
        assert (code, "does not let this token write to" in error["message"]) == (4, True)
    assert not info("sturdy").weights.hub
    assert not server.asked("PUT")
    server.hub.add("org/gated", {".gitattributes": b""}, gated=True, private=True)
    assert push(call, "sturdy", "org/gated", "--private")[0] == 0


# -- round trips -----------------------------------------------------------------------------------------------------


def test_what_was_pushed_is_loaded_from_the_pinned_commit_with_the_same_hash(
    call, registry, server, tmp_path, monkeypatch
):
    code, done, _ = push(call, "sturdy", "org/sturdy", "--private", "--registry", registry)
    assert (code, len(done[0]["changed"])) == (0, 7)
    assert server.hub.repos["model", "org/sturdy"].private
    hub = info("sturdy").weights.hub
    assert (hub.repo_id, hub.revision, hub.filename) == ("org/sturdy", done[0]["revision"], "model.safetensors")
    somebody_commits(server, "org/sturdy")
    expected = load("sturdy")
    monkeypatch.setattr("zoo.weights.load.BUNDLED", tmp_path / "empty")
    code, told, _ = call("pull", "sturdy")
    (file,) = told["files"]
    assert (code, file["source"], file["revision"]) == (0, "hub", done[0]["revision"])
    assert file["sha256"] == sha256_file(Path(file["path"])) == info("sturdy").weights.sha256
    assert same_function(load("sturdy"), expected)
    assert same_function(load("hf-hub:org/sturdy"), expected)
    server.hub.objects[info("sturdy").weights.sha256] = b"\0" * info("sturdy").weights.size
    with pytest.raises(IntegrityError):
        load("sturdy", cache_dir=tmp_path / "another")


def test_a_second_push_makes_no_commit_and_a_change_is_one_clean_update(call, registry, server):
    _, first, _ = push(call, "sturdy")
    repo = server.hub.repos["model", "org/sturdy"]
    before = registry.read_bytes()
    code, again, _ = push(call, "sturdy")
    assert (code, again) == (0, [{**first[0], "changed": [], "deleted": []}])
    assert (len(repo.commits), registry.read_bytes()) == (2, before)
    entry = json.loads(registry.read_text())["models"]["sturdy"]
    edit(registry, "sturdy", results={"pgd20": entry["results"]["pgd20"]}, description="Measured anew")
    _, third, _ = push(call, "sturdy")
    assert third[0]["deleted"] == [".eval_results/clean.yaml"]
    assert set(third[0]["changed"]) == {"README.md", "accuracy.svg", "config.json"}
    head = repo.at("main")
    assert (head.sha, head.parent) == (third[0]["revision"], first[0]["revision"])
    assert "Measured anew" in held(server, "org/sturdy")["README.md"].decode()
    assert ".gitattributes" in head.files
    assert info("sturdy").weights.hub.revision == head.sha


def test_a_registry_that_lost_the_commit_finds_it_again_without_a_new_one(call, registry, server):
    before = registry.read_bytes()
    _, first, _ = push(call, "sturdy")
    registry.write_bytes(before)
    assert push(call, "sturdy")[1] == [{**first[0], "changed": [], "deleted": []}]
    assert info("sturdy").weights.hub.revision == first[0]["revision"]


def test_a_commit_of_somebody_else_is_a_conflict_and_stays(call, registry, server):
    push(call, "sturdy")
    theirs, before = somebody_commits(server, "org/sturdy"), registry.read_bytes()
    code, error, _ = push(call, "sturdy")
    assert (code, registry.read_bytes()) == (5, before)
    assert f"'org/sturdy' is at commit {theirs}, and the registry knows" in error["message"]
    assert held(server, "org/sturdy")["notes.md"] == b"of somebody else"
    code, done, _ = push(call, "sturdy", "org/sturdy", "--parent", theirs)
    assert (code, done[0]["deleted"], info("sturdy").weights.hub.revision) == (0, ["notes.md"], done[0]["revision"])


def test_a_commit_during_the_upload_is_a_conflict_and_stays(call, registry, server):
    push(call, "sturdy")
    edit(registry, "sturdy", description="Changed")
    before = registry.read_bytes()
    server.fault("POST .*/commit/", then=lambda: somebody_commits(server, "org/sturdy"))
    code, error, _ = push(call, "sturdy")
    assert (code, registry.read_bytes()) == (5, before)
    assert "has a commit that was not there before, and nothing was written" in error["message"]
    assert held(server, "org/sturdy")["notes.md"] == b"of somebody else"


@pytest.mark.parametrize("fault", [{"status": 429, "headers": {"Retry-After": "7"}}, {"status": 503}, {"drop": True}])
def test_a_refused_commit_leaves_the_registry_and_the_next_push_goes_on(fault, call, registry, server):
    before = registry.read_bytes()
    server.fault("POST .*/commit/", **fault)
    code, error, _ = push(call, "sturdy")
    assert (code, registry.read_bytes(), held(server, "org/sturdy")) == (4, before, {})
    assert "try again" in error["message"]
    sent = len(server.asked("PUT /cdn/"))
    assert push(call, "sturdy")[0] == 0
    assert len(server.asked("PUT /cdn/")) == sent  # the weights are there already


def test_an_answer_that_was_lost_is_found_by_the_next_push(call, registry, server):
    server.fault("POST .*/commit/", cut=True)
    assert push(call, "sturdy")[0] == 4
    assert info("sturdy").weights.hub is None
    code, done, _ = push(call, "sturdy")
    assert (code, done[0]["changed"]) == (0, [])
    assert info("sturdy").weights.hub.revision == server.hub.repos["model", "org/sturdy"].at("main").sha


def test_a_hub_that_loses_a_file_is_found_out_before_the_registry_refers_to_it(call, registry, server, monkeypatch):
    true = server.hub.apply

    def lossy(repo, branch, header, operations, author):
        return true(repo, branch, header, [one for one in operations if one["value"]["path"] != "accuracy.svg"], author)

    monkeypatch.setattr(server.hub, "apply", lossy)
    before = registry.read_bytes()
    code, error, _ = push(call, "sturdy")
    assert (code, registry.read_bytes()) == (5, before)
    assert "what was sent: the registry was not changed" in error["message"]


def test_a_token_that_a_server_sends_back_is_not_shown(call, registry, server):
    server.fault("POST .*/commit/", status=400, headers={"X-Error-Message": f"bad token {TOKEN}"})
    _, error, _ = push(call, "sturdy")
    assert "bad token ***" in error["message"]


def test_a_family_and_its_collection_are_one_command(call, registry, server):
    code, told, _ = call("push", "sturdy*", "--repo-id", "org/{name}", "--collection", "Sturdy ones")
    assert code == 0
    assert [one["repo_id"] for one in told["pushed"]] == ["org/sturdy", "org/sturdy-2M"]
    (shown,) = server.hub.collections.values()
    assert (shown["title"], [item["id"] for item in shown["items"]]) == ("Sturdy ones", ["org/sturdy", "org/sturdy-2M"])
    assert shown["slug"] in told["collection"]
    call("push", "sturdy", "--repo-id", "org/{name}", "--collection", "Sturdy ones")
    assert len(server.hub.collections) == 1
    assert len(shown["items"]) == 2


def test_models_are_published_though_their_collection_is_refused(call, registry, server):
    server.fault("POST /api/collections", status=403)
    code, told, err = call("push", "sturdy", "--repo-id", "org/{name}", "--collection", "Sturdy ones")
    assert (code, told["collection"]) == (4, None)
    assert told["pushed"][0]["revision"] == info("sturdy").weights.hub.revision
    assert "does not let this token write to the collection 'Sturdy ones'" in err


def test_one_conflict_does_not_stop_the_others(call, registry, server):
    push(call, "sturdy")
    somebody_commits(server, "org/sturdy")
    code, told, err = call("push", "sturdy*", "--repo-id", "org/{name}", "--collection", "Sturdy ones")
    first, second = told["pushed"]
    assert (code, first["error"]["exit_code"], second["revision"]) == (5, 5, info("sturdy@2M").weights.hub.revision)
    assert "no collection was made" in err
    assert not server.hub.collections


# -- snippets --------------------------------------------------------------------------------------------------------


def test_the_snippets_of_a_card_run(call, registry, server, found, toy, tmp_path, monkeypatch, capsys):
    push(call, "sturdy")
    found(toy)
    monkeypatch.chdir(tmp_path)
    text = held(server, "org/sturdy")["README.md"].decode()
    snippets = re.findall(r"```(\w+)\n(.*?)```", text, re.DOTALL)
    assert [kind for kind, _ in snippets] == ["python", "console", "python"]
    for kind, snippet in snippets:
        if kind == "python":
            exec(snippet, {})
            assert re.fullmatch(r"(tensor\()?\[\d\]\)?\n", capsys.readouterr().out)
            continue
        for line in snippet.splitlines():
            program, *arguments = shlex.split(line.removeprefix("$ "))
            assert program == "zoo"
            limit = {"eval": ["-n", "20"], "export": ["--verify", "parity"]}.get(arguments[0], [])
            code = run([*arguments, *limit, "-q"])
            assert code == 0, capsys.readouterr().err
        capsys.readouterr()
    assert [*(tmp_path / "bundles").iterdir()]


# -- sub-nets --------------------------------------------------------------------------------------------------------


def test_a_sub_net_is_loaded_from_its_repository_alone_and_by_the_registry(call, server, tmp_path, monkeypatch):
    """The registry's file of a sub-net holds BatchNorm statistics; the repository holds the whole net too."""
    path = tmp_path / "registry.json"
    path.write_bytes(PACKAGED.read_bytes())
    expected = load("proard-tiny@4M")
    code, told, _ = call("push", "proard-tiny@4M", "--repo-id", "org/{name}", "--registry", path)
    assert (code, told["pushed"][0]["repo_id"]) == (0, "org/proard-tiny-4M")
    assert same_function(load("hf-hub:org/proard-tiny-4M"), expected)
    monkeypatch.setenv("ZOO_REGISTRY", str(path))
    entry = info("proard-tiny@4M")
    assert entry.weights.hub.filename == "subnet.safetensors"
    released = load_registry().models["proard-tiny"]
    (tmp_path / "bundled").mkdir()
    (tmp_path / "bundled" / released.weights.file).symlink_to(beside(released.weights.file))
    monkeypatch.setattr("zoo.weights.load.BUNDLED", tmp_path / "bundled")
    assert same_function(load("proard-tiny@4M"), expected)


def test_the_predictor_of_a_dynamic_net_is_fetched_from_the_commit_of_its_weights(server, tmp_path, monkeypatch):
    released = info("proard-tiny").weights
    file = beside(released.file)
    stored = file, file.with_name(f"proard-tiny.{PREDICTOR}")
    revision = server.hub.add(
        "org/net", dict(zip(("model.safetensors", PREDICTOR), map(Path.read_bytes, stored), strict=True))
    )
    server.hub.add("org/net", {"README.md": b"the head has neither"})
    path = tmp_path / "registry.json"
    path.write_bytes(PACKAGED.read_bytes())
    hub = Hub(repo_id="org/net", revision=revision, filename="model.safetensors")
    write_hub("proard-tiny", released.sha256, hub, path=path)
    monkeypatch.setenv("ZOO_REGISTRY", str(path))
    monkeypatch.setattr("zoo.weights.load.BUNDLED", tmp_path / "empty")
    assert dynamic("proard-tiny").predictor().weights_sha256 == released.sha256
    found = find("proard-tiny")
    assert sha256_file(found.companion(PREDICTOR)) == sha256_file(stored[1])  # what a push from here would send


@pytest.mark.slow
def test_every_released_model_goes_to_the_hub_and_comes_back_with_its_hash(call, server, tmp_path, monkeypatch):
    path = tmp_path / "registry.json"
    path.write_bytes(PACKAGED.read_bytes())
    released = load_registry().models
    expected = {name: load(name) for name in released}
    everything = ("push", "*", "--repo-id", "org/{name}", "--collection", "Robust Zoo", "--registry", path)
    code, told, _ = call(*everything)
    assert (code, [one["name"] for one in told["pushed"]]) == (0, [*released])
    monkeypatch.setenv("ZOO_REGISTRY", str(path))
    monkeypatch.setattr("zoo.weights.load.BUNDLED", tmp_path / "empty")
    for one in told["pushed"]:
        weights, files = info(one["name"]).weights, held(server, one["repo_id"], one["revision"])
        assert (
            hashlib.sha256(files[weights.hub.filename]).hexdigest()
            == weights.sha256
            == released[one["name"]].weights.sha256
        )
        again, alone = load(one["name"]), load(f"hf-hub:{one['repo_id']}@{one['revision']}")
        assert same_function(again, expected[one["name"]])
        assert same_function(alone, expected[one["name"]])
        print(f"{one['repo_id']}@{one['revision'][:12]} {weights.hub.filename} sha256 {weights.sha256[:16]}")
    (shown,) = server.hub.collections.values()
    assert len(shown["items"]) == len(released)
    assert PREDICTOR in held(server, "org/proard-tiny")


def test_a_card_names_first_the_autoattack_on_the_most_images():
    entry, registry = info("nfgsm-w4"), load_registry()
    less = replace(entry, results={key: one for key, one in entry.results.items() if key != "autoattack10k"})
    assert Facts(entry, registry, "me/nfgsm-w4").strongest == "autoattack10k"
    assert Facts(less, registry, "me/nfgsm-w4").strongest == "autoattack"


def test_a_dry_run_that_fails_leaves_nothing_in_the_way_of_the_next(call, registry, tmp_path, monkeypatch):
    def full(order_found, facts, folder, **options):
        folder.mkdir(parents=True)
        (folder / "README.md").write_text("half")
        raise OSError(28, "No space left on device")

    asked = ("push", "sturdy", "--repo-id", "org/sturdy", "--dry-run", "--out", tmp_path / "out")
    with monkeypatch.context() as patched:
        patched.setattr("zoo.hub.push.write_repository", full)
        assert call(*asked)[0] == 1
    assert call(*asked)[0] == 0
    assert (tmp_path / "out" / "sturdy" / "README.md").is_file()
