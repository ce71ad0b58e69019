"""What a bundle says of itself is compared with the registry, the graph, its reports and its float model."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import save_file
from test_registry import registry_data
from test_verify import forge

from zoo.datasets.cifar10 import CIFAR10
from zoo.datasets.imagefolder import opened
from zoo.export import export_model, read_bundle, verify_bundle
from zoo.export.bundle.folder import MANIFEST, SUMS, files, write_sums
from zoo.export.bundle.source import public, source_of
from zoo.export.onnx.graph import metadata_of
from zoo.export.onnx.uint8 import UINT8
from zoo.registry.file import info, load_registry
from zoo.system.errors import IntegrityError, Unreachable
from zoo.system.files import kind_of, pretty, sha256_file
from zoo.weights.load import BUNDLED, find, load

NAME = "trades-s3"
Edit = Callable[[dict[str, Any]], Any]


def quiet(sentence: str) -> None:
    """Nothing that a test looks at."""


@pytest.fixture(scope="module")
def released(tmp_path_factory) -> Path:
    """A bundle of a released model."""
    return export_model(NAME, out=tmp_path_factory.mktemp("out"), verify="parity", uint8=True, notify=quiet).folder


def folder_of(folder: Path, state: dict[str, torch.Tensor], **config: Any) -> str:
    folder.mkdir(parents=True)
    save_file(state, folder / "model.safetensors")
    facts = {"name": NAME, "dataset": "cifar10", "classes": CIFAR10.classes, "spec": info(NAME).spec}
    (folder / "config.json").write_text(json.dumps(facts | config))
    return f"local-dir:{folder}"


@pytest.fixture(scope="module")
def retrained(tmp_path_factory) -> str:
    """The released model's recipe with other weights, as a run leaves it."""
    state = load(NAME).state_dict()
    state["head.bias"] = state["head.bias"] + 1e-3
    return folder_of(tmp_path_factory.mktemp("run") / "model", state)


@pytest.fixture(scope="module")
def own(retrained, tmp_path_factory) -> Path:
    """Its bundle."""
    return export_model(retrained, out=tmp_path_factory.mktemp("own"), verify="parity", notify=quiet).folder


@pytest.fixture
def copy(tmp_path) -> Callable[[Path], Path]:
    return lambda bundle: Path(shutil.copytree(bundle, tmp_path / "bundle"))


def edited(bundle: Path, edit: Edit) -> Path:
    """The bundle with another manifest, and with sums that fit."""
    manifest = json.loads((bundle / MANIFEST).read_text())
    edit(manifest)
    (bundle / MANIFEST).write_text(json.dumps(manifest))
    write_sums(bundle)
    return bundle


def relabelled(bundle: Path, **values: str | None) -> Path:
    """The bundle with other metadata in its graph; None removes a key."""
    proto = onnx.load(bundle / "model.onnx")
    held = {entry.key: entry.value for entry in proto.metadata_props} | values
    onnx.helper.set_model_props(proto, {key: value for key, value in held.items() if value is not None})
    onnx.save(proto, bundle / "model.onnx")
    forge(bundle)
    return bundle


def at(*path: str | int, value: Any) -> Edit:
    def edit(manifest: dict[str, Any]) -> None:
        inner: Any = manifest
        for key in path[:-1]:
            inner = inner[key]
        inner[path[-1]] = value

    return edit


# -- contradictions ----------------------------------------------------------------------------------------------


def test_a_bundle_as_it_was_written_holds_no_contradiction(released, own):
    assert verify_bundle(released, level="parity").reached == "parity"
    assert verify_bundle(own, level="parity").reached == "parity"


