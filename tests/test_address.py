"""How models are named: addresses, aliases, and the folder that an address may mean."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from test_registry import model, registry_data
from tiny import REVISION, SPEC, same_function

import zoo.registry.file
from zoo import info, list_models, load
from zoo.cli.app import run
from zoo.cli.options import model_names
from zoo.evaluation.threat import ThreatModel
from zoo.registry.entry import Subnet
from zoo.registry.file import load_registry
from zoo.registry.write import write_aliases
from zoo.system.errors import IntegrityError, UnknownModel, Unreachable, UsageError
from zoo.system.files import pretty
from zoo.weights.address import HUB, LOCAL, NAME, Address, has_scheme
from zoo.weights.folder import ModelConfig, ModelFolder
from zoo.weights.load import find
from zoo.weights.release import candidate, release, stored_bits
from zoo.weights.tensors import save_weights

# -- addresses -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("trades-s7", Address(NAME, "trades-s7")),
        ("proard-tiny@12.5M", Address(NAME, "proard-tiny@12.5M")),
        ("local-dir:runs/a:b@c/model", Address(LOCAL, "runs/a:b@c/model")),
        ("hf-hub:org/repo", Address(HUB, "org/repo")),
        (f"hf-hub:org/repo@{REVISION}", Address(HUB, "org/repo", REVISION)),
    ],
)
def test_an_address_is_read_and_written_again(text, address):
    assert Address.parse(text) == address
    assert str(address) == text
    assert has_scheme(text) == (address.scheme != NAME)


@pytest.mark.parametrize(
    "wrong", [5, None, "", Path("runs/x/model"), "https://example.org/model", "local-dir:", "hf-hub:"]
)
def test_an_invalid_address_is_refused_with_the_valid_kinds(wrong):
    with pytest.raises(UsageError, match=r"local-dir:PATH or hf-hub:ORG/REPO"):
        load(wrong)


@pytest.mark.parametrize("name", ["net.pt", "runs/NET.PTH", "nfgsm-w7.ckpt"])
def test_a_checkpoint_in_place_of_a_name_is_told_what_to_become(name):
    with pytest.raises(UnknownModel, match=rf"'{name}'.*; a checkpoint becomes a model folder by") as caught:
        load(name)
    assert ("did you mean 'nfgsm-w7'" in str(caught.value)) == name.startswith("nfgsm-w7")


def test_a_model_or_a_number_is_no_name(net):
    with pytest.raises(UsageError, match=r"not a value of type Classifier$"):
        load(net)
    with pytest.raises(UsageError, match=r"not a value of type int$"):
        info(5)


def test_a_bare_path_is_refused_with_what_to_write_and_is_an_address_in_training(net, folder, bundled, monkeypatch):
    with pytest.raises(UsageError, match=f"'{folder}' is a folder, .*: write local-dir:{folder}"):
        load(str(folder))
    monkeypatch.chdir(folder.parent)
    with pytest.raises(UsageError, match="write local-dir:model"):
        load("model")
    assert same_function(find("model", folders=True).load(), net)
    (folder.parent / "tiny").mkdir()
    assert find("tiny").address == Address(NAME, "tiny")  # a folder that merely has the name is not meant ...
    with pytest.raises(Unreachable, match=r"'tiny' holds no config\.json"):
        find("tiny", folders=True)  # ... but in training, where a folder's path is an address


# -- aliases -------------------------------------------------------------------------------------------------------


@pytest.fixture
def short(bundled) -> str:
    write_aliases("tiny", ["wee", "t"])
    return "wee"


def test_an_alias_finds_the_entry_everywhere_and_the_entrys_own_name_is_shown(net, short, bundled, capsys):
    assert same_function(load(short), net)
    assert info(short) is info("tiny")
    assert find(short).address == Address(NAME, "tiny")
    assert find(short).reference() == {"name": "tiny", "weights_sha256": info("tiny").weights.sha256}
    assert candidate(find(short)).name == "tiny"
    assert list_models("w*") == ["tiny"]
    assert model_names("w") == ["wee"]
    assert run(["show", short, "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["name"], shown["aliases"]) == ("tiny", ["t", "wee"])
    assert run(["show", short]) == 0
    assert "also called  t, wee" in capsys.readouterr().out
    with pytest.raises(UnknownModel, match="did you mean 'wee'"):
        info("weee")


def test_an_alias_survives_new_results_and_new_weights(net, short, folder):
    release(candidate(find(short)), [])
    assert info(short).name == "tiny"
    train = model(8)["train"] | {"settings": {}, "history": []}
    del train["recipe_sha256"]
    config = ModelConfig(name="tiny", family="t", description="again", spec=SPEC.to_dict(), train=train)
    ModelFolder(folder).write(config)
    save_weights({key: value + 1 for key, value in net.state_dict().items()}, ModelFolder(folder).weights)
    found = find(f"local-dir:{folder}")
    with pytest.raises(UsageError, match=r"the registry has other weights called 'tiny', .* --replace"):
        candidate(found)
    release(candidate(found, replace=True), [])
    assert (info(short).description, info(short).aliases) == ("again", ("t", "wee"))
    ModelFolder(folder).write(ModelConfig(**{**vars(config), "name": "wee"}))
    with pytest.raises(UsageError, match=r"'wee' is an alias of 'tiny': give the model .* another name"):
        candidate(find(f"local-dir:{folder}"))


@pytest.mark.parametrize("wrong", [["tiny"], ["other"], ["o"], ["t", "t"], ["two words"]])
def test_a_taken_or_malformed_alias_is_refused(bundled, wrong):
    path = bundled.parents[1] / "registry.json"
    data = json.loads(path.read_text())
    path.write_text(pretty(registry_data({**data["models"], "other": model(12) | {"aliases": ["o"]}})))
    before = path.read_text()
    with pytest.raises(IntegrityError, match=r"wrong at 'models\.(tiny|other)\.aliases'"):
        write_aliases("tiny", wrong)
    assert path.read_text() == before


def test_a_budget_of_a_dynamic_net_is_found_under_its_alias_too(bundled):
    path = bundled.parents[1] / "registry.json"
    part = vars(Subnet(of="tiny", weights_sha256=info("tiny").weights.sha256, values={"width": 1.0}, size=10))
    whole = json.loads(path.read_text())["models"]["tiny"] | {"supernet": "space", "aliases": ["old"]}
    path.write_text(pretty(registry_data({"tiny": whole, "tiny@1M": model(8) | {"subnet": part}})))
    assert info(f"old@{info('old').macs}") == info("tiny@1M")


# -- what was hashed or parsed once ----------------------------------------------------------------------------------


def test_a_load_hashes_a_file_once(bundled, folder, hub_cache, hashed):
    load("tiny")
    assert hashed == ["tiny.safetensors"]
    found = find(f"local-dir:{folder}")
    found.load()
    assert found.sha256 == info("tiny").weights.sha256
    assert hashed[1:] == ["model.safetensors"]
    load("hf-hub:org/tiny", cache_dir=hub_cache, local_files_only=True)
    assert hashed[2:] == ["model.safetensors"]


@pytest.fixture
def parsed(monkeypatch) -> list[Path]:
    """The registries that are read to be looked up in."""
    paths: list[Path] = []
    true = zoo.registry.file.read_registry
    monkeypatch.setattr(zoo.registry.file, "read_registry", lambda path: (paths.append(path), true(path))[1])
    return paths


def test_the_registry_is_parsed_once_and_again_after_a_change(bundled, parsed, capsys):
    assert run(["show", "tiny"]) == 0
    assert run(["compare", "tiny", "tiny"]) == 0
    load("tiny")
    assert len(parsed) == 1
    write_aliases("tiny", ["wee"])
    assert info("wee").name == "tiny"
    assert len(parsed) == 2
    path = bundled.parents[1] / "registry.json"
    path.write_text(path.read_text().replace('"wee"', '"mite"'))  # by hand
    assert load_registry().named.keys() == {"tiny", "mite"}
    assert len(parsed) == 3


# -- model folders -----------------------------------------------------------------------------------------------------


def test_a_config_comes_back_as_it_was_written(tmp_path):
    subnet = Subnet(of="tiny", weights_sha256="a" * 64, values={"width": 1}, size=10)
    config = ModelConfig(
        **{"name": "one", "family": "f", "description": "d", "paper": "p", "spec": SPEC.to_dict(), "subnet": subnet},
        **{"dataset": "cifar100", "threat": ThreatModel(norm="l2", eps=0.5), "train": {"seed": 0, "loss": [0.5]}},
    )
    ModelFolder(tmp_path / "model").write(config)
    assert ModelFolder(tmp_path / "model").read() == config


def test_a_foreign_config_needs_only_the_architecture(folder):
    (folder / "config.json").write_text(json.dumps({"spec": SPEC.to_dict(), "model_type": ["of", "others"]}))
    config = ModelFolder(folder).read()
    assert (config.name, config.dataset, config.threat) == (None, None, None)
    assert find(f"local-dir:{folder}").title == "model"


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ({"name": 5}, "name"),
        ({"supernet": ["tiny"]}, "supernet"),
        ({"train": "long"}, "train"),
        ({"dataset": ""}, "dataset"),
        ({"threat": {"norm": "l7", "eps": 0.5}}, "threat.norm"),
        ({"subnet": {"of": "tiny"}}, "subnet.weights_sha256"),
        ({"subnet": {"of": "tiny", "weights_sha256": "abc", "values": {}, "size": 1}}, "subnet.weights_sha256"),
    ],
)
def test_a_damaged_config_is_refused_by_its_field(folder, change, place):
    (folder / "config.json").write_text(json.dumps({"spec": SPEC.to_dict()} | change))
    with pytest.raises(IntegrityError, match=rf"config\.json' is wrong at '{place}'"):
        load(f"local-dir:{folder}")


def test_bits_are_found_by_an_alias_and_missed_by_the_entrys_own_name(short):
    with pytest.raises(UsageError, match="no per-image bits are stored for 'tiny'"):
        stored_bits(short)
