"""What can be known of the TensorRT engine without a GPU; the tests marked ``gpu`` are for those who have one.

The builder and the runtime are a stand-in here (``fake_tensorrt.py``): these tests show that it is called as NVIDIA's
documentation asks, and nothing about TensorRT.
"""

from __future__ import annotations

import gc
import inspect
import json
import os
import re
import shutil
import sys
import weakref
from pathlib import Path

import fake_tensorrt
import numpy as np
import onnx
import pytest
import torch
from bundles import bundle_of
from fake_tensorrt import FakeTensorRt, install
from test_export import SMALL, images, model_of

from zoo.export import engines, read_bundle, verify_bundle
from zoo.export.bundle.folder import write_sums
from zoo.export.bundle.manifest import Calibration, read_manifest, to_json
from zoo.export.bundle.source import Known
from zoo.export.engines import tensorrt, tensorrt_builder, tensorrt_device
from zoo.export.engines.interface import Order
from zoo.export.engines.tensorrt import bound_to
from zoo.export.engines.tensorrt_builder import Options, build_plan, profile_of, timing_cache
from zoo.export.engines.tensorrt_device import misfits
from zoo.export.onnx.fp16 import to_fp16
from zoo.export.onnx.graph import GRAPH, OPSET, save_onnx
from zoo.export.onnx.int8 import to_int8
from zoo.models import Classifier
from zoo.system.errors import (
    ExportFailed,
    IntegrityError,
    MissingDependency,
    ParityGateFailed,
    UsageError,
    WrongDevice,
    ZooError,
)

BACKEND = engines.backend("trt")
HERE = {
    "gpu": "NVIDIA H100 80GB HBM3",
    "compute_capability": "9.0",
    "tensorrt": "10.16.1.11",
    "platform": "Linux x86_64",
}


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch, tmp_path_factory):
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="module")
def small() -> Classifier:
    return model_of(SMALL)


