from __future__ import annotations

import errno
import json
import os
import shutil
import warnings
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from exported import bundle_of
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format
from onnx import TensorProto, helper
from test_export import SMALL, model_of

from zoo.datasets.cifar10 import CIFAR10
from zoo.export.bundle.folder import MANIFEST, artifact_sha256, write_sums
from zoo.export.bundle.source import Known
from zoo.export.onnx.fp16 import to_fp16
from zoo.export.onnx.graph import OPSET
from zoo.export.onnx.int8 import to_int8
from zoo.export.onnx.uint8 import CONTRACT, save_with_uint8_input, with_uint8_input
from zoo.export.triton import BF16, HOST_CODE, TF32, write_triton
from zoo.system.errors import ExportFailed, IntegrityError, UsageError
from zoo.system.files import sha256_file


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Path:
    known = Known("small", "small@15M", dataset="cifar10", labels=CIFAR10.classes)
    return bundle_of(model_of(SMALL), known, out=tmp_path_factory.mktemp("out"), verify="parity")


@pytest.fixture(scope="module", params=["fp32", "fp16", "int8"])
def graph(request, bundle, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp(request.param) / "model.onnx"
    shutil.copyfile(bundle / "model.onnx", path)
    if request.param == "fp16":
        to_fp16(path)
    elif request.param == "int8":
        to_int8(path, torch.rand(16, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
    return path


def run(proto: onnx.ModelProto, images: np.ndarray) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {"images": images})
    return logits


# -- pictures as they are --------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 3])
def test_raw_images_get_the_logits_of_the_float_graph(graph, n):
    proto = onnx.load(graph)
    images = np.random.default_rng(n).integers(0, 256, (n, 32, 32, 3), dtype=np.uint8)
    x = np.ascontiguousarray(images.transpose(0, 3, 1, 2)).astype(np.float32) / np.float32(255)
    expected, logits = run(proto, x), run(with_uint8_input(proto), images)
    assert logits.dtype == np.float32
    assert logits.shape == (n, 10)
    assert expected.std() > 0.05
    assert np.abs(logits - expected).max() <= 1e-6


def test_all_256_values_are_divided_as_numpy_does(bundle):
    """The prologue alone, bit for bit."""
    proto = with_uint8_input(onnx.load(bundle / "model.onnx"))
    del proto.graph.output[:]
    proto.graph.output.append(helper.make_tensor_value_info("images_unit", TensorProto.FLOAT, None))
    images = np.random.default_rng(0).permutation(np.arange(32 * 32 * 3) % 256).astype(np.uint8).reshape(1, 32, 32, 3)
    assert np.array_equal(run(proto, images), images.transpose(0, 3, 1, 2) / np.float32(255))


def test_only_the_input_changes(graph):
    before = onnx.load(graph)
    after = with_uint8_input(before)
    assert before == onnx.load(graph)  # it is a copy
    onnx.checker.check_model(after, full_check=True)
    (port,) = after.graph.input
    batch, *rest = port.type.tensor_type.shape.dim
    assert port.name == "images"
    assert port.type.tensor_type.elem_type == TensorProto.UINT8
    assert batch.dim_param == before.graph.input[0].type.tensor_type.shape.dim[0].dim_param != ""
    assert [dim.dim_value for dim in rest] == [32, 32, 3]
    assert after.graph.output == before.graph.output
    assert after.opset_import == before.opset_import
    assert max(entry.version for entry in after.opset_import if entry.domain == "") == OPSET
    held, was = ({entry.key: entry.value for entry in proto.metadata_props} for proto in (after, before))
    assert held == {**was, "input": CONTRACT}
    assert was["input"] != CONTRACT
    assert [node.op_type for node in after.graph.node][:3] == ["Cast", "Transpose", "Div"]
    assert [node.name for node in after.graph.node][3:] == [node.name for node in before.graph.node]


def foreign(proto: onnx.ModelProto) -> None:
    del proto.metadata_props[:]


def without_a_spec(proto: onnx.ModelProto) -> None:
    next(entry for entry in proto.metadata_props if entry.key == "spec").value = "{}"


def renamed(proto: onnx.ModelProto) -> None:
    proto.graph.input[0].name = "pixels"
    for node in proto.graph.node:
        node.input[:] = ["pixels" if name == "images" else name for name in node.input]


def resized(proto: onnx.ModelProto) -> None:
    proto.graph.input[0].type.tensor_type.shape.dim[2].dim_value = 64


def fixed(proto: onnx.ModelProto) -> None:
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1


def converted(proto: onnx.ModelProto) -> None:
    proto.CopyFrom(with_uint8_input(proto))


def torn(proto: onnx.ModelProto) -> None:
    del proto.graph.initializer[0]


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (foreign, "not one of this package.*lack name, spec"),
        (without_a_spec, "metadata are damaged"),
        (renamed, "ports are pixels, logits, not images and logits"),
        (resized, r"images are float \[N, 3, 64, 32\], not float \[N, 3, 32, 32\]"),
        (fixed, r"float \[1, 3, 32, 32\], not"),
        (converted, r"images are uint8 \[N, 32, 32, 3\], not float"),
        (torn, "graph is damaged"),
    ],
)
def test_a_graph_that_is_not_ours_is_refused(bundle, spoil, told):
    proto = onnx.load(bundle / "model.onnx")
    spoil(proto)
    with pytest.raises(IntegrityError, match=told) as caught:
        with_uint8_input(proto)
    assert "\n" not in str(caught.value)