@pytest.mark.parametrize(
    ("edit", "told"),
    [
        (lambda manifest: manifest["labels"].reverse(), "labels = .'truck'.* cifar10 has .'airplane'"),
        (at("labels", value=list("abc")), "labels"),
        (
            at("measured", "pgd20", "accuracy", "value", value=0.99),
            r"measured\.pgd20 = .'value': 0\.99, .*'trades-s3' has .'value': 0\.3",
        ),
        (at("measured", "pgd20", "accuracy", "n", value=10**6), r"measured\.pgd20 = .*'n': 1000000"),
        (at("measured", "pgd20", value=0.99), r"measured\.pgd20 = 0\.99"),
        (
            at("measured", "imagined", value={"accuracy": {"value": 0.9}}),
            r"measured\.imagined = .'value': 0\.9., but .* None",
        ),
        (at("reported", "pgd20", value={"value": 0.9, "source": "us"}), r"reported\.pgd20 = 0\.9"),
        (at("threat_model", "eps", value=0.5), r"threat_model = 'linf 0\.5', but .* 'linf 8/255'"),
        (at("io", "input", "range", value=[0, 255]), r"io\.input\.range = \[0\.0, 255\.0\], but .*\[0\.0, 1\.0\]"),
        (at("io", "input", "layout", value="NCHW, BGR"), r"io\.input\.layout = 'NCHW, BGR'"),
        (at("io", "output", "name", value="probabilities"), r"io\.output\.name"),
        (at("cost", "macs", value=1), r"cost\.macs = 1, but its architecture has \d+"),
        (at("spec", "mean", value=[0.5, 0.5, 0.5]), r"spec\.mean = \[0\.5, 0\.5, 0\.5\]"),
        (at("dataset", value="cifar100"), "dataset = 'cifar100'"),
        (at("dataset", value="mnist"), "dataset = 'mnist', but .* 'cifar10'"),
        (at("name", value="trades-s5"), "name = 'trades-s5', but .* 'trades-s3'"),
        (at("source", "file_sha256", value="0" * 64), r"source\.file_sha256"),
        (at("verified", value="attacked"), "verified = 'attacked', but reports/verify.json has 'parity'"),
        (at("gates", 1, "measured", "agreement", value=2.0), r"gates\.parity\.measured"),
        (at("gates", value=[]), "gates"),
    ],
)
def test_what_contradicts_the_registry_the_architecture_or_the_reports_is_refused(released, copy, edit, told):
    bundle = edited(copy(released), edit)
    with pytest.raises(IntegrityError, match=told):
        verify_bundle(bundle, level="parity")


def test_the_released_figures_may_have_been_measured_again(released, copy):
    """The same weights under the same attack another time: within the interval, but not elsewhere."""
    value = info(NAME).results["pgd20"].accuracy.value

    def again(by: float) -> Edit:
        def edit(manifest: dict[str, Any]) -> None:
            result = manifest["measured"]["pgd20"]
            result["accuracy"]["value"], result["measured_at"] = value + by, "2020-01-01T00:00:00+00:00"

        return edit

    bundle = copy(released)
    (bundle / UINT8).unlink()
    relabelled(edited(bundle, again(0.002)), measured=None)
    assert verify_bundle(bundle, level="none").reached == "none"
    with pytest.raises(IntegrityError, match=r"measured\.pgd20"):
        verify_bundle(edited(bundle, again(0.02)), level="none")


@pytest.mark.parametrize(
    ("edit", "told"),
    [
        (at("name", value="mine"), "name = 'mine', but the metadata of model.onnx have 'trades-s3-"),
        (at("labels", value=[]), "labels = '\\[\\]', but the metadata"),
        (at("threat_model", "eps", value=0.1), r"eps 0\.1 .*eps 0\.0313725"),
        (at("source", "file_sha256", value="0" * 64), "file_sha256"),
        (lambda manifest: (manifest.pop("dataset"), manifest.update(labels=[])), "labels|dataset = None"),
        (at("artifact", "precision", value="fp16"), "precision = 'fp16', but the metadata"),
        (at("measured", value={"pgd20": 0.99}), "measured = {'pgd20': 0.99}, but only released models"),
        (at("name", value="trades-s5"), "name = 'trades-s5', but its weights are not those"),
        (at("name", value="rnascl-s7-wrt34"), "its weights are not those"),
    ],
)
def test_what_contradicts_the_graph_is_refused_of_any_model(own, copy, edit, told):
    bundle = edited(copy(own), edit)
    with pytest.raises(IntegrityError, match=told):
        verify_bundle(bundle, level="parity")


def test_the_graph_for_raw_images_is_compared_too(released, copy):
    bundle = copy(released)
    proto = onnx.load(bundle / UINT8)
    next(entry for entry in proto.metadata_props if entry.key == "labels").value = "[]"
    onnx.save(proto, bundle / UINT8)
    write_sums(bundle)
    with pytest.raises(IntegrityError, match=r"metadata of model-uint8\.onnx"):
        verify_bundle(bundle, level="parity")


def test_the_graph_mirrors_the_manifest(released, own):
    manifest, held = read_bundle(released), metadata_of(released / "model.onnx")
    assert json.loads(held["measured"])["pgd20"] == info(NAME).results["pgd20"].accuracy.value
    assert held["file_sha256"] == manifest.source.file_sha256 == info(NAME).weights.sha256
    assert (held["params"], held["dataset"]) == (str(manifest.cost.params), "cifar10")
    assert "measured" not in metadata_of(own / "model.onnx")