@pytest.fixture(scope="module")
def graph(small, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("onnx") / GRAPH
    save_onnx(small, path)
    return path


@pytest.fixture(scope="module")
def others_graph(tmp_path_factory) -> Path:
    """The graph of a model with other weights."""
    path = tmp_path_factory.mktemp("other") / GRAPH
    save_onnx(model_of(SMALL, 1), path)
    return path


@pytest.fixture(params=["10.16.1.11", "11.4.0.106"])
def trt(request, monkeypatch) -> FakeTensorRt:
    return install(monkeypatch, FakeTensorRt(request.param))


@pytest.fixture
def eleven(monkeypatch) -> FakeTensorRt:
    return install(monkeypatch, FakeTensorRt())


@pytest.fixture
def plan(eleven, small, graph, tmp_path) -> Path:
    shutil.copy(graph, tmp_path / GRAPH)
    order = Order(model=small, graph=tmp_path / GRAPH, precision="fp32", batches=(1, 4, 8))
    return tmp_path / tensorrt.build(order, tmp_path).file


@pytest.fixture
def exported_before(graph, monkeypatch) -> None:
    """Exports of the small model find its graph done, which takes seconds otherwise."""

    def done(model, path, **_) -> int:
        shutil.copy(graph, path)
        return OPSET

    monkeypatch.setattr("zoo.export.exporter.save_onnx", done)


# -- where it can be used --------------------------------------------------------------------------------------


def test_a_package_whose_libraries_do_not_load_is_told_apart(monkeypatch, tmp_path):
    (tmp_path / "tensorrt.py").write_text("raise ImportError('libnvinfer.so.11: cannot open shared object file')")
    monkeypatch.delitem(sys.modules, "tensorrt", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(MissingDependency, match=r"does not load here \(libnvinfer.so.11: cannot open"):
        tensorrt_device.runtime()


@pytest.mark.parametrize("version", ["8.6.1", "9.3.0", "12.0.0"])
def test_another_version_is_refused(version, monkeypatch):
    install(monkeypatch, FakeTensorRt(version))
    with pytest.raises(MissingDependency, match=f"TensorRT {version} is installed, and 10 or 11 is needed"):
        tensorrt_device.runtime()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_nothing_of_tensorrt_is_called(monkeypatch, graph):
    trt = FakeTensorRt()
    trt.Builder = trt.Runtime = None
    monkeypatch.setitem(sys.modules, "tensorrt", trt)
    for use in (lambda: build_plan(graph.read_bytes(), batches=(1,)), lambda: tensorrt.load("model.plan")):
        with pytest.raises(MissingDependency, match=r"needs an NVIDIA GPU.*finds none.*'--format onnx'"):
            use()


def test_a_driver_that_does_not_do_is_told_and_the_empty_shell_is_never_freed(trt):
    """Freeing one ends the process: seen with the runtimes of 10.16 and 11.4 on a machine without a GPU."""
    trt.broken = {"driver"}
    shells = []

    def kind(log):
        made = trt.Runtime(log)
        shells.append(weakref.ref(made))
        return made

    with pytest.raises(MissingDependency, match=r"this GPU's driver \(createInferRuntime: Error Code 6.*update"):
        tensorrt_device.opened(kind, tensorrt_device.log_of(trt))
    gc.collect()
    assert shells[0]() is not None


# -- what a plan is tied to ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "off"),
    [
        ({}, []),
        ({"gpu": "NVIDIA L4", "compute_capability": "8.9"}, ["gpu", "compute_capability"]),
        ({"gpu": "NVIDIA H100 PCIe"}, ["gpu"]),
        ({"tensorrt": "10.16.1.12"}, ["tensorrt"]),
        ({"platform": "Windows AMD64"}, ["platform"]),
    ],
)
def test_a_plan_is_for_one_gpu_and_version(changed, off):
    assert misfits(bound_to(HERE, Options()), HERE | changed) == off


@pytest.mark.parametrize(
    ("options", "changed", "off"),
    [
        ({"version_compatible": True}, {"tensorrt": "10.16.2"}, []),
        ({"version_compatible": True}, {"tensorrt": "11.0.0.114"}, []),
        ({"version_compatible": True}, {"tensorrt": "10.9.0.34"}, ["tensorrt"]),  # not by the letter
        ({"version_compatible": True}, {"gpu": "NVIDIA L4"}, ["gpu"]),
        ({"hardware": "same_compute_capability"}, {"gpu": "NVIDIA H200"}, []),
        ({"hardware": "same_compute_capability"}, {"compute_capability": "9.1"}, ["compute_capability"]),
        ({"hardware": "ampere_plus"}, {"gpu": "NVIDIA A10", "compute_capability": "8.6"}, []),
        ({"hardware": "ampere_plus"}, {"gpu": "NVIDIA B200", "compute_capability": "10.0"}, []),
        ({"hardware": "ampere_plus"}, {"gpu": "NVIDIA T4", "compute_capability": "7.5"}, ["compute_capability"]),
        ({"hardware": "ampere_plus"}, {"tensorrt": "11.0.0.114"}, ["tensorrt"]),
    ],
)
def test_options_widen_where_a_plan_runs(options, changed, off):
    assert misfits(bound_to(HERE, Options(**options)), HERE | changed) == off


def test_a_need_that_is_not_known_here_is_not_met():
    assert misfits({"driver": "580"}, HERE) == ["driver"]


# -- the builder -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("batches", "profile"),
    [
        ((1, 8, 64), (1, 8, 64)),
        ((64, 1, 8), (1, 8, 64)),
        ((1,), (1, 1, 2)),  # parity is checked at 2
        ((8,), (1, 8, 8)),
        ((1, 64), (1, 64, 64)),
        ((1, 2, 3, 4096), (1, 3, 4096)),
    ],
)
def test_the_profile_spans_all_batches_around_their_median(batches, profile):
    assert profile_of(batches) == profile


def test_the_network_is_strongly_typed_and_without_tf32(trt, graph):
    build_plan(graph.read_bytes(), batches=(1, 8, 64))
    assert trt.seen["strongly typed"]
    assert trt.seen["flags"] == set()
    assert trt.seen["hardware"] == "NONE"
    assert trt.seen["profile"].shapes == {"images": [[1, 3, 32, 32], [8, 3, 32, 32], [64, 3, 32, 32]]}


