"""Int8 graphs with layers in float, and with weights in 7 bits."""

from __future__ import annotations

import json
import shutil
from copy import deepcopy
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from exported import bundle_of
from onnx import numpy_helper
from test_export import FAMILIES, model_of

from zoo.cli.app import run
from zoo.datasets.base import to_float
from zoo.evaluation.protocols import PROTOCOLS
from zoo.export import mixed, read_bundle
from zoo.export.bundle.source import Known
from zoo.export.mixed import search
from zoo.export.onnx.calibration import Sampling, calibration_images
from zoo.export.onnx.graph import save_onnx
from zoo.export.onnx.int8 import layers_of, to_int8
from zoo.models import build
from zoo.specs import StagedSpec
from zoo.system.errors import ExportFailed, UsageError
from zoo.weights.tensors import save_weights

WALK = PROTOCOLS["pgd20-t"].model_copy(update={"split": "validation", "n": 60, "steps": 6})
KNOWN = Known("sturdy", "sturdy", dataset="cifar10")


@pytest.fixture(scope="module")
def images(world):
    return to_float(world.split("train").images[50:114])


@pytest.fixture(scope="module")
def spoiled(robust):
    """The same function, in which one channel between two convolutions is so large that int8 rounds the others off."""
    model = deepcopy(robust)
    large, after = model.features[1].bn, model.features[2].conv
    with torch.no_grad():
        for tensor in (large.weight, large.bias):
            tensor[3] *= 500
        after.weight[:, 3] /= 500
    return model


@pytest.fixture(scope="module")
def float_graph(robust, fragile, spoiled, tmp_path_factory):
    """A function that puts the float graph of one of three models into a file."""
    models, folder = {"robust": robust, "fragile": fragile, "spoiled": spoiled}, tmp_path_factory.mktemp("float")

    def put(name, path):
        if not (folder / name).exists():
            save_onnx(models[name], folder / name)
        return Path(shutil.copy(folder / name, path))

    return put


@pytest.fixture(scope="module")
def searched(spoiled, float_graph, images, world, tmp_path_factory):
    """A search over the spoiled model: the float graph, the quantised one, and what was found."""
    folder = tmp_path_factory.mktemp("search")
    stages = []
    for name in ("float.onnx", "model.onnx"):
        float_graph("spoiled", folder / name)
    told = search(
        spoiled,
        folder / "model.onnx",
        partial(to_int8, images=images),
        world.split("validation"),
        WALK,
        allowed=0.02,
        progress=lambda *stage: stages.append(stage),
    )
    return folder, told, stages


def in_float(path) -> set[str]:
    """The convolutions whose weights are in float."""
    graph = onnx.load(str(path)).graph
    made = {output for node in graph.node if node.op_type == "DequantizeLinear" for output in node.output}
    return {node.name for node in graph.node if node.op_type == "Conv" and node.input[1] not in made}


def between_them(path) -> set[str]:
    """The two convolutions in the float graph at ``path`` that the channel is between."""
    return {node.name for node in [node for node in onnx.load(str(path)).graph.node if node.op_type == "Conv"][1:3]}


def weights(path) -> list[np.ndarray]:
    held = (numpy_helper.to_array(one) for one in onnx.load(str(path)).graph.initializer)
    return [array for array in held if array.dtype == np.int8 and array.ndim == 4]


def test_a_search_keeps_the_layers_in_float_that_int8_ruins(searched, spoiled):
    folder, told, _ = searched
    assert told.before > 0.1
    assert told.lost <= told.allowed == 0.02
    kept = in_float(folder / "model.onnx")
    assert between_them(folder / "float.onnx") <= kept <= {*told.kept}
    assert len(kept) < 4  # something is in int8
    macs = {layer.nodes[0]: layer.macs for layer in layers_of(folder / "float.onnx")}
    assert told.macs == pytest.approx(sum(macs[name] for name in kept) / sum(macs.values()))
    assert (told.protocol["split"], told.protocol["n"], told.protocol["steps"]) == ("validation", 60, 6)


