"""What can be known of the TensorRT engine without a GPU. Where there is one, test_engine_contract.py runs TensorRT.

NVIDIA's parser and builder here are those of TensorRT for RTX, which work without a GPU. What needs one is a stand-in
(``fake_tensorrt.py``): it shows that it is called as NVIDIA's documentation asks, and nothing of how a plan runs.
"""

from __future__ import annotations

import gc
import inspect
import os
import re
import shutil
import sys
import weakref
from pathlib import Path

import fake_tensorrt
import onnx
import pytest
import torch
from exported import bundle_of
from fake_tensorrt import FakeTensorRt, install
from test_export import images

from zoo.export import engines, read_bundle, verify_bundle
from zoo.export.bundle.folder import write_sums
from zoo.export.bundle.manifest import read_manifest, to_json
from zoo.export.bundle.source import Known
from zoo.export.engines import tensorrt, tensorrt_device
from zoo.export.engines.built_for import misfits
from zoo.export.engines.interface import Order
from zoo.export.engines.tensorrt import bound_to
from zoo.export.engines.tensorrt_builder import Options, build_plan, drafted, profile_of, timing_cache
from zoo.export.onnx.fp16 import to_fp16
from zoo.export.onnx.graph import GRAPH, save_onnx
from zoo.export.onnx.int8 import to_int8
from zoo.export.onnx.uint8 import UINT8
from zoo.export.triton import write_triton
from zoo.system.errors import (
    ExportFailed,
    IntegrityError,
    MissingDependency,
    UsageError,
    WrongDevice,
    ZooError,
)

BACKEND = engines.backend("tensorrt")
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
def graph(small, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("onnx") / GRAPH
    save_onnx(small, path)
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


# -- where it can be used --------------------------------------------------------------------------------------


def test_a_package_whose_libraries_do_not_load_says_which(monkeypatch, tmp_path):
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


def test_an_unfit_driver_is_reported_and_the_empty_shell_is_never_freed(trt):
    """Freeing one ends the process: seen with the runtimes of 10.16 and 11.4 on a machine without a GPU."""
    trt.broken = {"driver"}
    shells = []

    def kind(log):
        made = trt.Runtime(log)
        shells.append(weakref.ref(made))
        return made

    with pytest.raises(MissingDependency, match=r"this GPU's driver \(createInferRuntime: Error Code 6.*update"):
        tensorrt_device.opened(kind, trt)
    gc.collect()
    assert shells[0]() is not None


# -- what a plan is tied to ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "changed", "off"),
    [
        ({}, {}, []),
        ({}, {"gpu": "NVIDIA L4", "compute_capability": "8.9"}, ["gpu", "compute_capability"]),
        ({}, {"tensorrt": "10.16.1.12"}, ["tensorrt"]),
        ({}, {"platform": "Windows AMD64"}, ["platform"]),
        ({"version_compatible": True}, {"tensorrt": "11.0.0.114"}, []),
        ({"version_compatible": True}, {"tensorrt": "10.9.0.34"}, ["tensorrt"]),  # numbers, not letters, are compared
        ({"version_compatible": True}, {"gpu": "NVIDIA L4"}, ["gpu"]),
        ({"hardware": "same_compute_capability"}, {"gpu": "NVIDIA H200"}, []),
        ({"hardware": "same_compute_capability"}, {"compute_capability": "9.1"}, ["compute_capability"]),
        ({"hardware": "ampere_plus"}, {"gpu": "NVIDIA B200", "compute_capability": "10.0"}, []),
        ({"hardware": "ampere_plus"}, {"gpu": "NVIDIA T4", "compute_capability": "7.5"}, ["compute_capability"]),
        ({"hardware": "ampere_plus"}, {"tensorrt": "11.0.0.114"}, ["tensorrt"]),
    ],
)
def test_a_plan_is_for_one_gpu_and_version_unless_options_widen_it(options, changed, off):
    assert misfits(bound_to(HERE, Options(**options)), HERE | changed) == off


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


