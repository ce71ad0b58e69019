from __future__ import annotations

import hashlib
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from tiny import REVISION, SPEC, register, same_function

import zoo.weights.load
from zoo import load
from zoo.system.errors import IntegrityError, UnknownModel, Unreachable, UsageError, WrongDevice
from zoo.system.files import sha256_file
from zoo.weights.load import find, weights_sha256
from zoo.weights.tensors import read_tensors, save_weights


def test_a_registry_name_gives_the_released_model_in_eval_mode(net, bundled):
    model = load("tiny")
    assert same_function(model, net)
    assert not any(module.training for module in model.modules())
    assert weights_sha256(model) == sha256_file(bundled)


def test_a_model_folder_loads_by_its_path(net, folder):
    model = load(f"local-dir:{folder}")
    assert same_function(model, net)
    assert weights_sha256(model) == hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


def test_without_pretrained_the_weights_are_fresh_and_no_file_is_needed(net, bundled):
    bundled.unlink()
    model = load("tiny", pretrained=False)
    assert model.spec == SPEC
    assert not same_function(model, net)
    with pytest.raises(UsageError, match="do not come from a file"):
        weights_sha256(model)


def test_weights_stored_in_half_precision_are_used_in_single(net, folder):
    halves = {key: value.half() if value.is_floating_point() else value for key, value in net.state_dict().items()}
    save_weights(halves, folder / "model.safetensors")
    model = load(f"local-dir:{folder}")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert same_function(model, net, atol=0.01)


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def pickle(path: Path) -> None:
    torch.save({"weight": torch.zeros(2)}, path)


def bare_pickle(path: Path) -> None:
    torch.save({"weight": torch.zeros(2)}, path, _use_new_zipfile_serialization=False)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (flip_a_bit, "has SHA-256 [0-9a-f]{12}..., but [0-9a-f]{12}... is expected"),
        (truncate, r"has [\d,]+ bytes, but [\d,]+ are expected"),
        (pickle, "is a pickle, not safetensors"),
        (bare_pickle, "is a pickle, not safetensors"),
    ],
)
def test_a_released_file_with_another_hash_is_refused_before_it_is_parsed(bundled, monkeypatch, damage, message):
    damage(bundled)
    monkeypatch.setattr(zoo.weights.load, "read_tensors", lambda path: pytest.fail("it was parsed"))
    with pytest.raises(IntegrityError, match=message):
        load("tiny")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (truncate, "is not a complete safetensors file"),
        (pickle, "is a pickle"),
        (bare_pickle, "is a pickle"),
        (lambda path: path.write_bytes(b""), "is not a complete safetensors file"),
        (lambda path: path.write_bytes(b"\xff" * 64), "is not a complete safetensors file"),
    ],
)
def test_a_local_file_that_is_not_safetensors_is_refused(folder, damage, message):
    damage(folder / "model.safetensors")
    with pytest.raises(IntegrityError, match=message):
        load(f"local-dir:{folder}")


def test_a_file_that_is_replaced_after_its_check_is_refused(net, folder):
    found = find(f"local-dir:{folder}")
    assert same_function(found.load(), net)
    save_weights({key: tensor + 1 for key, tensor in net.state_dict().items()}, folder / "model.safetensors")
    with pytest.raises(IntegrityError, match="was replaced after it was checked"):
        found.load()


def test_unpickling_is_never_tried(folder, tmp_path):
    class Trap:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "sprung",))

    torch.save(Trap(), folder / "model.safetensors")
    with pytest.raises(IntegrityError):
        load(f"local-dir:{folder}")
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda weights: weights.pop("head.weight"), "lacks 'head.weight'"),
        (lambda weights: weights.update({"head.scale": torch.ones(1)}), "has 'head.scale'"),
        (lambda weights: weights.update({"head.weight": torch.zeros(10, 13)}), r"has shape \[10, 13\], not \[10, 12\]"),
        (lambda weights: weights.update({"head.bias": torch.full((10,), torch.nan)}), "'head.bias' .* not finite"),
    ],
)
def test_weights_that_do_not_fit_the_architecture_are_refused_by_tensor(net, folder, change, message):
    weights = dict(net.state_dict())
    change(weights)
    save_weights(weights, folder / "model.safetensors")
    with pytest.raises(IntegrityError, match=message):
        load(f"local-dir:{folder}")


@pytest.mark.parametrize(
    ("config", "error", "message"),
    [
        ("{", IntegrityError, "is not JSON"),
        ("[]", IntegrityError, "has no architecture"),
        ('{"spec": {"arch": "staged"}}', UsageError, "architecture spec is wrong"),
    ],
)
def test_a_malformed_config_is_refused(folder, config, error, message):
    (folder / "config.json").write_text(config)
    with pytest.raises(error, match=message):
        load(f"local-dir:{folder}")


def test_missing_files_are_named(folder, bundled):
    with pytest.raises(Unreachable, match="there is no folder"):
        load("local-dir:/nowhere/at/all")
    (folder / "model.safetensors").unlink()
    with pytest.raises(Unreachable, match=r"holds no model\.safetensors"):
        load(f"local-dir:{folder}")
    bundled.unlink()
    with pytest.raises(Unreachable, match="the weights of 'tiny' are neither in the package"):
        load("tiny")
    with pytest.raises(UnknownModel, match="did you mean 'tiny'"):
        load("tinny")