def test_options_reach_the_builder(trt, graph):
    build_plan(graph.read_bytes(), batches=(1,), options=Options(tf32=True, version_compatible=True))
    assert trt.seen["flags"] == {"TF32", "VERSION_COMPATIBLE"}
    for level in ("ampere_plus", "same_compute_capability"):
        build_plan(graph.read_bytes(), batches=(1,), options=Options(hardware=level))
        assert trt.seen["hardware"] == level.upper()


def test_an_operator_that_tensorrt_does_not_know_is_named(trt, graph):
    trt.unsupported = {"Relu"}
    node = next(node.name for node in onnx.load(str(graph)).graph.node if node.op_type == "Relu")
    with pytest.raises(ExportFailed) as caught:
        build_plan(graph.read_bytes(), batches=(1,))
    assert f"operator 'Relu' (node '{node}'): No importer registered for op." in str(caught.value)
    assert caught.value.exit_code == 7


def test_a_file_that_is_no_graph_is_an_export_failure(trt):
    with pytest.raises(ExportFailed, match="cannot read the model: Failed to parse the ONNX model"):
        build_plan(b"not onnx", batches=(1,))


def test_the_first_error_of_a_build_is_told(trt, graph):
    trt.broken = {"build"}
    with pytest.raises(ExportFailed, match="could not build an engine: Could not find any implementation for node"):
        build_plan(graph.read_bytes(), batches=(1,))


def test_timings_are_kept_for_each_gpu_and_version(trt, graph):
    path = timing_cache(tensorrt_device.here(trt))
    assert path.parent == Path(os.environ["ZOO_CACHE"]) / "tensorrt"
    assert path.name == f"NVIDIA-Fake-9000-9.0-{trt.__version__}.timings"
    build_plan(graph.read_bytes(), batches=(1,))
    build_plan(graph.read_bytes(), batches=(1,))
    assert trt.seen["timings"] == [b"", b"timings:NVIDIA Fake 9000 was timed;"]
    assert path.read_bytes() == b"timings:" + 2 * b"NVIDIA Fake 9000 was timed;"
    assert len({timing_cache(HERE | other).name for other in ({}, {"gpu": "NVIDIA L4"}, {"tensorrt": "11.0"})}) == 3


@pytest.mark.parametrize("damaged", [b"torn", b"timings:of another GPU"])
def test_timings_that_do_not_fit_are_started_afresh(damaged, trt, graph):
    path = timing_cache(tensorrt_device.here(trt))
    path.parent.mkdir()
    path.write_bytes(damaged)
    build_plan(graph.read_bytes(), batches=(1,))
    assert path.read_bytes() == b"timings:NVIDIA Fake 9000 was timed;"


def test_timings_are_replaced_whole_or_not_at_all(eleven, graph, monkeypatch):
    build_plan(graph.read_bytes(), batches=(1,))
    path = timing_cache(tensorrt_device.here(eleven))
    before = path.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ExportFailed, match=r"timings cannot be kept in .*No space left on device.*set ZOO_CACHE"):
        build_plan(graph.read_bytes(), batches=(1,))
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_a_cache_that_cannot_be_made_is_told_before_the_build(eleven, graph, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "file"))
    with pytest.raises(ExportFailed, match="set ZOO_CACHE"):
        build_plan(graph.read_bytes(), batches=(1,))
    assert "flags" not in eleven.seen


# -- the engine ------------------------------------------------------------------------------------------------


def test_a_closed_engine_gives_back_the_gpus_memory(plan):
    engine = tensorrt.load(plan, threads=2)
    assert (engine.describe()["name"], engine.describe()["compute_capability"]) == ("NVIDIA Fake 9000", "9.0")
    held = [weakref.ref(one) for one in engine.held]
    engine.close()
    assert [one() for one in held] == [None] * 3


