from __future__ import annotations

import hashlib
import re
import shutil

import numpy as np
import onnx
import pytest
import torch
from exported import bundle_of
from test_export import FAMILIES, model_of

from zoo.datasets.base import to_float
from zoo.export import export_model, read_bundle, sign_off, verify_bundle
from zoo.export.bundle.source import Known
from zoo.export.engines import onnxruntime
from zoo.export.ladder.terms import Terms
from zoo.export.onnx.calibration import METHODS, Sampling, calibration_images
from zoo.export.onnx.fp16 import to_fp16
from zoo.export.onnx.graph import metadata_of, save_onnx
from zoo.export.onnx.int8 import to_int8
from zoo.models import build
from zoo.specs import StagedSpec
from zoo.system.errors import DataNotFound, ExportFailed, RobustnessGateFailed, UsageError

TERMS = {"n": 50, "margin": 0.06}  # equal answers on 50 images show 6 points
KNOWN = Known("sturdy", "sturdy")


@pytest.fixture
def graph(robust, tmp_path):
    save_onnx(robust, tmp_path / "model.onnx", metadata={"name": "sturdy"})
    return tmp_path / "model.onnx"


def initializers(path) -> dict[str, np.ndarray]:
    return {entry.name: onnx.numpy_helper.to_array(entry) for entry in onnx.load(str(path)).graph.initializer}


# -- calibration -----------------------------------------------------------------------------------------------


def test_calibration_images_come_from_the_training_split_and_never_from_the_test_split(robust, world):
    everything = Sampling(n=250)  # of 300 training images 50 are tested
    x, record = calibration_images(robust, world, everything)
    tested = {image.tobytes() for image in world.split("test").images}
    drawn = [np.uint8((image * 255).round().permute(1, 2, 0).numpy()).tobytes() for image in x]
    assert len(set(drawn)) == 250
    assert not tested & set(drawn)
    indices = np.arange(50, 300, dtype="<i8")
    assert record.indices_sha256 == hashlib.sha256(indices.tobytes()).hexdigest()
    assert (record.n, record.split, record.method, record.adversarial) == (250, "train", "percentile", 0.0)
    with pytest.raises(UsageError, match="there are 250"):
        calibration_images(robust, world, Sampling(n=251))


def test_the_seed_chooses_the_images(robust, world):
    records = [calibration_images(robust, world, Sampling(n=16, seed=seed))[1] for seed in (0, 0, 1)]
    assert records[0] == records[1]
    assert records[0].images_sha256 != records[2].images_sha256


def test_the_adversarial_share_is_attacked_and_stays_in_the_ball(robust, fragile, world):
    plain, _ = calibration_images(fragile, world, Sampling(n=16))
    half, record = calibration_images(fragile, world, Sampling(n=16, adversarial=0.5))
    assert record.adversarial == 0.5
    moved = (half - plain).abs().amax((1, 2, 3))
    assert (moved[:8] > 7 / 255).all()
    assert (moved <= 8 / 255 + 1e-6).all()
    assert not moved[8:].any()


@pytest.mark.parametrize(
    "wrong", [{"n": 0}, {"method": "maximum"}, {"adversarial": 1.5}, {"adversarial": float("nan")}]
)
def test_malformed_sampling_is_refused(wrong):
    with pytest.raises(UsageError):
        Sampling(**wrong)


# -- graphs ----------------------------------------------------------------------------------------------------