def test_images_with_wide_margins_are_walked_from_once_and_the_search_finds_the_same(
    searched, spoiled, float_graph, images, world, tmp_path, monkeypatch
):
    folder, usual, _ = searched
    walks, spared = mixed.survivors, []

    def counted(*given):
        spared.append(int(given[-1].sum()))
        return walks(*given)

    monkeypatch.setattr(mixed, "survivors", counted)
    graph, quantise = tmp_path / "model.onnx", partial(to_int8, images=images)
    for least in (mixed.WIDE_FOR_WALKS, np.inf):
        monkeypatch.setattr(mixed, "WIDE_FOR_WALKS", least)
        float_graph("spoiled", graph)
        assert search(spoiled, graph, quantise, world.split("validation"), WALK, allowed=0.02) == usual
        assert graph.read_bytes() == (folder / "model.onnx").read_bytes()
    assert spared[0] == 0 < max(spared[: usual.graphs])
    assert not any(spared[usual.graphs :])


def test_the_progress_of_a_search_never_goes_back(searched):
    done = [done / total for stage, done, total in searched[2] if stage == "search"]
    assert done == sorted(done)
    assert done[-1] == 1


def test_where_int8_loses_little_enough_no_layer_stays_in_float(robust, float_graph, images, world, tmp_path):
    float_graph("robust", tmp_path / "model.onnx")
    to_int8(float_graph("robust", tmp_path / "usual.onnx"), images)
    fewer = WALK.model_copy(update={"n": 40})
    told = search(
        robust,
        tmp_path / "model.onnx",
        partial(to_int8, images=images),
        world.split("validation"),
        fewer,
        allowed=0.2,
    )
    assert (told.kept, told.macs, told.graphs) == ((), 0, 1)
    assert (tmp_path / "model.onnx").read_bytes() == (tmp_path / "usual.onnx").read_bytes()


def test_a_search_for_graphs_that_round_inputs_alone_keeps_convolutions_alone(
    spoiled, float_graph, images, world, tmp_path
):
    float_graph("spoiled", tmp_path / "float.onnx")
    float_graph("spoiled", tmp_path / "model.onnx")
    told = search(
        spoiled,
        tmp_path / "model.onnx",
        partial(to_int8, images=images, inputs_only=True),
        world.split("validation"),
        WALK,
        allowed=0.02,
        inputs_only=True,
    )
    assert told.lost <= 0.02 < told.before
    kept = in_float(tmp_path / "model.onnx")
    assert 0 < len(kept) < 4
    layers = layers_of(tmp_path / "float.onnx", inputs_only=True)
    assert {*told.kept} <= {name for layer in layers for name in layer.nodes}
    assert kept == {*told.kept} & {layer.nodes[0] for layer in layers}


def test_layers_that_round_inputs_alone_are_the_convolutions(tmp_path):
    spec = StagedSpec(widths=((8,), (12, 12)), resolutions=(16, 8), stem=6, activation="silu", shortcuts=True)
    save_onnx(build(spec).eval(), tmp_path / "model.onnx")
    all_of_them = layers_of(tmp_path / "model.onnx")
    convolutions = layers_of(tmp_path / "model.onnx", inputs_only=True)
    assert convolutions == [layer for layer in all_of_them if layer.macs]
    assert len(convolutions) == 4 < len(all_of_them)


def test_layers_leave_out_the_convolution_that_stays_in_float_anyway(tmp_path):
    save_onnx(model_of(FAMILIES["wideresnet"]), tmp_path / "model.onnx")
    convolutions = [node.name for node in onnx.load(str(tmp_path / "model.onnx")).graph.node if node.op_type == "Conv"]
    layers = layers_of(tmp_path / "model.onnx", inputs_only=True)
    assert [layer.nodes[0] for layer in layers] == convolutions[1:]


