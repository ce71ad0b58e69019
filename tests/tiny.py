"""A small model in all the places that a model can be in: a folder, a registry of its own, the Hub's cache."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from test_registry import model, registry_data

from zoo.models import Classifier, build
from zoo.specs import StagedSpec, cost
from zoo.system.files import pretty, sha256_file
from zoo.weights.tensors import save_weights

SPEC = StagedSpec(widths=((8,), (12,)), resolutions=(16, 8), stem=4)
REVISION = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def net() -> Classifier:
    torch.manual_seed(0)
    return build(SPEC).eval()


@pytest.fixture
def folder(net, tmp_path) -> Path:
    """A model folder, as training leaves it."""
    place = tmp_path / "model"
    place.mkdir()
    save_weights(net.state_dict(), place / "model.safetensors")
    (place / "config.json").write_text(json.dumps({"spec": SPEC.to_dict()}))
    return place


@pytest.fixture
def bundled(folder, tmp_path, monkeypatch) -> Path:
    """The model 'tiny' in a registry that stands for the released one, with its bundled weights, which are returned."""
    monkeypatch.setattr("zoo.registry.file.PACKAGED", tmp_path / "registry.json")
    monkeypatch.setattr("zoo.weights.load.BUNDLED", tmp_path / "bundled")
    (tmp_path / "bundled").mkdir()
    file = tmp_path / "bundled" / "tiny.safetensors"
    file.write_bytes((folder / "model.safetensors").read_bytes())
    register(tmp_path, monkeypatch, file)
    return file


def register(tmp_path, monkeypatch, file: Path, hub: dict | None = None) -> None:
    macs, params = cost(SPEC)
    weights = {"file": "tiny.safetensors", "size": file.stat().st_size, "sha256": sha256_file(file), "hub": hub}
    entry = {**model(8), "spec": SPEC.to_dict(), "macs": macs, "params": params, "weights": weights}
    (tmp_path / "registry.json").write_text(pretty(registry_data({"tiny": entry})))
    monkeypatch.setenv("ZOO_REGISTRY", str(tmp_path / "registry.json"))
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def hub_cache(folder, tmp_path) -> Path:
    """The Hub client's cache, with the two files of org/tiny at one revision as the client lays them out."""
    repo = tmp_path / "hub" / "models--org--tiny"
    (repo / "blobs").mkdir(parents=True)
    (repo / "snapshots" / REVISION).mkdir(parents=True)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(REVISION)
    for name in ("config.json", "model.safetensors"):
        content = (folder / name).read_bytes()
        large = name.endswith(".safetensors")
        blob = hashlib.sha256(content).hexdigest() if large else hashlib.sha1(content).hexdigest()
        (repo / "blobs" / blob).write_bytes(content)
        (repo / "snapshots" / REVISION / name).symlink_to(Path("../../blobs") / blob)
    return tmp_path / "hub"


@pytest.fixture
def hashed(monkeypatch) -> list[str]:
    """The names of the files that are hashed."""
    names: list[str] = []
    true = hashlib.file_digest
    monkeypatch.setattr(
        hashlib, "file_digest", lambda file, kind: (names.append(Path(file.name).name), true(file, kind))[1]
    )
    return names


def same_function(a: torch.nn.Module, b: torch.nn.Module, *, atol: float = 0.0) -> bool:
    x = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return torch.allclose(a(x), b(x), rtol=0, atol=atol)
