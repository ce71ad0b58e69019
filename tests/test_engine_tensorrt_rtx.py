"""TensorRT for RTX as NVIDIA ships it: what it builds on a machine without a GPU, and what is said of it there.

How its plans run is for machines with a GPU: ``test_engine_contract.py`` there, here with the stand-in.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path

import onnx
import pytest
import torch
from exported import bundle_of
from fake_tensorrt import FakeTensorRt, install
from test_export import images

from zoo.cli.app import run
from zoo.export import read_bundle, verify_bundle
from zoo.export.bundle.manifest import Report, read_report
from zoo.export.bundle.source import Known
from zoo.export.engines import EITHER, backend, choice
from zoo.export.engines.interface import Order
from zoo.export.engines.tensorrt_builder import drafted
from zoo.export.engines.tensorrt_rtx import Options, build, in_place, load, needs, obstacle, served
from zoo.export.ladder.climb import Trial, climb, random_images
from zoo.export.ladder.gate import sign_off
from zoo.export.ladder.terms import Terms
from zoo.export.onnx.fp16 import to_fp16
from zoo.export.onnx.graph import save_onnx
from zoo.export.onnx.int8 import to_int8
from zoo.export.options import ExportOptions
from zoo.system.errors import ExportFailed, IntegrityError, ParityGateFailed, UsageError, WrongDevice

trt = pytest.importorskip("tensorrt_rtx")
BACKEND = backend("tensorrt-rtx")
RELEASE = trt.__version__
AMPERE_ON = "8.0, 8.6, 8.9, 12.0, 12.1"
ADA = {"name": "tensorrt_rtx", "version": RELEASE, "gpu": "NVIDIA RTX 6000 Ada", "capability": (8, 9)}
without_a_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")


@pytest.fixture(scope="module")
def graphs(small, tmp_path_factory) -> dict[str, Path]:
    """The net's graph by precision; "asymmetric" is the int8 graph that CPUs get."""
    folder = tmp_path_factory.mktemp("graphs")
    found = {kind: folder / f"{kind}.onnx" for kind in ("fp32", "fp16", "int8", "asymmetric")}
    save_onnx(small, found["fp32"])
    for kind in ("fp16", "int8", "asymmetric"):
        shutil.copy(found["fp32"], found[kind])
    to_fp16(found["fp16"])
    for kind in ("int8", "asymmetric"):
        to_int8(found[kind], images(16), method="minmax", symmetric=kind == "int8")
    return found


def built(graph: Path, folder: Path, precision: str, **options) -> bytes:
    folder.mkdir(exist_ok=True)
    order = Order(model=None, graph=graph, precision=precision, batches=(1, 4))
    return (folder / build(order, folder, **({"options": Options(**options)} if options else {})).file).read_bytes()


@pytest.fixture(scope="module")
def bundle(small, tmp_path_factory) -> Path:
    """As a machine without a GPU leaves it."""
    out = tmp_path_factory.mktemp("out")
    return bundle_of(small, Known("a-name", "small"), out=out, format=BACKEND.name, verify="parity", batches=(1, 4))


# -- what it builds --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("precision", "targets", "layers"),
    [
        ("fp32", AMPERE_ON, {"CONVOLUTION FLOAT"}),
        ("fp16", f"7.5, {AMPERE_ON}", {"CONVOLUTION HALF", "CAST HALF", "CAST FLOAT"}),
        ("int8", AMPERE_ON, {"CONVOLUTION FLOAT", "QUANTIZE INT8", "DEQUANTIZE FLOAT"}),
    ],
)
def test_nvidias_parser_and_builder_take_every_precision(precision, targets, layers, graphs, tmp_path):
    order = Order(model=None, graph=graphs[precision], precision=precision, batches=(1, 8, 64))
    found = build(order, tmp_path)
    assert found.built_for["compute_capability"] == targets
    assert found.built_for["tensorrt_rtx"] == RELEASE
    assert found.options["profile"] == [1, 8, 64]
    assert layers <= found.options["layers"].keys()
    nodes = [node.op_type for node in onnx.load(str(graphs[precision])).graph.node]
    kind = "CONVOLUTION HALF" if precision == "fp16" else "CONVOLUTION FLOAT"
    assert found.options["layers"][kind] == nodes.count("Conv")
    assert (tmp_path / found.file).stat().st_size > 10_000


