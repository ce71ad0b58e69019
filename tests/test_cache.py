"""zoo cache: what is listed, verified and removed, and what is left alone because others made it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from hub_server import HubServer
from huggingface_hub import hf_hub_download
from test_weights import flip_a_bit
from tiny import register

from zoo.cli.app import run
from zoo.system.cache import cache_root, cached
from zoo.system.downloads import Download
from zoo.system.hub import HubFiles
from zoo.weights.load import load


@pytest.fixture
def full(folder, bundled, tmp_path, monkeypatch):
    """Caches with the model 'tiny', of two revisions, a decoded data set, a teacher's answers, and files of others."""
    with HubServer() as server:
        server.attach(monkeypatch, tmp_path)
        files = {path.name: path.read_bytes() for path in folder.iterdir()}
        pinned = server.hub.add("org/tiny", files)
        hub = {"repo_id": "org/tiny", "revision": pinned, "filename": "model.safetensors"}
        register(tmp_path, monkeypatch, bundled, hub)
        bundled.unlink()
        load("tiny")
        later = server.hub.add("org/tiny", {**files, "README.md": b"# Tiny"})
        server.hub.add("org/others", {"model.safetensors": b"of another program"})
        hf_hub_download("org/others", "model.safetensors")
        HubFiles(progress=False).fetch("org/others", "model.safetensors", None)  # found there, not made

        def write(place: Path) -> None:
            np.save(place / "images.npy", np.arange(100))

        cached("cifar10-0123456789abcdef", write)
        cached("robust-data-0123456789abcdef/0", write)
        (cache_root() / "evaluations").mkdir()
        (cache_root() / "evaluations" / f"{'0' * 64}.json").write_text("{}")
        (cache_root() / "remote").mkdir()
        (cache_root() / "remote" / ("0" * 64)).write_bytes(b"an artifact")
        (cache_root() / "mine").mkdir()
        (cache_root() / "mine" / "notes.txt").write_text("mine")
        server.pinned, server.later = pinned, later
        yield server


def said(capsys, *arguments: str, code: int = 0) -> dict:
    capsys.readouterr()
    assert run(["cache", *arguments, "--json"]) == code
    return json.loads(capsys.readouterr().out)


def names(data: dict, key: str = "items") -> list[str]:
    return [item["name"] for item in data[key]]


OWN = ["tiny", "cifar10-0123456789abcdef", "robust-data-0123456789abcdef"]
OWN += ["evaluations", "remote", "valid-registries"]


def test_what_was_made_here_is_listed_with_its_size(full, folder, capsys):
    listed = said(capsys, "ls")
    assert names(listed) == OWN
    sizes = {item["name"]: item["size"] for item in listed["items"]}
    assert sizes["tiny"] == (folder / "model.safetensors").stat().st_size
    assert listed["size"] == sum(sizes.values())
    assert names(said(capsys, "ls", "org/t*", "cifar*")) == OWN[:2]
    assert run(["cache", "ls"]) == 0
    assert "decoded data set" in capsys.readouterr().out
    assert "zoo cache ls" in said(capsys, "ls", "none", code=3)["error"]["message"]


@pytest.mark.parametrize("which", ["hub", "decoded"])
def test_a_changed_file_is_named_by_verify(full, which, tmp_path, capsys):
    assert all(not item["damaged"] for item in said(capsys, "verify")["items"])
    pattern = "hf/hub/models--org--tiny/snapshots/*/model.safetensors" if which == "hub" else "cache/robust*/0/*.npy"
    file = next(tmp_path.glob(pattern))
    flip_a_bit(file.resolve())
    found = said(capsys, "verify", code=5)["items"]
    assert {item["name"]: item["damaged"] for item in found if item["damaged"]} == {
        OWN[0] if which == "hub" else OWN[2]: [str(file)]
    }
    assert run(["cache", "verify"]) == 5
    assert f"damaged: {file}" in capsys.readouterr().out