@pytest.mark.parametrize(("n", "parts"), [(1, [1]), (8, [8]), (9, [8, 1]), (20, [8, 8, 4])])
def test_an_engine_agrees_with_the_model_and_splits_large_batches(n, parts, eleven, plan, small):
    engine = tensorrt.load(plan)
    with torch.no_grad():
        expected = small(images(n))
    assert torch.allclose(engine(images(n)), expected, atol=1e-4)
    assert eleven.seen["batches"] == parts


def test_a_batch_that_is_none_never_reaches_the_gpu(eleven, plan):
    engine = tensorrt.load(plan)
    with pytest.raises(UsageError, match=r"shape \[N, 3, 32, 32\]"):
        engine(torch.rand(2, 3, 31, 32))
    with pytest.raises(UsageError, match="NaN"):
        engine(torch.full((1, 3, 32, 32), float("nan")))
    assert eleven.seen["batches"] == []


def test_a_failing_run_raises_instead_of_answering(eleven, plan):
    engine = tensorrt.load(plan)
    eleven.broken = {"run"}
    with pytest.raises(ZooError, match="on a batch of 3: enqueueV3: an illegal memory access"):
        engine(images(3))


def test_an_engine_that_finds_no_memory_is_told(eleven, plan):
    eleven.broken = {"context"}
    with pytest.raises(ZooError, match=r"could not prepare.*GPU memory could not be allocated"):
        tensorrt.load(plan)


def test_a_file_that_is_no_plan_is_refused(plan):
    with pytest.raises(IntegrityError, match="No such file"):
        tensorrt.load(plan.with_name("missing.plan"))
    plan.write_bytes(b"noise")
    with pytest.raises(IntegrityError, match=r"cannot load.*magicTagRead"):
        tensorrt.load(plan)


def test_a_plan_that_is_no_classifier_is_refused(eleven, plan):
    eleven.float32 = "another type than the engine's"
    with pytest.raises(IntegrityError, match="one float32 image batch in and logits out"):
        tensorrt.load(plan)


@pytest.mark.parametrize(
    "other", [FakeTensorRt("10.16.1.11"), FakeTensorRt(gpu="NVIDIA L4", capability=(8, 9))], ids=["version", "gpu"]
)
def test_a_bare_plan_of_another_place_is_told_by_tensorrt_itself(other, plan, monkeypatch):
    install(monkeypatch, other)
    with pytest.raises(WrongDevice, match=r"please rebuild\.\): export the model on this machine"):
        tensorrt.load(plan)


# -- bundles ---------------------------------------------------------------------------------------------------


@pytest.fixture
def bundle(exported_before, eleven, small, tmp_path) -> Path:
    return bundle_of(
        small, Known("a-name", "small"), out=tmp_path, verify="parity", format=BACKEND.name, batches=(1, 4)
    )


def test_a_bundle_says_what_it_was_built_for(bundle):
    artifact = read_bundle(bundle).artifact
    assert (artifact.file, artifact.format) == ("model.plan", "tensorrt-plan")
    assert artifact.built_for["gpu"] == "NVIDIA Fake 9000"
    assert artifact.built_for["tensorrt"] == "11.4.0.106"
    assert artifact.options["profile"] == [1, 4, 4]
    assert not artifact.options["tf32"]
    assert artifact.options["built_on"] == artifact.built_for
    assert read_bundle(bundle).gates[-1].measured["batches"] == [1, 2, 4]


def test_elsewhere_a_bundle_is_refused_with_the_way_out_and_can_be_rebuilt(bundle, small, eleven, monkeypatch):
    assert verify_bundle(bundle, level="parity", model=small).reached == "parity"
    install(monkeypatch, FakeTensorRt("10.16.1.11", gpu="NVIDIA L4", capability=(8, 9)))
    with pytest.raises(WrongDevice) as caught:
        verify_bundle(bundle, level="parity", model=small)
    assert caught.value.exit_code == 10
    for part in (
        "is for GPU NVIDIA Fake 9000, compute capability 9.0, TensorRT 11.4.0.106",
        "here is GPU NVIDIA L4, compute capability 8.9, TensorRT 10.16.1.11",
        "'zoo export a-name --format tensorrt --precision fp32'",
        "rebuild(",
    ):
        assert part in str(caught.value)
    (bundle.parent / "model.plan").write_bytes(tensorrt.rebuild(bundle))
    engine = tensorrt.load(bundle.parent / "model.plan")
    assert engine.largest == 4
    with torch.no_grad():
        assert torch.allclose(engine(images(5)), small(images(5)), atol=1e-4)