def test_the_network_is_strongly_typed_and_options_reach_the_builder(trt, graph):
    build_plan(graph.read_bytes(), batches=(1, 8, 64))
    assert trt.seen["strongly typed"]
    assert (trt.seen["flags"], trt.seen["hardware"]) == (set(), "NONE")  # TF32, which is on by default, is off
    assert [tuple(shape) for shape in trt.seen["profile"].get_shape("images")] == [(n, 3, 32, 32) for n in (1, 8, 64)]
    options = Options(tf32=True, version_compatible=True, hardware="ampere_plus")
    build_plan(graph.read_bytes(), batches=(1,), options=options)
    assert (trt.seen["flags"], trt.seen["hardware"]) == ({"TF32", "VERSION_COMPATIBLE"}, "AMPERE_PLUS")


def test_a_graph_that_tensorrt_refuses_is_an_export_failure_with_its_first_error(trt, graph, tmp_path):
    with pytest.raises(ExportFailed, match=r"cannot read the model: .*parse"):
        build_plan(b"not onnx", batches=(1,))
    for_cpus = Path(shutil.copy(graph, tmp_path))
    to_int8(for_cpus, images(16))  # unsigned activations with zero points, int32 biases
    with pytest.raises(ExportFailed, match=r"operator 'DequantizeLinear' \(node '.*bias.*'\): .*Int32"):
        build_plan(for_cpus.read_bytes(), batches=(1,))
    trt.broken = {"build"}
    with pytest.raises(ExportFailed, match="could not build an engine: Could not find any implementation for node"):
        build_plan(graph.read_bytes(), batches=(1,))


def test_timings_are_kept_for_each_gpu_and_version(trt, graph):
    path = timing_cache(tensorrt_device.here(trt))
    assert path.is_relative_to(os.environ["ZOO_CACHE"])
    for _ in range(2):
        build_plan(graph.read_bytes(), batches=(1,))
    assert trt.seen["timings"] == [b"", b"timings:NVIDIA Fake 9000 was timed;"]
    assert path.read_bytes() == b"timings:" + 2 * b"NVIDIA Fake 9000 was timed;"
    assert len({timing_cache(HERE | other) for other in ({}, {"gpu": "NVIDIA L4"}, {"tensorrt": "11.0"})}) == 3


@pytest.mark.parametrize("damaged", [b"torn", b"timings:of another GPU"])
def test_timings_that_do_not_fit_are_started_afresh(damaged, trt, graph):
    path = timing_cache(tensorrt_device.here(trt))
    path.parent.mkdir()
    path.write_bytes(damaged)
    build_plan(graph.read_bytes(), batches=(1,))
    assert path.read_bytes() == b"timings:NVIDIA Fake 9000 was timed;"


def test_a_cache_that_cannot_be_made_is_reported_before_the_build(eleven, graph, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "file"))
    with pytest.raises(ExportFailed, match="set ZOO_CACHE"):
        build_plan(graph.read_bytes(), batches=(1,))
    assert "flags" not in eleven.seen


# -- the engine ------------------------------------------------------------------------------------------------


def test_a_closed_engine_frees_the_memory_of_the_gpu(eleven, plan):
    engine = tensorrt.load(plan, threads=2)
    assert (engine.describe()["name"], engine.describe()["compute_capability"]) == ("NVIDIA Fake 9000", "9.0")
    held = [weakref.ref(one) for one in eleven.seen["made"]]
    del eleven.seen["made"]
    assert all(one() is not None for one in held)
    engine.close()
    assert [one() for one in held] == [None] * 3


@pytest.mark.parametrize(("n", "parts"), [(1, [1]), (8, [8]), (9, [8, 1]), (20, [8, 8, 4])])
def test_an_engine_agrees_with_the_model_and_splits_large_batches(n, parts, eleven, plan, small):
    engine = tensorrt.load(plan)
    with torch.no_grad():
        expected = small(images(n))
    assert torch.allclose(engine(images(n)), expected, atol=1e-4)
    assert eleven.seen["batches"] == parts