def test_a_plan_is_for_the_capabilities_that_are_asked_for(graphs, tmp_path):
    assert needs("fp32", Options(compute_capability="8.9, 8.6,8.9"))["compute_capability"] == "8.6, 8.9"
    one, two = (built(graphs["fp16"], tmp_path, "fp16", compute_capability=these) for these in ("8.6", ["8.6", "12.0"]))
    assert one != two


def test_a_second_build_differs_in_the_names_of_temporaries_only(graphs, tmp_path):
    """With a fixed batch it is the same, byte by byte. What depends on the batch is computed under numbered names, and
    these numbers, and the order of such entries, change from build to build."""
    proto = onnx.load(str(graphs["int8"]))
    for port in (*proto.graph.input, *proto.graph.output):
        port.type.tensor_type.shape.dim[0].dim_value = 4
    onnx.save(proto, fixed := tmp_path / "fixed.onnx")
    again = [_fixed(fixed) for _ in range(2)]
    assert again[0] == again[1]
    plans = [built(graphs["int8"], tmp_path / str(i), "int8", compute_capability="8.6,8.9") for i in range(2)]
    nameless = [re.sub(rb"__mye\d+", b"", plan) for plan in plans]
    assert len(nameless[0]) > 0.9 * len(plans[0])
    assert sorted(nameless[0]) == sorted(nameless[1])


def _fixed(graph: Path) -> bytes:
    """A plan of a graph with a fixed batch, which needs no profile."""
    draft = drafted(BACKEND, trt, graph.read_bytes(), batches=(4,))
    config = draft.builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(served()["8.9"], 0)
    return bytes(draft.builder.build_serialized_network(draft.network, config))


def test_a_graph_that_its_parser_refuses_is_an_export_failure_that_names_the_node(graphs, tmp_path):
    told = r"TensorRT for RTX cannot read the model: operator 'DequantizeLinear' \(node '"
    with pytest.raises(ExportFailed, match=told):
        built(graphs["asymmetric"], tmp_path, "int8")
    assert BACKEND.symmetric  # so that no export hands it such a graph
    assert not (tmp_path / "model.plan").exists()


