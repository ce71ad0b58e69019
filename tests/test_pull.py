"""Weights from the Hub, over HTTP: the unmodified client and a Hub on loopback, with the faults of real networks."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import signal
import stat
import subprocess
import sys
import threading
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from hub_repos import User
from hub_server import HubServer
from huggingface_hub import hf_hub_download
from test_datasets import written
from test_weights import flip_a_bit
from tiny import SPEC, register, same_function

from zoo.cli.app import run
from zoo.models import build
from zoo.registry.write import write_aliases
from zoo.system.errors import DataNotFound, IntegrityError, Unreachable
from zoo.weights.load import load
from zoo.weights.tensors import save_weights

TOKEN = "hf_reader_0123456789"
LARGE = "GET /cdn/"


@pytest.fixture
def server(tmp_path, monkeypatch):
    with HubServer() as server:
        server.attach(monkeypatch, tmp_path)
        yield server


@pytest.fixture
def student(server, folder) -> str:
    """The model folder as the repository org/tiny; returns the commit."""
    return server.hub.add("org/tiny", {path.name: path.read_bytes() for path in folder.iterdir()})


@pytest.fixture
def registered(server, student, bundled, tmp_path, monkeypatch) -> str:
    """The model 'tiny' of a registry whose weights are only at the Hub; returns the commit."""
    hub = {"repo_id": "org/tiny", "revision": student, "filename": "model.safetensors"}
    register(tmp_path, monkeypatch, bundled, hub)
    bundled.unlink()
    return student


def pulled(capsys, *arguments: str, code: int = 0) -> dict:
    """The JSON that zoo pull prints."""
    capsys.readouterr()
    assert run(["pull", *arguments, "--json"]) == code
    return json.loads(capsys.readouterr().out)


def sources(data: dict) -> list[str]:
    return [file["source"] for file in data["files"]]


def blobs(home: Path) -> list[str]:
    return sorted(path.name for path in (home / "hf" / "hub").glob("*/blobs/*"))


# -- round trips ---------------------------------------------------------------------------------------------------


def test_a_name_is_pulled_at_its_pinned_revision_and_loads_offline_afterwards(server, registered, net, folder, capsys):
    server.hub.add("org/tiny", {"model.safetensors": b"another one", "config.json": b"{}"})  # the branch moves on
    first = pulled(capsys, "tiny")
    assert sources(first) == ["hub"]
    assert first["files"][0]["sha256"] == hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert first["files"][0]["revision"] == registered
    assert sources(pulled(capsys, "t?ny")) == ["cache"]
    assert len(server.asked(LARGE)) == 1
    asked = len(server.requests)
    assert same_function(load("tiny", local_files_only=True), net)
    server.stop()
    assert same_function(load("tiny"), net)
    assert len(server.requests) == asked


def test_the_package_comes_first_then_the_cache(server, student, bundled, tmp_path, monkeypatch, capsys):
    hub = {"repo_id": "org/tiny", "revision": student, "filename": "model.safetensors"}
    register(tmp_path, monkeypatch, bundled, hub)
    assert sources(pulled(capsys, "tiny")) == ["package"]
    assert not server.requests


def test_a_repository_is_pulled_at_its_newest_commit_and_both_files_are_of_one_commit(server, student, folder, capsys):
    first = pulled(capsys, "hf-hub:org/tiny")
    assert sources(first) == ["hub", "hub"]
    assert {file["revision"] for file in first["files"]} == {student}
    torch.manual_seed(1)
    save_weights(build(SPEC).state_dict(), folder / "model.safetensors")
    config = (folder / "config.json").read_bytes()
    second = server.hub.add("org/tiny", {"config.json": config, "model.safetensors": b"damaged" * 99})
    third = server.hub.add(
        "org/tiny", {"config.json": config, "model.safetensors": (folder / "model.safetensors").read_bytes()}
    )
    assert same_function(load("hf-hub:org/tiny"), load(f"hf-hub:org/tiny@{student}"))  # load takes what is there
    moved = pulled(capsys, "hf-hub:org/tiny")
    assert {file["revision"] for file in moved["files"]} == {third}
    assert sources(moved) == ["cache", "hub"]  # the config is the same: its etag hits
    assert same_function(load("hf-hub:org/tiny"), load("hf-hub:org/tiny", revision=third))
    assert pulled(capsys, f"hf-hub:org/tiny@{second}", code=5)["error"]["type"] == "IntegrityError"


def test_weights_are_of_the_commit_of_the_config_also_if_the_branch_moves_on(server, student, net):
    hf_hub_download("org/tiny", "config.json")
    server.hub.add("org/tiny", {"config.json": b"{}", "model.safetensors": b"of another architecture"})
    assert same_function(load("hf-hub:org/tiny"), net)


def test_a_branch_of_a_repository_that_is_not_there(server, student, capsys):
    for name, says in (
        ("hf-hub:org/tiny@v2", "no such revision"),
        ("hf-hub:org/none", "no such repository, or it is private"),
        ("hf-hub:org//none", "write it as organisation/name"),
        ("local-dir:/tmp", "is not on the Hub"),
        ("no-such-*", "no model's name matches"),
    ):
        assert (
            says
            in pulled(capsys, name, code=2 if "//" in name or "local" in name else 3 if "*" in name else 4)["error"][
                "message"
            ]
        )
    server.hub.add("org/bare", {"config.json": b'{"spec": {"arch": "resnet"}}'})
    assert "no such file" in pulled(capsys, "hf-hub:org/bare", code=4)["error"]["message"]


def test_an_entry_without_a_place_at_the_hub_is_refused_in_a_sentence(bundled, capsys):
    bundled.unlink()
    message = pulled(capsys, "tiny", code=4)["error"]["message"]
    assert "neither in the package nor at the Hub" in message


def test_a_glob_matches_aliases_too(registered, capsys):
    write_aliases("tiny", ["wee"])
    assert [file["name"] for file in pulled(capsys, "we*")["files"]] == ["tiny"]


# -- faults --------------------------------------------------------------------------------------------------------


def test_a_damaged_body_of_the_same_size_is_fetched_once_more(server, registered, net, capsys):
    server.fault(LARGE, flip=True)
    assert sources(pulled(capsys, "tiny")) == ["hub"]
    assert len(server.asked(LARGE)) == 2
    assert same_function(load("tiny", local_files_only=True), net)


def test_a_body_that_stays_damaged_is_an_integrity_error(server, registered, capsys):
    server.fault(LARGE, flip=True, times=9)
    assert "SHA-256" in pulled(capsys, "tiny", code=5)["error"]["message"]
    assert len(server.asked(LARGE)) == 2
    with pytest.raises(IntegrityError):  # what is left in the cache is not used
        load("tiny", local_files_only=True)


def test_a_damaged_config_is_noticed_by_gits_hash(server, student, capsys):
    server.fault("GET /api/resolve-cache/.*config.json", flip=True)
    pulled(capsys, "hf-hub:org/tiny")
    assert len(server.asked("GET /api/resolve-cache/.*config.json")) == 2
    server.fault("GET /api/resolve-cache/.*config.json", flip=True, times=9)
    server.hub.add("org/other", {"config.json": b'{"spec": {}}', "model.safetensors": b"0"})
    assert "the Hub's hash" in pulled(capsys, "hf-hub:org/other", code=5)["error"]["message"]


@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
def test_damage_is_noticed_where_the_cache_has_no_links(server, student, file, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_SYMLINKS", True)
    route = LARGE if file == "model.safetensors" else "GET /api/resolve-cache/.*config.json"
    server.fault(route, flip=True)
    pulled(capsys, "hf-hub:org/tiny")
    assert len(server.asked(route)) == 2
    path = next(tmp_path.glob(f"hf/hub/models--org--tiny/snapshots/*/{file}"))
    assert not path.is_symlink()
    flip_a_bit(path)
    with pytest.raises(IntegrityError):
        load("hf-hub:org/tiny", local_files_only=True)
    load("hf-hub:org/tiny")
    assert len(server.asked(route)) == 3


def test_damage_that_cannot_be_mended_is_named_and_not_the_network_alone(server, registered, tmp_path, capsys):
    pulled(capsys, "tiny")
    flip_a_bit(next(tmp_path.glob("hf/hub/*/snapshots/*/model.safetensors")).resolve())
    server.stop()
    message = pulled(capsys, "tiny", code=5)["error"]["message"]
    assert "SHA-256" in message
    assert "another download failed" in message


@pytest.mark.parametrize("fault", [{"cut": True}, {"drop": True}, {"status": 429, "headers": {"Retry-After": "0"}}])
def test_short_faults_are_got_over(server, registered, net, fault, monkeypatch, capsys):
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 1000)
    server.fault(LARGE, **fault)
    pulled(capsys, "tiny")
    assert same_function(load("tiny", local_files_only=True), net)
    ranges = [request.range for request in server.requests if request.line.startswith(LARGE)]
    assert len(ranges) == 2
    assert (ranges[1] is not None) == ("cut" in fault)  # what has arrived is not fetched again


@pytest.mark.parametrize(
    ("route", "fault", "says"),
    [
        ("HEAD .*/resolve/", {"status": 503}, "the Hub is out of order (HTTP status 503)"),
        ("HEAD .*/resolve/", {"status": 429, "headers": {"Retry-After": "0"}}, "too many requests"),
        (LARGE, {"status": 429, "headers": {"Retry-After": "0"}}, "too many requests"),
        (LARGE, {"short": True}, "could not be fetched"),
        (LARGE, {"drop": True}, "cannot be reached"),
    ],
)
def test_lasting_faults_end_in_a_sentence_and_leave_nothing_behind(
    server, registered, tmp_path, route, fault, says, capsys
):
    server.fault(route, times=99, **fault)
    assert says in pulled(capsys, "tiny", code=4)["error"]["message"]
    assert blobs(tmp_path) == []


def test_a_server_that_is_killed_in_the_middle_and_comes_back(server, registered, net, capsys):
    server.fault(LARGE, cut=True, then=lambda: (server.stop(), server.start()))  # all connections end with stop
    pulled(capsys, "tiny")
    assert same_function(load("tiny", local_files_only=True), net)


def test_what_a_killed_process_leaves_is_removed_by_the_next(server, registered, tmp_path, monkeypatch, capsys):
    arrived, go_on = threading.Event(), threading.Event()
    server.fault(LARGE, cut=True, then=lambda: (arrived.set(), go_on.wait(30)))
    code = "from huggingface_hub import hf_hub_download; hf_hub_download('org/tiny', 'model.safetensors')"
    process = subprocess.Popen([sys.executable, "-c", code], env=server.environment(tmp_path))
    assert arrived.wait(30)
    storage = tmp_path / "hf" / "hub" / "models--org--tiny"
    server.hub.add("org/tiny", {"config.json": b'{"spec": {}}', "model.safetensors": b"0"}, branch="other")
    assert pulled(capsys, "hf-hub:org/tiny@other", code=2)  # a malformed spec, after its download
    assert len(list(storage.glob("blobs/*.incomplete"))) == 1  # it is still being written
    process.send_signal(signal.SIGKILL)
    process.wait()
    go_on.set()
    pulled(capsys, "tiny")
    assert not list(storage.glob("blobs/*.incomplete"))


def test_two_processes_that_pull_at_once_share_one_download(server, registered, tmp_path):
    met = threading.Barrier(2, timeout=30)
    server.fault("HEAD .*/resolve/", times=2, then=met.wait)
    environment = {**server.environment(tmp_path), "ZOO_REGISTRY": os.environ["ZOO_REGISTRY"]}
    both = [
        subprocess.Popen(
            [sys.executable, "-m", "zoo", "pull", "hf-hub:org/tiny", "--json", "-q"],
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    answers = [json.loads(process.communicate(timeout=60)[0]) for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert len({file["path"] for answer in answers for file in answer["files"]}) == 2
    assert len(server.asked(LARGE)) == 1


# -- who may read --------------------------------------------------------------------------------------------------


def test_private_and_gated_repositories_and_where_the_token_goes(server, folder, tmp_path, monkeypatch, capsys):
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    server.hub.add("org/private", files, private=True)
    server.hub.add("org/gated", files, gated=True)
    server.users |= {TOKEN: User("org"), "hf_stranger_0123": User("you")}
    for token in (None, "hf_stranger_0123"):
        if token:
            monkeypatch.setenv("HF_TOKEN", token)
        private = pulled(capsys, "hf-hub:org/private", code=4)["error"]["message"]
        assert "hf auth login" in private
        gated = pulled(capsys, "hf-hub:org/gated", code=4)["error"]["message"]
        assert "is gated: ask for access" in gated
    monkeypatch.setenv("HF_TOKEN", "hf_revoked")
    assert "does not accept the token" in pulled(capsys, "hf-hub:org/gated", code=4)["error"]["message"]
    monkeypatch.delenv("HF_TOKEN")
    (tmp_path / "hf").mkdir(exist_ok=True)
    (tmp_path / "hf" / "token").write_text(TOKEN)  # as `hf auth login` stores it
    pulled(capsys, "hf-hub:org/private")
    pulled(capsys, "hf-hub:org/gated")
    sent = {request.token for request in server.requests if request.line.startswith(("GET /cdn", "HEAD /cdn"))}
    assert sent == {None}  # the token does not leave the Hub's host
    stored = [path for path in tmp_path.rglob("*") if path.is_file() and path.name != "token"]
    assert not any(TOKEN.encode() in path.read_bytes() for path in stored)


def test_a_token_that_a_server_repeats_is_not_shown(server, student, monkeypatch, capsys):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    server.users[TOKEN] = User("you")
    told = {"X-Error-Message": f"Bearer {TOKEN} has no scope for this"}
    server.fault("HEAD .*/resolve/", times=9, status=403, headers=told)
    run(["pull", "hf-hub:org/tiny", "--json"])
    said = capsys.readouterr()
    assert "has no scope" in said.out
    assert TOKEN not in said.out + said.err


def test_secrets_in_addresses_are_not_shown(server, student, monkeypatch, capsys):
    told = {"X-Error-Message": "Forbidden for https://storage.example/a/b?Signature=s3cret&Expires=9 today"}
    server.fault("HEAD .*/resolve/", times=9, status=403, headers=told)
    assert "https://storage.example/a/b today" in pulled(capsys, "hf-hub:org/tiny", code=4)["error"]["message"]
    server.stop()
    secret, warned = server.url.replace("//", "//me:s3cret@"), []
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", secret)
    template = secret + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
    handler = logging.Handler()
    handler.emit = lambda record: warned.append(record.getMessage())
    logger = logging.getLogger("huggingface_hub")
    logger.addHandler(handler)
    message = pulled(capsys, "hf-hub:org/tiny", code=4)["error"]["message"]
    logger.removeHandler(handler)
    assert server.url in message
    assert any(server.url in line for line in warned)  # of the client, which tries again
    assert "s3cret" not in " ".join([message, *warned])


# -- networks and disks --------------------------------------------------------------------------------------------


def test_mirrors_proxies_and_what_is_no_hub(server, student, tmp_path, monkeypatch, capsys):
    environment = server.environment(tmp_path)  # HF_ENDPOINT names the server: it is the mirror
    ask = [sys.executable, "-m", "zoo", "pull", "hf-hub:org/tiny", "--json"]
    missed = subprocess.run([*ask, "--offline"], env=environment, capture_output=True, text=True)
    assert (missed.returncode, server.requests) == (4, [])
    done = subprocess.run(ask, env=environment, capture_output=True, text=True, check=True)
    assert sources(json.loads(done.stdout)) == ["hub", "hub"]
    server.requests.clear()
    proxied = {**environment, "HF_ENDPOINT": "http://hub.invalid", "HTTP_PROXY": server.url, "NO_PROXY": ""}
    proxied |= {"HF_HOME": str(tmp_path / "other")}
    done = subprocess.run(ask, env=proxied, capture_output=True, text=True, check=True)  # no other way to hub.invalid
    assert sources(json.loads(done.stdout)) == ["hub", "hub"]
    with HubServer() as other:
        other.fault("", times=99, status=200)  # a portal that answers everything
        other.attach(monkeypatch, tmp_path / "third")
        assert "does not answer as a Hub" in pulled(capsys, "hf-hub:org/tiny", code=4)["error"]["message"]


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [("HTTP_PROXY", "socks5://localhost:1", "SOCKS"), ("HF_TOKEN", "hf_\u00fc", "the token has")],
)
def test_what_the_http_client_cannot_use_is_named(server, student, name, value, says, monkeypatch, capsys):
    if find_spec("socksio") and name == "HTTP_PROXY":
        pytest.skip("SOCKS can be used here")
    monkeypatch.setenv(name, value)
    monkeypatch.setenv("NO_PROXY", "")
    assert says in pulled(capsys, "hf-hub:org/tiny", code=4)["error"]["message"]


def test_a_hub_that_is_not_there_is_named(server, tmp_path, capsys):
    server.stop()
    message = pulled(capsys, "hf-hub:org/tiny", code=4)["error"]["message"]
    assert server.url in message
    assert "cannot be reached" in message


@pytest.mark.parametrize("how", ["--offline", "HF_HUB_OFFLINE"])
def test_offline_nothing_is_asked(server, registered, how, monkeypatch, capsys):
    if how == "HF_HUB_OFFLINE":
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for name in ("tiny", "hf-hub:org/tiny"):
        message = pulled(capsys, name, *(["--offline"] if how == "--offline" else []), code=4)["error"]["message"]
        assert "the network must not be used" in message
    assert not server.requests


def test_a_cache_that_cannot_be_made_is_named(server, registered, tmp_path, capsys):
    (tmp_path / "hf").write_text("a file, where the cache would be")
    message = pulled(capsys, "tiny", code=4)["error"]["message"]
    assert "cannot be written" in message
    assert "HF_HUB_CACHE" in message


def test_a_read_only_cache_is_used_and_named_for_what_it_lacks(server, registered, tmp_path, capsys):
    drop = []
    if os.geteuid() == 0:  # modes do not bind root unless it drops this right
        if shutil.which("setpriv") is None:
            pytest.skip("needs setpriv, or a user other than root")
        rights = "-dac_override,-dac_read_search"
        drop = ["setpriv", f"--bounding-set={rights}", f"--inh-caps={rights}"]
    pulled(capsys, "tiny")
    folders = [path for path in tmp_path.rglob("*") if path.is_dir()]
    modes = [path.stat().st_mode for path in folders]
    environment = {**server.environment(tmp_path), "ZOO_REGISTRY": os.environ["ZOO_REGISTRY"]}
    code = (
        "import sys\nfrom zoo.cli.app import run\nimport zoo.weights.load\nfrom pathlib import Path\n"
        f"zoo.weights.load.BUNDLED = Path({str(tmp_path / 'bundled')!r})\n"
        "print([run(['pull', name, '--json']) for name in ('tiny', 'hf-hub:org/tiny')])"
    )
    try:
        for path in folders:
            path.chmod(0o555)
        done = subprocess.run([*drop, sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    finally:
        for path, mode in zip(folders, modes, strict=True):
            path.chmod(stat.S_IMODE(mode))
    assert done.stdout.endswith("[0, 4]\n"), done.stderr
    assert '"source": "cache"' in done.stdout
    assert "which cannot be written (Permission denied)" in done.stderr


def test_data_sets_are_checked_like_weights(server, tmp_path, monkeypatch):
    monkeypatch.delenv("ZOO_DATA", raising=False)
    dataset = written("cifar10", tmp_path / "data")
    folder = tmp_path / "data" / dataset.folder
    parts = {split: next(folder.glob(f"{split}-00000*")).read_bytes() for split in ("train", "test")}
    files = {f"{dataset.folder}/{split}-00000-of-00001.parquet": content for split, content in parts.items()}
    revision = server.hub.add(dataset.repo_id, files, kind="dataset")
    dataset = replace(dataset, revision=revision, sizes={"train": 10, "validation": 10, "test": 10})
    server.fault(LARGE, flip=True)
    loaded = dataset.load()
    assert len(loaded.split("test").labels) == 10
    assert len(server.asked(LARGE)) == 3
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "empty"))
    with pytest.raises(DataNotFound, match="no such revision"):
        replace(dataset, revision="f" * 40).load()


# -- machines without a network ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["tiny", "hf-hub:org/tiny"])
def test_models_are_carried_to_a_machine_without_a_network(
    server, registered, net, tmp_path, monkeypatch, name, capsys
):
    carried = tmp_path / "usb"
    data = pulled(capsys, name, "--to", str(carried))
    assert {Path(path).name for path in data["written"]} >= {"model.safetensors"}
    server.stop()
    with HubServer() as other:
        other.attach(monkeypatch, tmp_path / "there")
        with pytest.raises(Unreachable):
            load(name, local_files_only=True)
        assert run(["cache", "import", str(carried)]) == 0
        assert same_function(load(name, local_files_only=True), net)
        assert same_function(load(name), net)
        assert run(["cache", "verify", "org/tiny"]) == 0
        assert not other.requests


def test_branches_with_slashes_and_names_with_underscores_are_carried(
    server, folder, net, tmp_path, monkeypatch, capsys
):
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    name = "hf-hub:_org/_tiny@refs/pr/1"
    server.hub.add("_org/_tiny", files, branch="refs/pr/1")
    pulled(capsys, name, "--to", str(tmp_path / "usb"))
    server.attach(monkeypatch, tmp_path / "there")
    assert run(["cache", "import", str(tmp_path / "usb")]) == 0
    assert same_function(load(name, local_files_only=True), net)


def test_a_folder_with_another_file_of_a_cached_commit_is_refused_and_a_damaged_copy_replaced(
    server, registered, net, tmp_path, monkeypatch, capsys
):
    carried = tmp_path / "usb"
    pulled(capsys, "tiny", "--to", str(carried))
    contents, weights = carried / "contents.json", next(carried.rglob("model.safetensors"))
    whole, content = contents.read_text(), weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    sha256 = [hashlib.sha256(one).hexdigest() for one in (content, weights.read_bytes())]
    contents.write_text(whole.replace(*sha256))
    assert run(["cache", "import", str(carried)]) == 5
    assert "of the same commit" in capsys.readouterr().err
    assert run(["cache", "verify", "tiny"]) == 0

    contents.write_text(whole)
    weights.write_bytes(content)
    server.attach(monkeypatch, tmp_path / "there")
    monkeypatch.setattr(os, "symlink", refuse)
    assert run(["cache", "import", str(carried)]) == 0
    flip_a_bit(next((tmp_path / "there").rglob("snapshots/*/model.safetensors")))
    assert run(["cache", "import", str(carried)]) == 0
    assert same_function(load("tiny", local_files_only=True), net)


def refuse(*args: object) -> None:
    raise OSError("no links here")


def test_weights_of_the_package_are_not_carried(bundled, tmp_path, capsys):
    assert run(["pull", "tiny", "--to", str(tmp_path / "usb")]) == 0
    assert "these weights are in the package" in capsys.readouterr().err
    assert not (tmp_path / "usb").exists()


def test_carried_files_that_were_altered_are_not_taken_in(server, registered, tmp_path, monkeypatch, capsys):
    carried = tmp_path / "usb"
    pulled(capsys, "tiny", "--to", str(carried))
    assert pulled(capsys, "hf-hub:org/tiny", "--to", str(carried))["written"]  # beside the first
    contents = carried / "contents.json"
    whole = contents.read_text()
    weights = next(carried.rglob("model.safetensors"))
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "there"))
    assert run(["cache", "import", str(carried)]) == 5
    weights.unlink()
    weights.symlink_to("/etc/passwd")
    assert run(["cache", "import", str(carried)]) == 5
    for fault in (
        whole.replace('"model.safetensors"', '"../../../evil.safetensors"'),
        whole.replace('"org/tiny"', '"../tiny"'),
        whole.replace('"model.safetensors"', '"model.bin"'),
        whole[:-9],
        "[" * 5000,
    ):
        contents.write_text(fault)
        assert run(["cache", "import", str(carried)]) == 5
    assert not (tmp_path / "there").exists()
    contents.unlink()
    assert run(["cache", "import", str(carried)]) == 4
    assert pulled(capsys, "tiny", "--to", str(carried), code=2)["error"]["message"]  # it is not our folder any more