def test_a_failing_run_or_a_full_gpu_raises_instead_of_answering(eleven, plan):
    engine = tensorrt.load(plan)
    eleven.broken = {"run"}
    with pytest.raises(ZooError, match="on a batch of 3: enqueueV3: an illegal memory access"):
        engine(images(3))
    eleven.broken = {"context"}
    with pytest.raises(ZooError, match=r"could not be prepared.*GPU memory could not be allocated"):
        tensorrt.load(plan)


def test_a_plan_that_is_no_classifier_is_refused(eleven, plan):
    eleven.float32 = "another type than the engine's"
    with pytest.raises(IntegrityError, match="one float32 image batch in and logits out"):
        tensorrt.load(plan)


@pytest.mark.parametrize(
    "other", [FakeTensorRt("10.16.1.11"), FakeTensorRt(gpu="NVIDIA L4", capability=(8, 9))], ids=["version", "gpu"]
)
def test_a_plan_without_a_manifest_is_refused_by_tensorrt_itself(other, plan, monkeypatch):
    install(monkeypatch, other)
    with pytest.raises(WrongDevice, match=r"please rebuild\.\): export the model on this machine"):
        tensorrt.load(plan)


# -- bundles ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def exported(small, tmp_path_factory) -> Path:
    out, known = tmp_path_factory.mktemp("out"), Known("a-name", "small")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ZOO_CACHE", str(out / "cache"))
        install(patch, FakeTensorRt())
        return bundle_of(small, known, out=out, verify="parity", format=BACKEND.name, batches=(1, 4), uint8=True)


@pytest.fixture
def bundle(eleven, exported, tmp_path) -> Path:
    return Path(shutil.copytree(exported, tmp_path / exported.name))


def test_a_manifest_says_whether_a_plan_rounds_to_tf32(bundle, small, eleven, tmp_path):
    assert not read_bundle(bundle).artifact.tf32
    known, options = Known("a-name", "small"), {"tf32": True}
    rounded = bundle_of(small, known, out=tmp_path / "tf32", verify="none", format=BACKEND.name, engine_options=options)
    assert read_bundle(rounded).artifact.tf32


def test_elsewhere_a_bundle_is_refused_with_the_way_out_and_can_be_rebuilt(bundle, small, eleven, monkeypatch):
    assert verify_bundle(bundle, level="parity", model=small).reached == "parity"
    assert read_bundle(bundle).artifact.built_for["gpu"] == "NVIDIA Fake 9000"
    install(monkeypatch, FakeTensorRt("10.16.1.11", gpu="NVIDIA L4", capability=(8, 9)))
    with pytest.raises(WrongDevice) as caught:
        verify_bundle(bundle, level="parity", model=small)
    for part in (
        "is for GPU NVIDIA Fake 9000, compute capability 9.0, TensorRT 11.4.0.106",
        "here is GPU NVIDIA L4, compute capability 8.9, TensorRT 10.16.1.11",
        "export the model on this machine",
        "rebuild(",
    ):
        assert part in str(caught.value)
    (bundle.parent / "model.plan").write_bytes(tensorrt.rebuild(bundle))
    engine = tensorrt.load(bundle.parent / "model.plan")
    assert engine.describe()["largest_batch"] == 4
    with torch.no_grad():
        assert torch.allclose(engine(images(5)), small(images(5)), atol=1e-4)


def test_the_parser_takes_the_uint8_graph_and_sees_what_triton_is_told(bundle, eleven, tmp_path):
    draft = drafted(BACKEND, eleven, (bundle / UINT8).read_bytes(), batches=(1, 4))
    port = draft.network.get_input(0)
    assert (port.dtype, tuple(port.shape)) == (eleven.uint8, (-1, 32, 32, 3))
    assert draft.plan()
    layout = (write_triton(bundle, tmp_path / "models") / "config.pbtxt").read_text()
    draft = drafted(BACKEND, eleven, (bundle / GRAPH).read_bytes(), batches=(1, 4))
    for port in (draft.network.get_input(0), draft.network.get_output(0)):
        told = rf'name: "{port.name}"\n  data_type: TYPE_FP32\n.*?  dims: {re.escape(str(list(port.shape)[1:]))}'
        assert port.dtype == eleven.real.float32
        assert re.search(told, layout, re.DOTALL)
    _, _, (largest, *_) = eleven.seen["profile"].get_shape("images")
    assert f"max_batch_size: {largest}" in layout


