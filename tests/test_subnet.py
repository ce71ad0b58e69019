"""Sub-nets of a dynamic net: cut, saved, released, loaded by a budget."""

from __future__ import annotations

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Barrier

import pytest
import torch
from micro import micro
from test_registry import model as entry_of
from test_registry import registry_data

import zoo.weights.load
import zoo.weights.release
from zoo import info, load, pick
from zoo.evaluation.measure import measure
from zoo.evaluation.protocols import PROTOCOLS
from zoo.export.compare import compare
from zoo.registry.file import load_registry, no_limit
from zoo.registry.schema import check
from zoo.system.errors import IntegrityError, NothingMatches, UnknownModel, UsageError
from zoo.system.files import pretty
from zoo.train.proard.dynamic import Dynamic, dynamic
from zoo.train.proard.elastic import Elastic
from zoo.train.spaces import SPACES
from zoo.weights.load import find, weights_sha256
from zoo.weights.release import candidate, release
from zoo.weights.tensors import read_tensors, save_weights

TRAIN = entry_of(8)["train"] | {"recipe": "proard-micro"}


@pytest.fixture(autouse=True)
def space(monkeypatch):
    monkeypatch.setitem(SPACES, "micro", micro)
    return micro()


@pytest.fixture
def folder(tmp_path) -> Path:
    """A dynamic net with random weights, as training leaves it."""
    return left(tmp_path / "model", seed=0)


def left(place: Path, *, seed: int) -> Path:
    torch.manual_seed(seed)
    net, space = Elastic(micro()), micro()
    torch.nn.init.normal_(net.full.head.weight)
    place.mkdir()
    images = [torch.rand(8, 3, 32, 32)]
    save_weights({k: v.half() for k, v in net.released(images).items()}, place / "model.safetensors")
    identity = {"name": "proard-micro", "family": "proard", "description": "for tests", "paper": None}
    spec = space.spec(space.largest[0]).to_dict()
    config = {**identity, "spec": spec, "supernet": "micro", "train": TRAIN}
    (place / "config.json").write_text(json.dumps(config))
    return place


@pytest.fixture
def registry(tmp_path, monkeypatch) -> Path:
    path = tmp_path / "registry.json"
    path.write_text(pretty(registry_data({}) | {"datasets": {}}))
    monkeypatch.setenv("ZOO_REGISTRY", str(path))
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("zoo.registry.file.PACKAGED", path)
    monkeypatch.setattr(zoo.weights.load, "BUNDLED", tmp_path / "bundled")
    return path


@pytest.fixture(scope="module")
def measured(tmp_path_factory) -> Path:
    """Where what is measured once is kept for all tests."""
    return tmp_path_factory.mktemp("released") / "measured"