def test_fp16_halves_the_weights_and_keeps_the_ports_and_metadata(robust, graph, split):
    to_fp16(graph)
    proto = onnx.load(str(graph))
    assert {array.dtype for name, array in initializers(graph).items() if "weight" in name} == {np.dtype(np.float16)}
    assert proto.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    assert proto.graph.output[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    assert metadata_of(graph) == {"name": "sturdy"}
    x = to_float(split.images[:100])
    difference = (onnxruntime.load(graph, threads=1)(x) - robust(x)).abs().max()
    assert 1e-5 < difference < 0.05


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_int8_quantises_every_convolution_per_channel_and_leaves_the_last_layer(
    robust, graph, world, split, method, symmetric
):
    x, _ = calibration_images(robust, world, Sampling(n=96))  # no whole number of batches of 64
    to_int8(graph, x, method=method, symmetric=symmetric)
    proto, held = onnx.load(str(graph)), initializers(graph)
    feeding = {output: node for node in proto.graph.node for output in node.output}
    convolutions = [node for node in proto.graph.node if node.op_type == "Conv"]
    assert len(convolutions) == 4
    for node in convolutions:
        assert {feeding[name].op_type for name in node.input[:2]} == {"DequantizeLinear"}
        weight, scale, _ = (held[name] for name in feeding[node.input[1]].input)
        assert weight.dtype == np.int8
        assert scale.shape == (weight.shape[0],)  # one for each output channel
        zero = held[feeding[node.input[0]].input[2]]
        assert zero.dtype == (np.int8 if symmetric else np.uint8)
        assert not symmetric or not zero.any()
    (last,) = (node for node in proto.graph.node if node.op_type == "Gemm")
    assert held[last.input[1]].dtype == np.float32
    assert metadata_of(graph) == {"name": "sturdy"}
    images, labels = to_float(split.images), torch.from_numpy(split.labels)
    logits = onnxruntime.load(graph, threads=1)(images)
    assert len(logits.unique()) > 1000  # not coarse
    assert (logits.argmax(1) == labels).float().mean() > 0.95


@pytest.fixture
def shortcuts(tmp_path):
    """A net with SiLU and shortcuts, and its float graph."""
    spec = StagedSpec(widths=((8,), (12, 12)), resolutions=(16, 8), stem=6, activation="silu", shortcuts=True)
    torch.manual_seed(0)
    model = build(spec).eval()
    save_onnx(model, tmp_path / "model.onnx")
    return model, tmp_path / "model.onnx"


def test_where_inputs_alone_are_rounded_convolutions_take_rounded_tensors_and_all_else_floats(shortcuts, split):
    model, graph = shortcuts
    images = to_float(split.images[:64])
    everything = graph.with_name("everything.onnx")
    shutil.copy(graph, everything)
    nodes = onnx.load(str(graph)).graph.node
    convolutions = [node.name for node in nodes if node.op_type == "Conv"]
    shared = [node.name for node in nodes if node.op_type == "Conv"][2]  # its input goes round it too
    to_int8(everything, images)
    to_int8(graph, images, inputs_only=True)
    exact = model(images)
    off = [(onnxruntime.load(path, threads=1)(images) - exact).square().mean() for path in (graph, everything)]
    assert 0 < off[0] < off[1]
    assert takers(graph) == [{name} for name in convolutions]
    assert any(len(names) > 1 for names in takers(everything))
    save_onnx(model, graph)
    to_int8(graph, images, inputs_only=True, kept=[shared])
    assert takers(graph) == [{name} for name in convolutions if name != shared]


def takers(path) -> list[set[str]]:
    """For each activation that is rounded: the nodes that take it rounded."""
    nodes = onnx.load(str(path)).graph.node
    rounded = {node.output[0] for node in nodes if node.op_type == "QuantizeLinear"}
    back = [node.output[0] for node in nodes if node.op_type == "DequantizeLinear" and node.input[0] in rounded]
    return [{node.name for node in nodes if name in node.input} for name in back]


def test_convolutions_that_openvino_computes_wrongly_stay_in_float(tmp_path):
    """Those without a bias whose output goes to an addition and elsewhere, as the stem's does."""
    model, graph = model_of(FAMILIES["wideresnet"]), tmp_path / "model.onnx"
    save_onnx(model, graph)
    convolutions = [node for node in onnx.load(str(graph)).graph.node if node.op_type == "Conv"]
    to_int8(graph, torch.rand(8, 3, 32, 32, generator=torch.Generator().manual_seed(0)), inputs_only=True)
    assert sorted(name for names in takers(graph) for name in names) == sorted(one.name for one in convolutions[1:])


@pytest.mark.parametrize(
    ("precision", "keep_robust", "offered"),
    [
        ("int8", None, "; or keep layers in float (--keep-robust 0.5), "),
        ("int8", 0.3, "; or keep more layers in float (a lower --keep-robust than 30), "),
        ("fp32", None, "; or "),
    ],
)
def test_a_refusal_of_an_int8_engine_offers_layers_in_float(
    robust, world, split, tmp_path, monkeypatch, precision, keep_robust, offered
):
    monkeypatch.setattr("zoo.export.exporter.SEARCHED_ON", 20)
    calibrated = calibration_images(robust, world, Sampling(n=64)) if precision == "int8" else None
    given = {
        "precision": precision,
        "keep_robust": keep_robust,
        "held_out": world.split("validation"),
        "calibrated": calibrated,
        "split": split,
        "verify": "attacked",
        "n": 20,
        "margin": 0.06,
    }
    with pytest.raises(RobustnessGateFailed, match=re.escape(f"would do (--n){offered}allow more (--margin)")):
        bundle_of(robust, KNOWN, out=tmp_path, queries=1 if precision == "int8" else None, **given)


def test_a_graph_that_cannot_be_converted_is_refused(tmp_path):
    graph = onnx.helper.make_graph([onnx.helper.make_node("NoSuchThing", ["images"], ["logits"])], "g", [], [])
    path = tmp_path / "model.onnx"
    path.write_bytes(onnx.helper.make_model(graph).SerializeToString())
    for convert in (to_fp16, lambda path: to_int8(path, torch.rand(2, 3, 32, 32))):
        with pytest.raises(ExportFailed, match="the graph could not be"):
            convert(path)


# -- bundles ---------------------------------------------------------------------------------------------------


def test_an_int8_bundle_climbs_the_whole_ladder_and_says_what_it_was_calibrated_by(robust, world, split, tmp_path):
    calibrated = calibration_images(robust, world, Sampling(n=64))
    bundle = bundle_of(
        robust,
        KNOWN,
        precision="int8",
        calibrated=calibrated,
        out=tmp_path,
        verify="attacked",
        split=split,
        **TERMS,
        queries=50,
    )
    assert bundle.name == "sturdy--onnxruntime-int8"
    manifest = read_bundle(bundle)
    assert (manifest.calibration, manifest.int8) == (calibrated[1], None)
    assert manifest.artifact.precision == metadata_of(bundle / "model.onnx")["precision"] == "int8"
    assert [rung.name for rung in manifest.gates][-4:] == ["transfer", "surrogate", "targeted", "black-box"]
    report = verify_bundle(bundle, split=split, model=robust, n=50, queries=50)
    sign_off(report)
    assert report.rungs[1].threshold == {"tolerance": 0.6}


def test_coarse_arithmetic_is_attacked_as_a_black_box_unless_told_otherwise():
    assert Terms.of("fp32").queries == 0
    assert Terms.of("fp16").queries == Terms.of("int8").queries == 1000
    assert Terms.of("int8", queries=0).queries == 0
    assert Terms.of("int8", tolerance=0.1).tolerance == 0.1


def test_an_engine_with_a_quantiser_of_its_own_refuses_methods_that_it_lacks(tmp_path):
    with pytest.raises(UsageError, match="executorch are chosen by minmax here, not by entropy"):
        export_model(
            "trades-s3", format="executorch", precision="int8", calibration=Sampling(method="entropy"), out=tmp_path
        )
    assert not list(tmp_path.iterdir())


def test_int8_without_images_is_refused(robust, tmp_path, found):
    with pytest.raises(UsageError, match="calibration images"):
        bundle_of(robust, KNOWN, precision="int8", out=tmp_path, verify="parity")

    found(DataNotFound("CIFAR-10 is not here"))
    with pytest.raises(DataNotFound, match="int8 ranges are chosen by training images: CIFAR-10 is not here"):
        export_model("trades-s7", precision="int8", out=tmp_path, verify="parity")
    assert not list(tmp_path.iterdir())