def test_only_its_own_bundles_are_rebuilt(eleven, bundle):
    manifest = read_bundle(bundle)
    other = manifest.model_copy(update={"artifact": manifest.artifact.model_copy(update={"format": "onnx"})})
    (bundle / "manifest.json").write_text(to_json(other))
    write_sums(bundle)
    with pytest.raises(UsageError, match="holds no TensorRT plan but onnx"):
        tensorrt.rebuild(bundle)


def test_a_plan_that_carries_code_runs_only_for_those_who_trust_it(eleven, bundle, small, monkeypatch):
    options = Options(version_compatible=True)
    order = Order(model=small, graph=bundle / GRAPH, precision="fp32", batches=(1, 4))
    built = tensorrt.build(order, bundle, options=options)
    manifest = read_manifest(bundle / "manifest.json")
    artifact = manifest.artifact.model_copy(update={"built_for": built.built_for, "options": built.options})
    (bundle / "manifest.json").write_text(to_json(manifest.model_copy(update={"artifact": artifact})))
    install(monkeypatch, FakeTensorRt("11.5.0.1"))
    with pytest.raises(UsageError, match="host_code=True"):
        tensorrt.load(bundle / "model.plan")
    assert tensorrt.load(bundle / "model.plan", host_code=True)(images(1)).shape == (1, 10)
    install(monkeypatch, FakeTensorRt("11.3.0.99"))
    with pytest.raises(WrongDevice, match=r"is for TensorRT >=11.4.0.106, and here is TensorRT 11.3.0.99"):
        tensorrt.load(bundle / "model.plan", host_code=True)


def test_a_bare_plan_runs_no_code_unasked(eleven, small, graph, tmp_path):
    order = Order(model=small, graph=graph, precision="fp32", batches=(1,))
    tensorrt.build(order, tmp_path, options=Options(version_compatible=True))
    with pytest.raises(IntegrityError, match="HostCodeAllowed"):
        tensorrt.load(tmp_path / "model.plan")
    assert tensorrt.load(tmp_path / "model.plan", host_code=True).largest == 2


def test_a_manifest_about_another_file_is_not_asked(eleven, bundle):
    (bundle / "other.plan").write_bytes((bundle / "model.plan").read_bytes())
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["artifact"]["built_for"]["gpu"] = "NVIDIA L4"
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(WrongDevice):
        tensorrt.load(bundle / "model.plan")
    assert tensorrt.load(bundle / "other.plan").largest == 4


@pytest.fixture
def wrong(exported_before, others_graph, monkeypatch) -> None:
    """Plans come out as another model's."""
    monkeypatch.setattr(tensorrt, "build_plan", lambda graph, **rest: build_plan(others_graph.read_bytes(), **rest))


