"""The Hub on loopback answers the client of huggingface_hub as huggingface.co does."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from hub_repos import User
from hub_server import HubServer
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, hf_hub_download
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

WEIGHTS = bytes(range(256)) * 40


@pytest.fixture
def server(tmp_path, monkeypatch):
    with HubServer() as server:
        server.users["hf_writer"] = User("me", orgs=("org",))
        server.attach(monkeypatch, tmp_path, token="hf_writer")
        yield server


def test_what_is_committed_can_be_downloaded_at_each_revision(server):
    api = HfApi()
    api.create_repo("org/tiny", private=True)
    with pytest.raises(HfHubHTTPError, match="409"):
        api.create_repo("org/tiny")
    added = [
        CommitOperationAdd("config.json", b"{}"),
        CommitOperationAdd("onnx/model.onnx", WEIGHTS[::-1]),
        CommitOperationAdd("model.safetensors", WEIGHTS),
    ]
    first = api.create_commit("org/tiny", added, commit_message="first").oid
    second = api.create_commit(
        "org/tiny",
        [CommitOperationAdd("config.json", b"[]"), CommitOperationDelete("onnx/", is_folder=True)],
        commit_message="second",
        parent_commit=first,
    ).oid
    assert [Path(hf_hub_download("org/tiny", "config.json", revision=at)).read_bytes() for at in (first, "main")] == [
        b"{}",
        b"[]",
    ]
    assert Path(hf_hub_download("org/tiny", "model.safetensors")).read_bytes() == WEIGHTS
    assert api.list_repo_files("org/tiny", revision=first) == [
        ".gitattributes",
        "config.json",
        "model.safetensors",
        "onnx/model.onnx",
    ]
    info = api.model_info("org/tiny", files_metadata=True)
    sizes = {file.rfilename: file.lfs and file.lfs.sha256 for file in info.siblings}
    assert info.sha == second
    assert sizes["model.safetensors"] == hashlib.sha256(WEIGHTS).hexdigest()
    assert [commit.title for commit in api.list_repo_commits("org/tiny")] == ["second", "first", "initial commit"]
    assert {entry.path for entry in api.list_repo_tree("org/tiny", revision=first)} >= {"onnx", "config.json"}
    assert [one.path for one in api.get_paths_info("org/tiny", ["config.json", "none"])] == ["config.json"]
    with pytest.raises(HfHubHTTPError, match="412"):
        api.create_commit("org/tiny", [CommitOperationAdd("x", b"x")], commit_message="late", parent_commit=first)
    with pytest.raises(RevisionNotFoundError):
        hf_hub_download("org/tiny", "config.json", revision="f" * 40)


def test_an_unchanged_file_makes_no_commit_and_large_ones_go_up_in_parts(server):
    server.part_size = 4000
    api = HfApi()
    api.create_repo("org/tiny")
    for _ in range(2):
        operations = [CommitOperationAdd("model.safetensors", WEIGHTS), CommitOperationAdd("a.txt", b"a")]
        oid = api.create_commit("org/tiny", operations, commit_message="first").oid
        assert api.model_info("org/tiny").sha == oid
    assert len(api.list_repo_commits("org/tiny")) == 2
    assert len(server.asked("PUT /cdn/.*/3$")) == 1
    assert server.hub.objects[hashlib.sha256(WEIGHTS).hexdigest()] == WEIGHTS


def test_private_and_gated_repositories(server, tmp_path):
    server.users |= {"hf_other": User("you"), "hf_granted": User("they", granted=("org/gated",))}
    server.hub.add("org/private", {"config.json": b"{}"}, private=True)
    server.hub.add("org/gated", {"config.json": b"{}"}, gated=True)

    def fetch(name: str, token: str | bool) -> str:
        return hf_hub_download(name, "config.json", token=token, cache_dir=tmp_path / str(token))

    assert fetch("org/private", "hf_writer")
    assert fetch("org/gated", "hf_granted")
    for token in ("hf_other", False):
        with pytest.raises(RepositoryNotFoundError):
            fetch("org/private", token)
        with pytest.raises(GatedRepoError):
            fetch("org/gated", token)
    with pytest.raises(HfHubHTTPError, match="Invalid user token"):
        HfApi().whoami("hf_wrong")
    assert HfApi().whoami()["orgs"][0]["name"] == "org"
    with pytest.raises(HfHubHTTPError, match="403"):
        HfApi(token="hf_other").create_commit("org/gated", [CommitOperationAdd("x", b"x")], commit_message="x")


@pytest.mark.parametrize("fault", [{"cut": True}, {"drop": True}, {"status": 429, "headers": {"Retry-After": "0"}}])
def test_the_client_gets_over_a_fault(server, fault):
    server.hub.add("org/tiny", {"model.safetensors": WEIGHTS})
    server.fault("GET /cdn/", **fault)
    assert Path(hf_hub_download("org/tiny", "model.safetensors")).read_bytes() == WEIGHTS
    assert len(server.asked("GET /cdn/")) == 2


def test_collections(server):
    server.hub.add("org/tiny", {"config.json": b"{}"})
    api = HfApi()
    for _ in range(2):
        made = api.create_collection("Tiny nets", namespace="org", exists_ok=True)
        made = api.add_collection_item(made.slug, "org/tiny", "model", note="8 kB", exists_ok=True)
    assert [(item.item_id, item.note) for item in made.items] == [("org/tiny", "8 kB")]
    assert [one.slug for one in api.list_collections(owner="org")] == [made.slug]