def test_only_its_own_bundles_are_rebuilt(eleven, bundle):
    manifest = read_bundle(bundle)
    other = manifest.model_copy(update={"artifact": manifest.artifact.model_copy(update={"format": "onnx"})})
    (bundle / "manifest.json").write_text(to_json(other))
    write_sums(bundle)
    with pytest.raises(UsageError, match="holds no TensorRT plan but onnx"):
        tensorrt.rebuild(bundle)


def test_a_plan_that_carries_code_runs_only_if_it_is_trusted(eleven, bundle, small, monkeypatch):
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


def test_a_plan_without_a_manifest_runs_no_code_unasked(eleven, small, graph, tmp_path):
    order = Order(model=small, graph=graph, precision="fp32", batches=(1,))
    tensorrt.build(order, tmp_path, options=Options(version_compatible=True))
    with pytest.raises(IntegrityError, match="HostCodeAllowed"):
        tensorrt.load(tmp_path / "model.plan")
    assert tensorrt.load(tmp_path / "model.plan", host_code=True).describe()["largest_batch"] == 2


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_lower_precisions_are_in_the_graph_and_need_no_flag(precision, eleven, small, graph, tmp_path):
    path = Path(shutil.copy(graph, tmp_path))
    to_fp16(path) if precision == "fp16" else to_int8(path, images(16), symmetric=BACKEND.symmetric)
    proto = onnx.load(str(path)).graph
    held = {entry.name: entry.data_type for entry in proto.initializer}
    for node in proto.node:
        if node.op_type == "DequantizeLinear":
            assert held.get(node.input[0], onnx.TensorProto.INT8) == onnx.TensorProto.INT8  # no int32 biases
    order = Order(model=small, graph=path, precision=precision, batches=(1, 4))
    engine = tensorrt.load(tmp_path / tensorrt.build(order, tmp_path).file)
    with torch.no_grad():
        assert torch.allclose(engine(images(5)), small(images(5)), atol=0.5)
    assert eleven.seen["flags"] == set()


# -- against the real package ----------------------------------------------------------------------------------


@pytest.mark.parametrize("package", ["tensorrt", "tensorrt_rtx"])
def test_the_stand_in_has_no_name_or_argument_that_tensorrt_lacks(package):
    trt = pytest.importorskip(package)
    builder, parser = fake_tensorrt.recorded(FakeTensorRt())
    played = {"Builder": builder, "OnnxParser": parser, "Runtime": fake_tensorrt.Runtime}
    played |= {"ICudaEngine": fake_tensorrt.Engine, "IExecutionContext": fake_tensorrt.ExecutionContext}
    played |= {"IBuilderConfig": fake_tensorrt.Config, "ITimingCache": fake_tensorrt.TimingCache}
    for theirs, ours in played.items():
        real = getattr(trt, theirs)
        for name, method in inspect.getmembers(ours, inspect.isfunction):
            if not name.startswith("_") and name != "played":
                for argument in list(inspect.signature(method).parameters)[1:]:
                    assert re.search(rf"\b{argument}:", getattr(real, name).__doc__), f"{theirs}.{name}({argument})"
    for kind, attribute in (
        ("IBuilderConfig", "hardware_compatibility_level"),
        ("ICudaEngine", "num_io_tensors"),
        ("ITensor", "name"),
        ("ITensor", "shape"),
        ("OnnxParser", "num_errors"),
        ("Runtime", "engine_host_code_allowed"),
    ):
        assert isinstance(getattr(getattr(trt, kind), attribute), property), f"{kind}.{attribute}"
    assert {"TF32", "VERSION_COMPATIBLE"} <= set(trt.BuilderFlag.__members__)
    assert {"NONE", "AMPERE_PLUS", "SAME_COMPUTE_CAPABILITY"} <= set(trt.HardwareCompatibilityLevel.__members__)
    assert "INPUT" in trt.TensorIOMode.__members__