def test_it_is_saved_whole_or_not_at_all(bundle, tmp_path, monkeypatch):
    source, target = bundle / "model.onnx", tmp_path / "uint8.onnx"
    save_with_uint8_input(source, target)
    assert onnx.load(target) == with_uint8_input(onnx.load(source))
    (tmp_path / "junk.onnx").write_bytes(b"\xff" * 64)
    with pytest.raises(IntegrityError, match="not an ONNX file"):
        save_with_uint8_input(tmp_path / "junk.onnx", target)
    with pytest.raises(IntegrityError, match=r"uint8\.onnx'.*are uint8"):
        save_with_uint8_input(target, target)
    with pytest.raises(UsageError, match="No such file"):
        save_with_uint8_input(tmp_path / "nothing.onnx", target)

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    held = target.read_bytes()
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ExportFailed, match="No space left"):
        save_with_uint8_input(source, target)
    assert target.read_bytes() == held
    assert sorted(path.name for path in tmp_path.iterdir()) == ["junk.onnx", "uint8.onnx"]


# -- Triton ----------------------------------------------------------------------------------------------------

# The part of Triton's model_config.proto that is used here: message to its fields, as (name, number, type).
TRITON = {
    "ModelConfig": [
        ("name", 1, "string"),
        ("backend", 17, "string"),
        ("max_batch_size", 4, "int32"),
        ("input", 5, "*ModelInput"),
        ("output", 6, "*ModelOutput"),
        ("dynamic_batching", 11, "ModelDynamicBatching"),
        ("instance_group", 7, "*ModelInstanceGroup"),
        ("default_model_filename", 8, "string"),
        ("parameters", 14, "*ParametersEntry"),
    ],
    "ModelInput": [("name", 1, "string"), ("data_type", 2, "DataType"), ("format", 3, "Format"), ("dims", 4, "*int64")],
    "ModelOutput": [
        ("name", 1, "string"),
        ("data_type", 2, "DataType"),
        ("dims", 3, "*int64"),
        ("label_filename", 4, "string"),
    ],
    "ModelDynamicBatching": [("preferred_batch_size", 1, "*int32")],
    "ModelInstanceGroup": [("kind", 4, "Kind"), ("count", 2, "int32")],
    "ModelParameter": [("string_value", 1, "string")],
}
ENUMS = {
    "DataType": {"TYPE_INVALID": 0, "TYPE_UINT8": 2, "TYPE_FP32": 11},
    "Format": {"FORMAT_NONE": 0, "FORMAT_NHWC": 1, "FORMAT_NCHW": 2},
    "Kind": {"KIND_AUTO": 0, "KIND_GPU": 1, "KIND_CPU": 2},
}


def triton_config():
    """A class of messages that protobuf's own parser fills from a config.pbtxt."""
    field = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="triton.proto", package="inference", syntax="proto3")
    for name, values in ENUMS.items():
        enum = file.enum_type.add(name=name)
        for value, number in values.items():
            enum.value.add(name=value, number=number)

    def fill(message, fields, scope=".inference"):
        for name, number, kind in fields:
            repeated, kind = kind.startswith("*"), kind.lstrip("*")
            added = message.field.add(name=name, number=number)
            added.label = field.LABEL_REPEATED if repeated else field.LABEL_OPTIONAL
            if kind[0].islower():
                added.type = getattr(field, f"TYPE_{kind.upper()}")
            else:
                added.type = field.TYPE_ENUM if kind in ENUMS else field.TYPE_MESSAGE
                added.type_name = f"{scope}.ModelConfig.{kind}" if kind.endswith("Entry") else f"{scope}.{kind}"

    for name, fields in TRITON.items():
        fill(file.message_type.add(name=name), fields)
    entry = file.message_type[0].nested_type.add(name="ParametersEntry")
    entry.options.map_entry = True
    fill(entry, [("key", 1, "string"), ("value", 2, "ModelParameter")])
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("inference.ModelConfig"))