def test_a_wrong_engine_fails_at_parity_and_leaves_nothing(wrong, eleven, small, tmp_path):
    with pytest.raises(ParityGateFailed):
        bundle_of(small, Known("a", "small"), out=tmp_path / "out", verify="parity", format=BACKEND.name)
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_lower_precisions_live_in_the_graph(precision, eleven, small, graph, tmp_path):
    """The graphs keep TensorRT's documented rules: float32 in and out, symmetric int8, no quantised biases."""
    path = Path(shutil.copy(graph, tmp_path))
    to_fp16(path) if precision == "fp16" else to_int8(path, images(16), symmetric=BACKEND.symmetric)
    proto = onnx.load(str(path)).graph
    held = {entry.name: onnx.numpy_helper.to_array(entry) for entry in proto.initializer}
    ports = (*proto.input, *proto.output)
    assert {port.type.tensor_type.elem_type for port in ports} == {onnx.TensorProto.FLOAT}
    quantised = [node for node in proto.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert bool(quantised) == (precision == "int8")
    for node in quantised:
        values, scale, zero = node.input
        assert scale in held
        assert held[zero].dtype == np.int8
        assert not held[zero].any()
        assert node.op_type == "QuantizeLinear" or held.get(values, held[zero]).dtype == np.int8
    order = Order(model=small, graph=path, precision=precision, batches=(1, 4))
    engine = tensorrt.load(tmp_path / tensorrt.build(order, tmp_path).file)
    with torch.no_grad():
        assert torch.allclose(engine(images(5)), small(images(5)), atol=0.5)
    assert eleven.seen["flags"] == set()  # no FP16, no INT8


# -- against the real package ----------------------------------------------------------------------------------


def test_the_stand_in_has_no_name_or_argument_that_tensorrt_lacks():
    trt = pytest.importorskip("tensorrt")
    kinds = {
        "Network": "INetworkDefinition",
        "Tensor": "ITensor",
        "OptimizationProfile": "IOptimizationProfile",
        "TimingCache": "ITimingCache",
        "BuilderConfig": "IBuilderConfig",
        "Engine": "ICudaEngine",
        "ExecutionContext": "IExecutionContext",
    }
    for ours in ("Builder", "OnnxParser", "ParserError", "Runtime", "ILogger", *kinds):
        real, fake = getattr(trt, kinds.get(ours, ours)), getattr(fake_tensorrt, ours)
        for name, method in inspect.getmembers(fake, inspect.isfunction):
            if name.startswith("_"):
                continue
            assert hasattr(real, name), f"{ours}.{name}"
            for argument in list(inspect.signature(method).parameters)[1:]:
                assert re.search(rf"\b{argument}:", getattr(real, name).__doc__), f"{ours}.{name}({argument})"
    for kind, attribute in (
        ("IBuilderConfig", "hardware_compatibility_level"),
        ("ICudaEngine", "num_io_tensors"),
        ("ITensor", "name"),
        ("ITensor", "shape"),
        ("OnnxParser", "num_errors"),
        ("Runtime", "engine_host_code_allowed"),
    ):
        assert isinstance(getattr(getattr(trt, kind), attribute), property), f"{kind}.{attribute}"
    assert isinstance(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED), int)
    assert trt.ILogger.Severity.ERROR <= trt.ILogger.Severity.WARNING
    assert {flag.name for flag in FakeTensorRt(trt.__version__).BuilderFlag} <= set(trt.BuilderFlag.__members__)
    for fake, real in (
        (fake_tensorrt.HardwareCompatibilityLevel, trt.HardwareCompatibilityLevel),
        (fake_tensorrt.TensorIOMode, trt.TensorIOMode),
        (fake_tensorrt.Severity, trt.ILogger.Severity),
    ):
        assert {entry.name: entry.value for entry in fake} == {
            name: int(value) for name, value in real.__members__.items()
        }
    assert trt.float32 == trt.DataType.FLOAT


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_tensorrt_itself_builds_and_runs(precision, small, tmp_path):
    pytest.importorskip("tensorrt")
    calibrated = None
    if precision == "int8":
        facts = {"indices_sha256": "0" * 64, "images_sha256": "0" * 64, "method": "minmax"}
        calibrated = images(64), Calibration(dataset="noise", split="train", n=64, **facts)
    bundle = bundle_of(
        small,
        Known("a", "small"),
        out=tmp_path,
        verify="parity",
        format=BACKEND.name,
        precision=precision,
        calibrated=calibrated,
    )
    engine = tensorrt.load(bundle / "model.plan")
    assert engine(images(130)).shape == (130, 10)
    assert engine.describe()["device"] == "cuda"
    assert timing_cache(tensorrt_builder.here(tensorrt_device.runtime())).stat().st_size > 0
    noise = tmp_path / "noise.plan"
    noise.write_bytes(b"noise")
    with pytest.raises(IntegrityError):
        tensorrt.load(noise)