def test_devices_and_revisions_that_do_not_exist_are_refused(bundled):
    with pytest.raises(UsageError, match="is not a device"):
        load("tiny", device="abacus")
    with pytest.raises(WrongDevice, match="cuda:99"):
        load("tiny", device="cuda:99")
    with pytest.raises(WrongDevice, match="torch cannot use 'hpu' here"):
        load("tiny", device="hpu")
    with pytest.raises(UsageError, match="has no revisions"):
        load("tiny", revision="main")


def test_saving_replaces_a_file_whole_or_not_at_all(net, folder, monkeypatch):
    path = folder / "model.safetensors"
    before = path.read_bytes()

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        save_weights({key: value + 1 for key, value in net.state_dict().items()}, path)
    assert path.read_bytes() == before
    assert sorted(file.name for file in folder.iterdir()) == ["config.json", "model.safetensors"]


def test_saved_tensors_come_back_and_do_not_depend_on_layout(net, tmp_path):
    weights = {key: value.to(memory_format=torch.channels_last) if value.dim() == 4 else value
               for key, value in net.state_dict().items()}  # fmt: skip
    save_weights(weights, tmp_path / "a.safetensors")
    save_weights(net.state_dict(), tmp_path / "b.safetensors")
    assert sha256_file(tmp_path / "a.safetensors") == sha256_file(tmp_path / "b.safetensors")
    back = read_tensors(tmp_path / "a.safetensors")
    assert all(torch.equal(back[key], value) for key, value in net.state_dict().items())


@pytest.mark.parametrize("name", ["hf-hub:org/tiny", "hf-hub:org/tiny@main", f"hf-hub:org/tiny@{REVISION}"])
def test_a_cached_hub_model_loads_without_the_network(net, hub_cache, name):
    assert same_function(load(name, cache_dir=hub_cache, local_files_only=True), net)


def test_a_cached_hub_file_damaged_at_its_size_is_noticed_offline(hub_cache):
    flip_a_bit((hub_cache / "models--org--tiny" / "snapshots" / REVISION / "model.safetensors").resolve())
    with pytest.raises(IntegrityError, match="is expected"):
        load("hf-hub:org/tiny", cache_dir=hub_cache, local_files_only=True)


@pytest.fixture
def downloads(hub_cache, monkeypatch):
    """Stands in for the network: the client's calls are recorded, and a forced download mends the cached file if
    ``mends`` is set."""
    import huggingface_hub

    true, calls = huggingface_hub.hf_hub_download, []
    whole = {
        path.name: path.read_bytes() for path in (hub_cache / "models--org--tiny" / "snapshots" / REVISION).iterdir()
    }

    def download(repo_id, filename, **options):
        calls.append(options)
        forced = options.pop("force_download", False)
        path = true(repo_id, filename, **{**options, "local_files_only": True})
        if forced and download.mends:
            Path(path).resolve().write_bytes(whole[filename])
        return path

    download.mends, download.calls = True, calls
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    return download


def test_a_damaged_hub_file_is_fetched_again_once(net, bundled, hub_cache, downloads, tmp_path, monkeypatch):
    hub = {"repo_id": "org/tiny", "revision": REVISION, "filename": "model.safetensors"}
    register(tmp_path, monkeypatch, bundled, hub)
    bundled.unlink()
    file = (hub_cache / "models--org--tiny" / "snapshots" / REVISION / "model.safetensors").resolve()
    flip_a_bit(file)
    assert same_function(load("tiny", cache_dir=hub_cache), net)
    flip_a_bit(file)
    downloads.mends = False
    downloads.calls.clear()
    with pytest.raises(IntegrityError, match="SHA-256"):
        load("tiny", cache_dir=hub_cache)
    assert len(downloads.calls) == 1


def test_the_cache_is_asked_before_the_network(hub_cache, downloads):
    load("hf-hub:org/tiny", cache_dir=hub_cache)
    assert not downloads.calls


def test_names_of_the_hub_are_checked(tmp_path):
    with pytest.raises(UsageError, match="organisation/name"):
        load("hf-hub:no//such//name", cache_dir=tmp_path, local_files_only=True)
    with pytest.raises(UsageError, match="leave one of them out"):
        load("hf-hub:org/tiny@main", revision="v1")


@pytest.mark.parametrize("how", ["local_files_only=True", "local_files_only=False"])
def test_an_offline_miss_answers_at_once(tmp_path, how):
    code = (
        "import time; start = time.perf_counter(); import sys; from zoo import load, Unreachable\n"
        f"try: load('hf-hub:org/nothing', cache_dir={str(tmp_path)!r}, {how})\n"
        "except Unreachable as error: print(error)\n"
        "assert 'torch' not in sys.modules\n"
        "print(time.perf_counter() - start)"
    )
    environment = {"HF_HUB_OFFLINE": "0" if "True" in how else "1", "PATH": "", "HOME": str(tmp_path)}
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert "the network must not be used" in done.stdout
    assert time.perf_counter() - start < 10  # seconds even on a busy machine; about 0.5 otherwise


def test_a_header_whose_length_begins_as_a_pickle_does_is_none(tmp_path):
    path = tmp_path / "model.safetensors"
    for padding in range(0, 256, 8):
        save_weights({"a": torch.ones(2)}, path, note="x" * padding)
        if path.read_bytes()[0] == 0x80:
            break
    assert path.read_bytes()[:1] == b"\x80"
    assert read_tensors(path)["a"].tolist() == [1, 1]