# -- what is refused first -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["-O", "compute_capability=9.0"], 2, f"builds for compute capability 7.5, {AMPERE_ON}, not '9.0'"),
        (["-O", "compute_capability=8.6,"], 2, "not ''"),
        (["-O", "compute_capability=7.5"], 2, "for compute capability 7.5 TensorRT for RTX builds fp16 only"),
        (["-O", "tf32=true"], 2, "no option 'tf32'"),
        pytest.param(["--verify", "attacked"], 10, "'attacked' runs the engine", marks=without_a_gpu),
        pytest.param(["--verify", "clean"], 10, "'clean' runs the engine", marks=without_a_gpu),
        pytest.param(["--corruptions", "fog"], 10, "'attacked' runs the engine", marks=without_a_gpu),
    ],
)
def test_what_cannot_be_done_is_refused_before_a_model_is_loaded(arguments, code, told, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr("zoo.weights.load.read_tensors", lambda path: pytest.fail(f"{path} was opened"))
    monkeypatch.setattr("zoo.export.exporter.choose_level", lambda *_, **__: pytest.fail("data were looked for"))
    assert run(["export", "trades-s3", "-f", "tensorrt-rtx", "-o", str(tmp_path), "--offline", *arguments]) == code
    assert told in capsys.readouterr().err.replace("\n", " ")
    assert not list(tmp_path.iterdir())


def test_capabilities_are_a_list_or_text_in_python_too():
    for asked in (["8.6", "8.9"], ("8.9", "8.6"), "8.6,8.9"):
        ExportOptions(out=".", format="tensorrt-rtx", engine_options={"compute_capability": asked})
    for wrong in (["8.6", "10.0"], 8.6, [8.6]):
        with pytest.raises(UsageError, match=r"compute.capability"):
            ExportOptions(out=".", format="tensorrt-rtx", engine_options={"compute_capability": wrong})


# -- what is said of a plan that never ran ---------------------------------------------------------------------------


@without_a_gpu
def test_without_a_gpu_a_bundle_says_that_it_is_built_and_has_not_run(bundle):
    manifest = read_bundle(bundle)
    assert (manifest.verified, manifest.ran, manifest.device) == ("built", False, "cuda")
    assert [gate.name for gate in manifest.gates] == ["integrity", "graph"]
    for text in (manifest.robustness, (bundle / "README.md").read_text()):
        assert "robustness was not verified" in text.lower()
        assert "has not run yet" in text
        assert "--device ssh://" in text
    assert "run by ONNX Runtime, not by the engine" in (bundle / "README.md").read_text()
    report = read_report(bundle / "reports" / "verify.json", Report)
    assert (report.asked, report.reached) == ("parity", "built")
    assert "finds none" in report.engine["not_run"]
    assert report.engine["graph"]["engine"] == "onnxruntime"


def test_a_graph_that_is_not_the_model_fails_at_the_gate(small, graphs):
    trial = {"artifact_sha256": "0" * 64, "files": 1, "level": "parity", "split": None, "batches": (1,), "ran": False}
    with in_place(graphs["fp16"], "it needs a GPU") as graph:
        held, failed = (climb(small, graph, Trial(**trial, terms=Terms.of(one))) for one in ("fp16", "fp32"))
    sign_off(held)
    assert (held.reached, failed.reached) == ("built", "none")
    with pytest.raises(ParityGateFailed, match="graph: on 64 images the logits of the ONNX graph"):
        sign_off(failed)
    with pytest.raises(UsageError, match="'clean' needs an engine that runs"):
        Trial(**trial | {"level": "clean", "split": random_images(small.spec, 4, seed=0)})


@without_a_gpu
@pytest.mark.parametrize(
    ("verb", "told"),
    [
        (["verify", "--verify", "attacked"], "was never run, and cannot run here"),
        (["verify"], "was never run, and cannot run here"),
        (["bench", "--peers", "none"], "cannot be timed here"),
    ],
    ids=str,
)
def test_a_bundle_that_never_ran_is_not_judged_where_it_cannot_run(verb, told, bundle, capsys, monkeypatch):
    monkeypatch.setattr("zoo.export.verify.load_twin", lambda *_, **__: pytest.fail("the model was loaded"))
    monkeypatch.setattr("zoo.export.bench.bench.time_batch", lambda *_: pytest.fail("it was timed"))
    assert run([verb[0], str(bundle), *verb[1:]]) == 10
    error = capsys.readouterr().err.replace("\n", " ")
    assert told in error
    assert "--device ssh://" in error


@without_a_gpu
def test_the_files_of_such_a_bundle_can_be_checked_and_an_altered_one_is_found(bundle, small, tmp_path):
    assert verify_bundle(bundle, level="none", model=small).reached == "none"
    damaged = Path(shutil.copytree(bundle, tmp_path / "damaged"))
    (damaged / "model.plan").write_bytes(b"another plan")
    with pytest.raises(IntegrityError, match="altered"):
        verify_bundle(damaged)


@without_a_gpu
def test_a_comparison_says_who_was_never_run(bundle, capsys):
    assert run(["compare", "trades-s3", str(bundle), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["a"].get("ran"), told["b"]["ran"], told["protocols"]) == (None, False, {})
    assert set(told["left_out"].values()) == {"B was never run"}
    assert run(["compare", str(bundle), str(bundle)]) == 0
    assert "B was never run, so nothing is known of its accuracy" in capsys.readouterr().out.replace("\n", " ")


@without_a_gpu
def test_several_exports_end_with_the_commands_that_verify_them_on_the_device(capsys, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    monkeypatch.delenv("ZOO_DATA", raising=False)
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    order = ["-f", "trt", "--precision", "fp32,fp16", "--batch", "1", "--verify", "parity", "-o", str(tmp_path / "out")]
    assert run(["export", "trades-s3", *order, "--offline"]) == 0
    out, error = capsys.readouterr()
    bundles = [tmp_path / "out" / f"trades-s3--tensorrt-rtx-{precision}" for precision in ("fp32", "fp16")]
    assert out.splitlines()[-2:] == [f"  zoo verify {bundle} --device ssh://USER@HOST" for bundle in bundles]
    assert "trades-s3  trt     fp16       built" in out
    assert error.count("trt is tensorrt-rtx here, because the package 'tensorrt' is not installed") == 1
    assert all(read_bundle(bundle).artifact.format == "tensorrt-rtx-plan" for bundle in bundles)


# -- what a plan is bound to -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"version": "1.6.0.9"}, f"is for TensorRT for RTX {RELEASE}, and here is TensorRT for RTX 1.6.0.9"),
        (
            {"gpu": "NVIDIA H100", "capability": (9, 0)},
            f"is for compute capability {AMPERE_ON}, and here is",
        ),
    ],
    ids=str,
)
def test_a_plan_of_another_release_or_for_other_gpus_is_refused_with_the_way_out(
    changed, told, bundle, small, monkeypatch
):
    install(monkeypatch, FakeTensorRt(**ADA | changed))
    for use in (lambda: load(bundle / "model.plan"), lambda: verify_bundle(bundle, model=small)):
        with pytest.raises(WrongDevice, match=re.escape(told.split(", and")[0].removeprefix("is "))):
            use()
    with pytest.raises(WrongDevice, match=re.escape(f"install tensorrt-rtx-cu13=={RELEASE}")) as caught:
        load(bundle / "model.plan")
    assert told in str(caught.value)
    assert "'--format tensorrt-rtx', which works on any machine" in str(caught.value)


def test_where_the_gpu_is_served_the_plan_itself_is_run(small, tmp_path, monkeypatch):
    install(monkeypatch, FakeTensorRt(**ADA))
    assert obstacle(needs("fp32")) is None
    assert "compute capability 8.6, and here is compute capability 8.9" in str(obstacle({"compute_capability": "8.6"}))
    out = bundle_of(small, Known("a-name", "small"), out=tmp_path, format="rtx", verify="parity", batches=(1, 4))
    assert [gate.name for gate in read_bundle(out).gates] == ["integrity", "parity"]
    assert verify_bundle(out, level="parity", model=small).reached == "parity"


# -- trt -------------------------------------------------------------------------------------------------------------


def test_trt_is_tensorrt_where_it_can_build_and_says_why(monkeypatch):
    assert EITHER == "trt"
    assert choice("tensorrt-rtx") is None
    for installed, gpu, name, why in (
        (False, True, "tensorrt-rtx", "the package 'tensorrt' is not installed"),
        (True, False, "tensorrt-rtx", "there is no NVIDIA GPU"),
        (True, True, "tensorrt", "there is an NVIDIA GPU and its package"),
    ):
        monkeypatch.setitem(sys.modules, "tensorrt", object() if installed else None)
        monkeypatch.setattr(torch.cuda, "is_available", lambda gpu=gpu: gpu)
        assert backend("trt").name == name
        assert choice("trt") == f"trt is {name} here, because {why}"