ModelConfig = triton_config()


def parsed(model: Path):
    return text_format.Parse((model / "config.pbtxt").read_text(), ModelConfig())


def changed(bundle: Path, folder: Path, **fields) -> Path:
    """A copy of ``bundle`` whose manifest has other ``fields``."""
    shutil.copytree(bundle, folder)
    manifest = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps(manifest | fields))
    write_sums(folder)
    return folder


def holding(files: dict[str, bytes], bundle: Path, folder: Path, *, device: str = "cpu", **artifact) -> Path:
    """A copy of ``bundle`` with another engine's files; what they hold is nothing to a model repository."""
    shutil.copytree(bundle, folder)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    first, *rest = files
    sha256 = artifact_sha256({name: sha256_file(folder / name) for name in files}, list(files))
    artifact |= {"file": first, "companions": rest, "sha256": sha256, "size": 1}
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["artifact"] |= artifact
    manifest |= {"device": device, "engine": manifest["artifact"]["format"].partition("-")[0]}
    (folder / MANIFEST).write_text(json.dumps(manifest))
    write_sums(folder)
    return folder


def test_a_repository_says_of_the_model_what_its_graph_says(bundle, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nothing is otherwise than verified
        model = write_triton(bundle, tmp_path / "models")
    assert model == tmp_path / "models" / "small-15M"
    files = sorted(path.relative_to(model).as_posix() for path in model.rglob("*") if path.is_file())
    assert files == ["1/model.onnx", "config.pbtxt", "labels.txt"]
    assert (model / "1" / "model.onnx").read_bytes() == (bundle / "model.onnx").read_bytes()
    config, graph = parsed(model), onnx.load(model / "1" / "model.onnx").graph
    assert config.name == model.name
    assert (config.backend, config.default_model_filename, config.max_batch_size) == ("onnxruntime", "model.onnx", 64)
    types = {TensorProto.FLOAT: "TYPE_FP32"}
    for told, port in ((config.input, graph.input[0]), (config.output, graph.output[0])):
        (told,) = told
        tensor = port.type.tensor_type
        assert told.name == port.name
        assert told.data_type == ENUMS["DataType"][types[tensor.elem_type]]
        assert list(told.dims) == [dim.dim_value for dim in tensor.shape.dim][1:]
    assert config.input[0].format == ENUMS["Format"]["FORMAT_NCHW"]
    assert list(config.dynamic_batching.preferred_batch_size) == [8, 64]
    assert [(group.count, group.kind) for group in config.instance_group] == [(1, ENUMS["Kind"]["KIND_CPU"])]
    manifest = json.loads((bundle / MANIFEST).read_text())
    assert config.parameters["tensors_sha256"].string_value == manifest["source"]["tensors_sha256"]
    assert config.parameters["artifact_sha256"].string_value == manifest["artifact"]["sha256"]
    assert config.parameters["verified"].string_value == "parity"
    assert (model / config.output[0].label_filename).read_text().splitlines() == manifest["labels"]


def test_batches_are_no_larger_than_asked_for(bundle, tmp_path):
    config = parsed(write_triton(bundle, tmp_path, max_batch=16))
    assert config.max_batch_size == 16
    assert list(config.dynamic_batching.preferred_batch_size) == [8]
    config = parsed(write_triton(bundle, tmp_path, max_batch=1, name="single"))
    assert config.name == "single"
    assert config.max_batch_size == 1
    assert config.HasField("dynamic_batching")
    assert not config.dynamic_batching.preferred_batch_size


def test_classes_without_names_have_no_file_of_labels(bundle, tmp_path):
    model = write_triton(changed(bundle, tmp_path / "bundle", labels=[]), tmp_path / "models")
    assert not (model / "labels.txt").exists()
    assert not parsed(model).output[0].label_filename


def test_a_tensorrt_plan_is_served_on_the_gpu_in_the_batches_it_was_built_for(bundle, tmp_path):
    plan = holding(
        {"model.plan": b"plan"},
        bundle,
        tmp_path / "bundle",
        format="tensorrt-plan",
        device="cuda",
        batches=[1, 4, 8],
        built_for={"gpu": 'A "quoted" \\ GPU', "tensorrt": "10.16.1"},
        options={"version_compatible": True},
    )
    told: list[str] = []
    model = write_triton(plan, tmp_path / "models", notify=told.append)
    config = parsed(model)
    assert (config.backend, config.default_model_filename) == ("tensorrt", "model.plan")
    assert (model / "1" / "model.plan").read_bytes() == b"plan"
    assert config.max_batch_size == 8
    assert list(config.dynamic_batching.preferred_batch_size) == [4, 8]
    assert config.instance_group[0].kind == ENUMS["Kind"]["KIND_GPU"]
    assert config.parameters["built_for_gpu"].string_value == 'A "quoted" \\ GPU'
    assert told == [HOST_CODE]


def test_openvino_gets_both_files_and_a_batch_of_any_length(bundle, tmp_path):
    ir = holding({"model.xml": b"<net/>", "model.bin": b"\1"}, bundle, tmp_path / "bundle", format="openvino-ir")
    told: list[str] = []
    model = write_triton(ir, tmp_path / "models", notify=told.append)
    config = parsed(model)
    assert sorted(path.name for path in (model / "1").iterdir()) == ["model.bin", "model.xml"]
    assert (config.backend, config.default_model_filename, config.max_batch_size) == ("openvino", "model.xml", 0)
    assert list(config.input[0].dims) == [-1, 3, 32, 32]
    assert list(config.output[0].dims) == [-1, 10]
    assert config.input[0].format == 0  # a format would be of three dimensions
    assert not config.HasField("dynamic_batching")
    assert told == [BF16]


def test_cuda_that_would_round_is_told(bundle, tmp_path):
    cuda = changed(bundle, tmp_path / "bundle", device="cuda")
    with pytest.warns(UserWarning, match=TF32[:30]):
        model = write_triton(cuda, tmp_path / "models")
    assert parsed(model).instance_group[0].kind == ENUMS["Kind"]["KIND_GPU"]


@pytest.mark.parametrize(
    ("title", "name"),
    [
        ("rnascl-s7-wrt34", "rnascl-s7-wrt34"),
        ("proard-resnet@15M", "proard-resnet-15M"),
        ("a..b+c", "a.b-c"),
        ("modèle", "mod-le"),
        ("@x", "x"),
    ],
)
def test_names_that_triton_or_a_url_would_refuse_are_mapped(bundle, tmp_path, title, name):
    model = write_triton(changed(bundle, tmp_path / "bundle", name=title), tmp_path / "models")
    assert (model.name, parsed(model).name) == (name, name)


def test_two_models_of_one_name_are_refused_and_the_first_stays(bundle, tmp_path):
    model = write_triton(bundle, tmp_path / "models")
    held = (model / "config.pbtxt").read_bytes()
    with pytest.raises(UsageError, match=r"has a 'small-15M' already.*'small@15M' another name"):
        write_triton(bundle, tmp_path / "models", max_batch=2)
    assert (model / "config.pbtxt").read_bytes() == held
    assert write_triton(bundle, tmp_path / "models", name="other").name == "other"
    assert sorted(path.name for path in (tmp_path / "models").iterdir()) == ["other", "small-15M"]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"max_batch": 0}, "1 or more, not 0"),
        ({"name": "a/b"}, "cannot call a model 'a/b'"),
        ({"name": ".."}, r"cannot call a model '\.\.'"),
    ],
)
def test_what_triton_would_not_take_is_refused(bundle, tmp_path, options, told):
    with pytest.raises(UsageError, match=told):
        write_triton(bundle, tmp_path / "models", **options)
    assert not (tmp_path / "models").exists()


def test_a_bundle_is_neither_written_into_nor_served_unread(bundle, tmp_path):
    with pytest.raises(UsageError, match="which is sealed"):
        write_triton(bundle, bundle / "models")
    pte = holding({"model.pte": b"?"}, bundle, tmp_path / "pte", format="executorch")
    with pytest.raises(UsageError, match="no backend for executorch engines: export with --format onnx"):
        write_triton(pte, tmp_path / "models")
    (pte / "model.onnx").write_bytes(b"altered")
    with pytest.raises(IntegrityError, match="was altered"):
        write_triton(pte, tmp_path / "models")
    assert not (tmp_path / "models").exists()