@pytest.fixture
def released(folder, registry, toy, measured, tmp_path):
    """A dynamic net and three of its sub-nets in a registry of their own."""
    if measured.exists():
        shutil.copytree(measured, tmp_path, dirs_exist_ok=True)
        return dynamic("proard-micro")
    put(f"local-dir:{folder}", toy)
    net, space = dynamic("proard-micro"), micro()
    for place, genes in (("small", space.smallest[0]), ("middle", space.choices // 2), ("large", space.largest[0])):
        macs = int(space.macs(genes[None])[0])
        put(f"local-dir:{net.save(genes, toy, tmp_path / place, name=f'proard-micro@{macs}')}", toy)
    shutil.copytree(tmp_path, measured)
    return net


def put(name: str, toy) -> None:
    model = load(name)
    protocols = [PROTOCOLS[key].model_copy(update={"n": 50}) for key in ("clean", "pgd20")]
    results = measure(model, weights_sha256(model), toy, protocols)
    release(
        candidate(find(name), replace=True), [replace(one, protocol=PROTOCOLS[one.protocol.name]) for one in results]
    )


def test_a_saved_sub_net_is_the_frozen_one_and_its_file_holds_statistics_only(folder, toy, tmp_path):
    net = dynamic(str(folder))
    genes = net.space.choices // 2
    cut = net.save(genes, toy, tmp_path / "cut", name="proard-micro@small")
    model, frozen = load(f"local-dir:{cut}").to(memory_format=torch.channels_last), net.cut(genes, toy)
    x = torch.rand(4, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(model(x), frozen(x))
    assert all("running" in key or "num_batches" in key for key in read_tensors(cut / "model.safetensors"))
    assert model.spec == net.space.spec(genes)


def test_a_registry_keeps_sub_nets_beside_their_dynamic_net(released, toy):
    names = [*load_registry().models]
    assert names[0] == "proard-micro"
    assert len(names) == 4
    entry = info(names[1])
    assert entry.subnet.of == "proard-micro"
    assert released.space.spec(released.space.genes_of(entry.subnet.values)).to_dict() == entry.spec
    assert entry.size == 2 * entry.params
    assert len(pick(family="proard", n=9)) == 4
    assert load("proard-micro").spec == released.net.full.spec


def test_a_budget_names_the_most_robust_sub_net_within_it(released):
    entries = sorted((e for e in load_registry().models.values() if e.subnet), key=lambda e: e.macs)
    assert [info(f"proard-micro@{entry.macs}").name for entry in entries] == [entry.name for entry in entries]
    between = (entries[1].macs + entries[2].macs) // 2
    best = max(entries[:2], key=lambda e: (e.accuracy("pgd20"), -e.macs))
    assert info(f"proard-micro@{between}") == best
    assert load(f"proard-micro@{between}").spec.to_dict() == best.spec


def test_a_budget_names_a_flagged_sub_net_only_where_all_are_flagged(released, registry):
    ranked = sorted(
        (e for e in load_registry().models.values() if e.subnet), key=lambda e: (-e.accuracy("pgd20"), e.macs)
    )
    data = json.loads(registry.read_text())
    for entry, expected in zip(ranked, (ranked[1], ranked[2], ranked[0]), strict=True):
        data["models"][entry.name]["flags"] = ["masked"]
        registry.write_text(pretty(data))
        assert info("proard-micro@10M").name == expected.name


def test_a_sub_net_and_its_dynamic_net_are_hashed_once_each(released, toy, tmp_path, hashed):
    entry = next(e for e in load_registry().models.values() if e.subnet)
    load(entry.name)
    assert sorted(hashed) == sorted([entry.weights.file, "proard-micro.safetensors"])
    del hashed[:]
    net = dynamic("proard-micro")
    net.save(net.space.smallest[0], toy, tmp_path / "again", name="small")
    assert hashed == ["proard-micro.safetensors"]


def test_a_comparison_by_a_budget_has_the_bits_of_the_sub_net_that_it_names(released):
    small, middle, _ = sorted((e for e in load_registry().models.values() if e.subnet), key=lambda e: e.macs)
    asked = f"proard-micro@{middle.macs - 1}"
    assert asked != small.name
    found = compare(asked, "proard-micro")
    assert found.a.name == small.name
    assert found.protocols.keys() == {"clean", "pgd20"}
    assert not found.left_out


def test_a_budget_below_all_sub_nets_is_refused_and_a_looser_one_has_the_best_of_them(released):
    message = r"1 MACs is below the released sub-nets of .*, which have [\d,]+ or more; search .* `zoo search"
    with pytest.raises(NothingMatches, match=message):
        load("proard-micro@1")
    best = max((e for e in load_registry().models.values() if e.subnet), key=lambda e: (e.accuracy("pgd20"), -e.macs))
    for budget in ("10M", "9T"):
        assert info(f"proard-micro@{budget}") == best
        assert f"MACs is no limit: the largest sub-net of proard-micro has 154.5k; '{best.name}'" in no_limit(
            f"proard-micro@{budget}"
        )
    assert no_limit("proard-micro@154.4k") is None
    assert no_limit(best.name) is None
    assert load("proard-micro@10M").spec.to_dict() == best.spec


def test_only_dynamic_nets_have_budgets_and_a_budget_is_a_count(released):
    entry = next(e for e in load_registry().models.values() if e.subnet)
    for name in ("proard-micro@", "proard-micro@much", f"{entry.name}@15M"):
        with pytest.raises(UsageError, match="is not a count"):
            load(name)
    with pytest.raises(UnknownModel, match="no model is called"):
        load("nobody@15M")
    with pytest.raises(UsageError, match="not a dynamic net"):
        dynamic(entry.name)


def test_other_weights_of_a_dynamic_net_replace_its_sub_nets_too(released, toy, tmp_path):
    bundled = tmp_path / "bundled"
    assert len([*bundled.glob("proard-micro@*")]) == 6
    put("proard-micro", toy)  # more results for the same weights
    assert len(load_registry().models) == 4
    put(f"local-dir:{left(tmp_path / 'longer', seed=1)}", toy)
    assert [*load_registry().models] == ["proard-micro"]
    assert {one.name for one in bundled.iterdir()} == {"proard-micro.safetensors", "proard-micro.bits.npz"}


def test_a_sub_net_of_other_weights_is_refused(folder, toy, tmp_path):
    net, other = dynamic(str(folder)), dynamic(str(left(tmp_path / "other", seed=1)))
    genes = net.space.smallest[0]
    cut = net.save(genes, toy, tmp_path / "cut", name="small")
    foreign = other.save(genes, toy, tmp_path / "foreign", name="small")
    (cut / "model.safetensors").write_bytes((foreign / "model.safetensors").read_bytes())
    with pytest.raises(IntegrityError, match="belongs to other weights"):  # though the config names the right ones
        load(f"local-dir:{cut}")
    (tmp_path / "other" / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    with pytest.raises(IntegrityError, match="belongs to other weights"):
        load(f"local-dir:{foreign}")


def test_a_registry_with_a_sub_net_of_replaced_weights_is_refused(released, registry):
    data = json.loads(registry.read_text())
    name = next(name for name, model in data["models"].items() if model.get("subnet"))
    data["models"][name]["subnet"]["weights_sha256"] = "e" * 64
    with pytest.raises(IntegrityError, match=f"{name}.subnet.*cut from other weights than those of 'proard-micro'"):
        check(json.dumps(data).encode(), registry)
    data["models"][name]["subnet"]["of"] = "nobody"
    with pytest.raises(IntegrityError, match="no dynamic net is called 'nobody'"):
        check(json.dumps(data).encode(), registry)


@pytest.mark.parametrize(
    "change",
    [
        lambda config: config["spec"].update(widths=[[4]], resolutions=[8]),
        lambda config: config["spec"].update(widths=[[4] * 9, [6]]),
        lambda config: config["subnet"].pop("weights_sha256"),
        lambda config: config.update(subnet=["proard-micro"]),
        lambda config: config.update(supernet=["micro"]),
    ],
)
def test_a_damaged_config_of_a_sub_net_is_refused(folder, toy, tmp_path, change):
    net = dynamic(str(folder))
    cut = net.save(net.space.smallest[0], toy, tmp_path / "cut", name="small")
    config = json.loads((cut / "config.json").read_text())
    change(config)
    (cut / "config.json").write_text(json.dumps(config))
    with pytest.raises(IntegrityError, match=r"config\.json|is not a sub-net of"):
        load(f"local-dir:{cut}")


def test_a_dynamic_net_is_found_in_the_home_folder_and_not_on_the_hub(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder.parent))
    assert dynamic("local-dir:~/model").name == f"local-dir:{folder.resolve()}"
    with pytest.raises(UsageError, match="download 'org/net' to a folder"):
        dynamic("hf-hub:org/net")
    (folder / "config.json").write_text(json.dumps({"spec": {}, "supernet": "micro"}))
    with pytest.raises(IntegrityError, match="has no 'family'"):
        dynamic(str(folder))


def test_nothing_is_overwritten_and_genes_out_of_range_leave_nothing_behind(folder, toy, tmp_path):
    net = dynamic(str(folder))
    with pytest.raises(UsageError, match="it must be 0 to 2"):
        net.save(net.space.largest[0] + 1, toy, tmp_path / "cut", name="small")
    assert not (tmp_path / "cut").exists()
    net.save(net.space.smallest[0], toy, tmp_path / "cut", name="small")
    with pytest.raises(UsageError, match="already holds a model"):
        net.save(net.space.smallest[0], toy, tmp_path / "cut", name="small")


def test_of_two_that_cut_to_one_folder_at_once_the_second_is_refused(folder, toy, tmp_path, monkeypatch):
    both, cut = Barrier(2), Dynamic.cut

    def late(net, genes, dataset):
        model = cut(net, genes, dataset)
        both.wait(timeout=60)  # neither has written yet
        return model

    def save(genes):
        try:
            dynamic(str(folder)).save(genes, toy, tmp_path / "cut", name="one")
        except UsageError as error:
            return str(error)
        return genes

    monkeypatch.setattr(Dynamic, "cut", late)
    space = micro()
    with ThreadPoolExecutor(2) as threads:
        told = list(threads.map(save, (space.smallest[0], space.largest[0])))
    (refused,) = [one for one in told if isinstance(one, str)]
    (kept,) = [one for one in told if not isinstance(one, str)]
    assert "already holds a model" in refused
    assert load(f"local-dir:{tmp_path / 'cut'}").spec == space.spec(kept)