@pytest.mark.parametrize(("engine", "inputs_only"), [("onnxruntime", False), ("openvino", True)])
def test_an_export_searches_among_the_layers_that_its_engine_s_graphs_round(
    robust, world, tmp_path, monkeypatch, engine, inputs_only
):
    if engine == "openvino":
        pytest.importorskip("openvino")
    looked_at = []
    monkeypatch.setattr("zoo.export.exporter.SEARCHED_ON", 20)
    monkeypatch.setattr(mixed, "layers_of", lambda path, **how: looked_at.append(how) or layers_of(path, **how))
    calibrated = calibration_images(robust, world, Sampling(n=32))
    given = {"format": engine, "precision": "int8", "calibrated": calibrated, "held_out": world.split("validation")}
    bundle_of(robust, KNOWN, out=tmp_path, keep_robust=0.5, verify="none", **given)
    assert looked_at == [{"inputs_only": inputs_only}]


def test_a_search_that_finds_nothing_says_so(robust, float_graph, images, world, tmp_path):
    float_graph("robust", tmp_path / "model.onnx")

    def ruined(path, **how):
        to_int8(float_graph("fragile", path), images, **how)

    fewer = WALK.model_copy(update={"n": 40})
    with pytest.raises(ExportFailed, match=r"more than 0\.5 points of accuracy under attack are lost: allow more"):
        search(robust, tmp_path / "model.onnx", ruined, world.split("validation"), fewer, allowed=0.005)


def test_ranges_that_were_stored_give_the_same_graph(float_graph, images, tmp_path):
    contents = set()
    for ranges in (None, tmp_path / "ranges.json", tmp_path / "ranges.json"):
        path = float_graph("robust", tmp_path / "model.onnx")
        to_int8(path, images, ranges=ranges)
        contents.add(path.read_bytes())
    assert len(contents) == 1


@pytest.mark.parametrize("symmetric", [False, True])
def test_portable_weights_lie_in_7_bits(float_graph, images, tmp_path, symmetric):
    largest = []
    for portable in (False, True):
        path = float_graph("robust", tmp_path / "model.onnx")
        to_int8(path, images[:16], symmetric=symmetric, portable=portable)
        largest.append(max(np.abs(array.astype(int)).max() for array in weights(path)))
    assert largest == [127, 64]


def test_a_manifest_says_how_its_graph_departs_from_the_usual(
    spoiled, float_graph, world, found, tmp_path, monkeypatch
):
    found(world)
    monkeypatch.setattr("zoo.export.exporter.SEARCHED_ON", 20)
    model = tmp_path / "model"
    model.mkdir()
    save_weights(spoiled.state_dict(), model / "model.safetensors")
    (model / "config.json").write_text(json.dumps({"spec": spoiled.spec.to_dict(), "dataset": "cifar10"}))
    options = ["--precision", "int8", "--keep-robust", "5", "--portable-int8", "--calibration", "32"]
    where = ["--verify", "none", "-o", str(tmp_path / "out"), "-q"]
    assert run(["export", f"local-dir:{model}", *options, *where]) == 0
    (bundle,) = (tmp_path / "out").iterdir()
    int8 = read_bundle(bundle).int8
    assert int8.portable
    assert int8.search.lost <= int8.search.allowed == 0.05
    assert between_them(float_graph("spoiled", tmp_path / "float.onnx")) <= {*int8.search.kept}
    assert (int8.search.protocol["split"], int8.search.protocol["n"]) == ("validation", 20)
    assert max(np.abs(array.astype(int)).max() for array in weights(bundle / "model.onnx")) <= 64


def test_a_search_without_held_out_images_is_refused(robust, world, tmp_path):
    calibrated = calibration_images(robust, world, Sampling(n=8))
    with pytest.raises(UsageError, match="held-out images"):
        bundle_of(robust, KNOWN, out=tmp_path, precision="int8", calibrated=calibrated, keep_robust=0.05)