@pytest.mark.parametrize(
    "change",
    [
        lambda probe: {"logits": 0 * probe["logits"]},
        lambda probe: {"logits": probe["logits"][:2]},
        lambda probe: {"images": probe["images"][::-1]},
        lambda probe: {"images": 255 * probe["images"]},
        lambda probe: {"images": probe["images"].astype(object)},
    ],
)
@pytest.mark.parametrize("kind", ["clean", "adversarial"])
def test_a_forged_probe_is_found(released, copy, change, kind):
    bundle = copy(released)
    path = bundle / "probe" / f"{kind}.npz"
    with np.load(path) as probe:
        np.savez(path, **dict(probe) | change(probe))
    write_sums(bundle)
    with pytest.raises(IntegrityError, match=f"probe/{kind}.npz' (does not hold|is not a probe)"):
        verify_bundle(bundle, level="parity", notify=quiet)


# -- names and files ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("edit", "where"),
    [
        *(
            (at("name", value=name), "name")
            for name in ("../../../evil", "/evil", ".hidden", "-rf", "a\\b", "a\nb", "")
        ),
        (at("artifact", "file", value="../model.onnx"), "artifact.file"),
        (at("artifact", "companions", value=["probe/clean.npz"]), r"artifact\.companions\.0"),
        (at("source", "twin", value="../twin.safetensors"), r"source\.twin"),
        (at("labels", 0, value="cat\ndog"), r"labels\.0"),
    ],
)
def test_names_are_names(released, copy, edit, where):
    with pytest.raises(IntegrityError, match=f"at '{where}': .* is malformed"):
        read_bundle(edited(copy(released), edit))


@contextmanager
def within(seconds: int) -> Iterator[None]:
    """Fail where something waits."""

    def late(*_: Any) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no named pipes")
def test_a_pipe_is_refused_and_not_waited_for(released, copy, tmp_path, monkeypatch):
    bundle = copy(released)
    for name in ("README.md", SUMS, "probe/clean.npz"):
        content = (bundle / name).read_bytes()
        (bundle / name).unlink()
        os.mkfifo(bundle / name)
        with within(20), pytest.raises(IntegrityError, match=f"{name}' is a named pipe"):
            verify_bundle(bundle)
        (bundle / name).unlink()
        (bundle / name).write_bytes(content)
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "model").mkdir()
    os.mkfifo(tmp_path / "model" / "config.json")
    with within(20), pytest.raises(Unreachable, match=r"config\.json' is a named pipe"):
        find(f"local-dir:{tmp_path / 'model'}")
    monkeypatch.setenv("ZOO_REGISTRY", str(tmp_path / "pipe.png"))
    with within(20), pytest.raises(IntegrityError, match="it is a named pipe, not a file"):
        load_registry()
    with within(20), pytest.raises(IntegrityError, match="it is a named pipe"):
        opened(tmp_path / "pipe.png")


def test_other_files_that_are_none_are_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # the path of a socket must be short
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("here")
        assert kind_of(Path("here")) == "a socket"
    Path("link").symlink_to("/dev/null")
    assert kind_of(Path("link")) == "a device"
    assert kind_of(Path("link"), follow=False) == "a link"
    assert (kind_of(Path()), kind_of(Path("nothing")), kind_of(Path(__file__))) == ("a folder", None, None)


# -- weights that travel -----------------------------------------------------------------------------------------


def test_a_bundle_of_an_own_model_is_verified_wherever_its_run_is_now(retrained, tmp_path):
    place = Path(shutil.copytree(retrained.removeprefix("local-dir:"), tmp_path / "private" / "model"))
    bundle = export_model(f"local-dir:{place}", out=tmp_path / "out", verify="parity", notify=quiet).folder
    shutil.rmtree(place)
    assert verify_bundle(bundle, level="parity").reached == "parity"
    assert not [name for name in files(bundle) if str(tmp_path).encode() in (bundle / name).read_bytes()]
    source = read_bundle(bundle).source
    assert source.file_sha256 == sha256_file(Path(retrained.removeprefix("local-dir:")) / "model.safetensors")


def test_only_safetensors_are_read(own, copy):
    bundle = copy(own)
    torch.save({"head.bias": torch.zeros(1)}, bundle / "twin.safetensors")
    write_sums(bundle)
    with pytest.raises(IntegrityError, match="is a pickle"):
        verify_bundle(bundle, level="parity")


def test_the_file_that_a_manifest_names_must_be_there(own, copy):
    bundle = copy(own)
    (bundle / "twin.safetensors").unlink()
    write_sums(bundle)
    with pytest.raises(IntegrityError, match=r"lacks twin\.safetensors, which its manifest names"):
        read_bundle(bundle)