def test_what_is_removed_is_gone_and_counted_and_the_rest_stays(full, tmp_path, capsys):
    others = {path for path in tmp_path.rglob("*") if "others" in str(path) or "mine" in str(path)}
    load("hf-hub:org/tiny", revision=full.later)
    first = said(capsys, "rm", "tiny")
    assert (names(first, "removed"), first["freed"]) == (["tiny"], 0)  # the other revision has the same weights
    load("hf-hub:org/tiny", revision=full.later, local_files_only=True)
    listed = said(capsys, "ls")
    assert names(listed) == [f"org/tiny@{full.later[:12]}", *OWN[1:]]
    rest = said(capsys, "rm", "--all")
    assert (names(rest, "removed"), rest["kept"], rest["freed"]) == (names(listed), [], listed["size"])
    assert said(capsys, "ls")["items"] == []
    assert not list((tmp_path / "hf" / "hub").glob("*tiny*"))
    assert others == {path for path in tmp_path.rglob("*") if path in others}
    assert Path(hf_hub_download("org/others", "model.safetensors", local_files_only=True)).exists()


def test_a_revision_and_folders_that_others_use_too_stay(full, tmp_path, capsys):
    readme = hf_hub_download("org/tiny", "README.md", revision=full.later)
    load("hf-hub:org/tiny", revision=full.later)
    note = cache_root() / "cifar10-0123456789abcdef" / "notes.txt"
    note.write_text("mine")
    removed = said(capsys, "rm", f"hf-hub:org/tiny@{full.later}", "cifar10-*")
    assert ["another program has put 'README.md' into" in item["why"] for item in removed["kept"]] == [True]
    assert Path(readme).exists()
    assert list(note.parent.iterdir()) == [note]


def test_what_is_asked_wrongly_is_refused(full, capsys):
    for arguments in (["rm"], ["rm", "tiny", "--all"], ["ls", "--all"], ["list"], ["import"], ["import", "a", "b"]):
        assert said(capsys, *arguments, code=2)["error"]["exit_code"] == 2
    assert "did you mean 'verify'" in said(capsys, "verfy", code=2)["error"]["message"]
    assert names(said(capsys, "ls")) == OWN


def test_a_record_of_downloads_that_is_damaged_or_forged_is_not_followed(full, tmp_path, capsys):
    valuable = tmp_path / "valuable" / "snapshots" / "c" / "file"
    valuable.parent.mkdir(parents=True)
    valuable.write_text("x")
    place = cache_root() / "downloads"
    forged = json.loads(next(place.glob("*.json")).read_text())
    (place / "forged.json").write_text(json.dumps({**forged, "path": str(valuable)}))
    (place / "damaged.json").write_text("{")
    (place / "list.json").write_text("[]")
    assert said(capsys, "rm", "--all")["kept"] == []
    assert valuable.exists()


def test_only_the_named_repository_is_removed_also_if_another_has_the_same_commit(full, tmp_path, capsys):
    cache = tmp_path / "hf" / "hub"
    for n in range(4):  # the client keeps repositories in a set
        shutil.copytree(cache / "models--org--tiny", cache / f"models--other--fork{n}", symlinks=True)
    assert names(said(capsys, "rm", "tiny"), "removed") == ["tiny"]
    assert not (cache / "models--org--tiny").exists()
    assert len(list(cache.glob("models--other--fork*/snapshots/*/model.safetensors"))) == 4


def test_weights_are_removed_also_from_a_repository_that_is_not_whole(full, tmp_path, capsys):
    refs = tmp_path / "hf" / "hub" / "models--org--tiny" / "refs"
    refs.mkdir(exist_ok=True)
    (refs / "main").write_text("0" * 40)  # a commit that did not arrive
    (refs.parent / "snapshots" / full.pinned / "config.json").symlink_to("../../blobs/gone")
    removed = said(capsys, "rm", "tiny")
    assert names(removed, "removed") == ["tiny"]
    assert removed["freed"] == removed["removed"][0]["size"]
    assert not refs.parent.exists()


def test_a_forged_record_cannot_name_a_folder_outside_of_a_repository(full, tmp_path, capsys):
    place = tmp_path / "a" / "b" / "c" / "file"
    place.parent.mkdir(parents=True)
    place.write_text("valuable")
    commit = "c" * 40
    Download("model", "org/tiny", commit, "file", str(place), 8, "0" * 64).write()
    assert f"org/tiny@{commit[:12]}" not in names(said(capsys, "rm", "--all"), "removed")
    assert place.exists()
