"""Models of strangers: whatever is in a repository or a file, it ends in one sentence, and takes little memory."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from fuzzed import altered
from hub_server import HubServer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_registry import model, registry_data
from tiny import SPEC

from zoo.cli.app import run
from zoo.hub.carry import CONTENTS, read_contents
from zoo.models import build
from zoo.registry import file as registry_file
from zoo.specs import parse_spec
from zoo.system.errors import ZooError
from zoo.system.files import pretty
from zoo.weights.folder import read_config
from zoo.weights.load import load
from zoo.weights.tensors import read_tensors, save_weights

CONFIG = json.dumps({"spec": SPEC.to_dict()}).encode()


def safetensors(header: dict | bytes, data: bytes = b"", *, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def tensor(start: int, end: int, shape: list[int], dtype: str = "F32") -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def state(**changed: torch.Tensor | None) -> bytes:
    """The weights of SPEC, some of them other tensors or none."""
    from safetensors.torch import save

    torch.manual_seed(0)
    tensors = {**build(SPEC).state_dict(), **{key.replace("__", "."): value for key, value in changed.items()}}
    return save({key: value for key, value in tensors.items() if value is not None})


def config(**spec: object) -> bytes:
    return json.dumps({"spec": spec}).encode()


REPOSITORIES: dict[str, tuple[bytes, bytes, str]] = {  # config.json, model.safetensors, what is said
    "config of megabytes": (b'{"spec": "' + b"x" * 5_000_000 + b'"}', b"", "at most 4,000,000 are expected"),
    "nested config": (b'{"spec": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", b"", "is not JSON"),
    "nested object": (b'{"spec": {"a":' * 50_000 + b"0" + b"}}" * 50_000, b"", "is not JSON"),
    "binary config": (bytes(range(256)) * 9, b"", "is not JSON"),
    "no spec": (b'{"architectures": ["ResNet"]}', b"", "has no architecture"),
    "list for a spec": (b'{"spec": [1]}', b"", "has no architecture"),
    "commands in a key": (config(**{"arch": "staged", "\x1b[2J\x07": 1}), b"", "wrong at 'staged.widths'"),
    "wide": (config(arch="staged", widths=[[10**12]], resolutions=[32]), b"", "is not built"),
    "deep": (config(arch="wideresnet", depth=6 * 10**14 + 4), b"", "is not built"),
    "many blocks": (config(arch="staged", widths=[[1] * 900_000], resolutions=[32]), b"", "is not built"),
    "huge images": (config(**{**SPEC.to_dict(), "image_size": 10**9}), b"", "image_size"),
    "infinite width": (config(arch="mobilenetv2", width_mult=1e308), b"", "width_mult"),
    "long number": (b'{"spec": {"arch": "wideresnet", "depth": ' + b"9" * 5000 + b"}}", b"", "is not JSON"),
    "large weights": (CONFIG, b"\0" * 30_000_000, "bytes, where at most"),
    "no weights": (CONFIG, b"", "is not a complete safetensors file"),
    "endless header": (CONFIG, safetensors({}, length=2**63), "claims a header of 9,223,372,036,854,775,808 bytes"),
    "header beyond the end": (CONFIG, safetensors({}, length=1000), "claims a header of 1,000 bytes"),
    "header of megabytes": (CONFIG, safetensors(b"{" + b" " * 1_010_000 + b"}"), "claims a header of"),
    "many keys": (
        CONFIG,
        safetensors({f"k{n}": tensor(0, 0, [0]) for n in range(12_000)}),
        "holds 0 values",
    ),
    "nested header": (CONFIG, safetensors(b'{"a":' * 100_000), "is not a complete safetensors file"),
    "huge shape": (
        CONFIG,
        safetensors({"a": tensor(0, 4, [2**40, 2**40])}, b"\0" * 4),
        "is not a complete safetensors",
    ),
    "overlap": (
        CONFIG,
        safetensors({"a": tensor(0, 8, [2]), "b": tensor(4, 12, [2])}, b"\0" * 12),
        "is not a complete safetensors file",
    ),
    "beyond the end": (CONFIG, safetensors({"a": tensor(0, 400, [100])}, b"\0" * 4), "is not a complete safetensors"),
    "odd types": (CONFIG, safetensors({"a": tensor(0, 4, [4], "F8_E4M3")}, b"\0" * 4), "as plain numbers"),
    "a pickle": (CONFIG, b"\x80\x04cposix\nsystem\n(S'touch evil'\ntR.", "is a pickle"),
    "a zip of torch.save": (CONFIG, b"PK\x03\x04" + b"\0" * 100, "is a pickle"),
    "shape": (CONFIG, state(head__bias=torch.zeros(11)), "has shape [11], not [10]"),
    "missing key": (CONFIG, state(head__bias=None), "lacks 'head.bias'"),
    "further key": (CONFIG, state(**{"../../etc/passwd": torch.zeros(1)}), "has '../../etc/passwd'"),
    "integers": (CONFIG, state(head__bias=torch.zeros(10, dtype=torch.int32)), "holds integers in 'head.bias'"),
    "NaN": (CONFIG, state(head__bias=torch.full((10,), torch.nan)), "that are not finite"),
    "small weights of a large net": (
        config(arch="wideresnet", depth=160, widen=10),
        safetensors({"a": tensor(0, 4, [1])}, b"\0" * 4),
        "holds 1 values, and this architecture has",
    ),
}


def repository(name: str) -> dict[str, bytes]:
    files = REPOSITORIES[name]
    return {"config.json": files[0], "model.safetensors": files[1]}


@pytest.mark.parametrize("name", REPOSITORIES)
def test_a_hostile_repository_is_refused_in_one_sentence(name, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("zoo.models.Classifier.load_state_dict", lambda *_: pytest.fail("the weights were taken"))
    with HubServer() as server:
        server.attach(monkeypatch, tmp_path)
        server.hub.add("org/evil", repository(name))
        with pytest.raises(ZooError) as remote:
            load("hf-hub:org/evil")
        folder = tmp_path / "evil"
        folder.mkdir()
        for file, content in repository(name).items():
            (folder / file).write_bytes(content)
        with pytest.raises(ZooError) as local:
            load(f"local-dir:{folder}")
        said = REPOSITORIES[name][2]
        assert said in str(remote.value)
        assert said.partition("at most")[0] in str(local.value) or "has more than 4,000,000 bytes" in str(local.value)
        capsys.readouterr()
        assert run(["pull", "-q", "hf-hub:org/evil"]) in (0, 2, 5)  # 0: only loading compares weights with their net
        printed = capsys.readouterr().err
        assert len(printed) < 2500
        assert printed.count("\n") <= 1
        assert "\x1b" not in printed
        if "at most" in said:
            assert not server.asked("GET .*" + ("cdn" if name == "large weights" else "config.json"))


def test_hostile_repositories_take_little_memory_and_time(tmp_path):
    """One process meets them all."""
    for name in REPOSITORIES:
        place = tmp_path / name
        place.mkdir()
        for file, content in repository(name).items():
            (place / file).write_bytes(content)
    code = (
        "import resource, sys, time\nfrom pathlib import Path\nimport torch\nfrom zoo import load\n"
        "from zoo.system.errors import ZooError\nload('trades-s7')\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000\n"
        "before, start = peak(), time.process_time()\n"
        f"for place in Path({str(tmp_path)!r}).iterdir():\n"
        "    try: load(f'local-dir:{place}')\n"
        "    except ZooError: continue\n"
        "    sys.exit(f'{place} was loaded')\n"
        "print(peak() - before, time.process_time() - start)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    megabytes, seconds = map(float, done.stdout.split())
    assert megabytes < 250
    assert seconds < 20


@pytest.mark.parametrize("kind", ["pipe", "device", "folder"])
@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
def test_what_is_no_file_is_not_opened(kind, file, tmp_path):
    (tmp_path / "config.json").write_bytes(CONFIG)
    (tmp_path / "model.safetensors").write_bytes(state())
    (tmp_path / file).unlink()
    if kind == "pipe":
        os.mkfifo(tmp_path / file)
    elif kind == "device":
        (tmp_path / file).symlink_to("/dev/zero")
    else:
        (tmp_path / file).mkdir()
    with pytest.raises(ZooError, match="not a file"):
        load(f"local-dir:{tmp_path}")


# -- any bytes -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def examples(tmp_path_factory) -> dict[str, bytes]:
    """A whole file for each reader."""
    place = tmp_path_factory.mktemp("examples")
    save_weights(build(SPEC).state_dict(), place / "w.safetensors", note="x")
    parcel = {"repo_id": "a/b", "revision": "0" * 40, "filename": "config.json", "size": 3, "sha256": "0" * 64}
    return {
        "config": json.dumps({"spec": SPEC.to_dict(), "name": "a", "threat": {"norm": "linf", "eps": 0.1}}).encode(),
        "registry": pretty(registry_data({"tiny": model(8)})).encode(),
        "contents": json.dumps({"schema_version": 1, "files": [parcel]}).encode(),
        "spec": json.dumps(SPEC.to_dict()).encode(),
        "weights": (place / "w.safetensors").read_bytes(),
    }


def _registry(path: Path) -> None:
    registry_file._parsed.cache_clear()
    registry_file.load_registry(path)


def _spec(path: Path) -> None:
    parse_spec(path.read_text("utf-8", errors="replace"))


READERS = {
    "config": lambda path: parse_spec(read_config(path).spec),
    "registry": _registry,
    "contents": read_contents,
    "spec": _spec,
    "weights": read_tensors,
}


@pytest.mark.parametrize("reader", READERS)
def test_what_the_examples_are_altered_from_is_read(reader, examples, tmp_path, monkeypatch):
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    path = tmp_path / (CONTENTS if reader == "contents" else "file")
    path.write_bytes(examples[reader])
    READERS[reader](path)


@pytest.mark.parametrize("reader", READERS)
@given(data=st.data())
@settings(max_examples=120, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_are_read_or_refused_in_a_sentence(reader, examples, tmp_path, monkeypatch, data):
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    whole = examples[reader]
    if reader == "weights":
        length = int.from_bytes(whole[:8], "little")
        header = data.draw(altered(whole[8 : 8 + length]))
        stated = data.draw(st.sampled_from([len(header), length, 0, 2**40]) | st.integers(0, 2**64 - 1))
        content = struct.pack("<Q", stated) + header + whole[8 + length :]
    else:
        content = data.draw(altered(whole))
    path = tmp_path / (CONTENTS if reader == "contents" else "file")
    path.write_bytes(content)
    with suppress(ZooError):
        READERS[reader](path)