def test_a_sub_net_travels_whole(tmp_path, monkeypatch):
    """In its folder are BatchNorm statistics only, and the name of its dynamic net."""
    entry = info("proard-tiny@4M")
    (tmp_path / "cut").mkdir()
    shutil.copyfile(BUNDLED / entry.weights.file, tmp_path / "cut" / "model.safetensors")
    config = {"name": "cut", "spec": entry.spec, "subnet": asdict(entry.subnet)}
    (tmp_path / "cut" / "config.json").write_text(json.dumps(config))
    bundle = export_model(f"local-dir:{tmp_path / 'cut'}", out=tmp_path, verify="parity", notify=quiet).folder
    (tmp_path / "registry.json").write_text(pretty(registry_data({})))
    monkeypatch.setenv("ZOO_REGISTRY", str(tmp_path / "registry.json"))
    assert verify_bundle(bundle, level="parity").reached == "parity"


def test_paths_are_left_out_of_commands():
    given = ["zoo", "export", "local-dir:/home/me/run/model", "--data=/mnt/a b/cifar10", "-o", "runs/out", "-n", "5"]
    assert public(*given) == "zoo export local-dir:.../model '--data=.../cifar10' -o runs/out -n 5".replace("'", "")


# -- names of released models --------------------------------------------------------------------------------------


def test_a_retrained_model_does_not_go_by_the_released_name(own, retrained):
    sha256 = sha256_file(Path(retrained.removeprefix("local-dir:")) / "model.safetensors")
    manifest, title = read_bundle(own), f"{NAME}-{sha256[:8]}"
    assert (manifest.name, manifest.measured, manifest.reported) == (title, {}, {})
    assert own.name.startswith(f"{title}--")
    assert (own / "README.md").read_text().startswith(f"# {title}\n")
    assert find(retrained).reference() == {"name": title, "weights_sha256": sha256}  # of what is trained from it


def test_the_released_weights_are_the_released_model_wherever_they_are(tmp_path):
    entry = info(NAME)
    (tmp_path / "model").mkdir()
    shutil.copyfile(BUNDLED / entry.weights.file, tmp_path / "model" / "model.safetensors")
    config: dict[str, Any] = {"name": NAME, "spec": entry.spec}
    for spec, travels in ((entry.spec, False), (entry.spec | {"mean": [0.5, 0.5, 0.5]}, True)):
        (tmp_path / "model" / "config.json").write_text(json.dumps(config | {"spec": spec}))
        _, known = source_of(f"local-dir:{tmp_path / 'model'}")
        assert (known.title == NAME, known.measured == {}, known.travels) == (not travels, travels, travels)
    assert (known.title, known.labels) == (f"{NAME}-{entry.weights.sha256[:8]}", ())


def test_a_repository_of_the_hub_does_not_go_by_the_released_name(bundled, hub_cache, monkeypatch):
    from tiny import REVISION

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(hub_cache))
    _, known = source_of("hf-hub:org/tiny", offline=True)
    assert (known.title, known.travels) == (f"tiny-{known.file_sha256[:8]}", True)
    _, pinned = source_of(f"hf-hub:org/tiny@{REVISION}", offline=True)
    assert (pinned.title, pinned.travels) == (known.title, False)


# -- names of classes --------------------------------------------------------------------------------------------


def test_classes_have_the_names_that_the_folder_states(tmp_path):
    state, beasts = load(NAME).state_dict(), tuple(f"beast {i}" for i in range(10))
    for i, (config, labels) in enumerate(
        [
            ({"classes": beasts, "dataset": None}, beasts),
            ({"classes": beasts, "dataset": "beasts"}, beasts),
            ({"classes": None, "dataset": None}, ()),
            ({"classes": None}, ()),  # older folders
            ({}, CIFAR10.classes),
        ]
    ):
        _, known = source_of(folder_of(tmp_path / str(i), state, name="mine", **config))
        assert known.labels == labels
    bundle = export_model(f"local-dir:{tmp_path / '0'}", out=tmp_path, verify="none", notify=quiet)
    assert read_bundle(bundle).labels == beasts
    assert source_of(NAME)[1].labels == CIFAR10.classes


@pytest.mark.parametrize(
    ("classes", "told"),
    [
        (["cat", "dog"], "names 2 classes, but its architecture has 10"),
        (CIFAR10.classes[::-1], "other classes than its data set cifar10"),
        (["cat\n", *CIFAR10.classes[1:]], r"wrong at 'classes\.0'"),
    ],
)
def test_classes_that_cannot_be_are_refused(tmp_path, classes, told):
    with pytest.raises(IntegrityError, match=told):
        source_of(folder_of(tmp_path / "model", load(NAME).state_dict(), name="mine", classes=classes))
