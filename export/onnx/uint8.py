"""The same classifier for pictures as decoders and cameras leave them: uint8, channels last, divided by 255 inside."""

from __future__ import annotations

from pathlib import Path

import onnx
from google.protobuf.message import DecodeError
from onnx import TensorProto, helper

from zoo.export.onnx.graph import INPUT, OUTPUT
from zoo.specs import parse_spec
from zoo.system.errors import ExportFailed, IntegrityError, UsageError
from zoo.system.files import write_atomic

UINT8 = "model-uint8.onnx"
CONTRACT = "uint8 NHWC RGB in [0, 255], division by 255 and normalisation inside"
FIELDS = ("name", "spec", "precision", "input", "output", "labels")  # that every graph of ours has


def save_with_uint8_input(source: Path | str, target: Path | str) -> None:
    """Write what :func:`with_uint8_input` makes of the graph in ``source`` to ``target``, whole or not at all.

    Raises:
        UsageError: there is no file ``source``.
        IntegrityError: it is not a classifier of this package.
        ExportFailed: ``target`` cannot be written.
    """
    try:
        content = Path(source).read_bytes()
    except OSError as error:
        raise UsageError(f"'{source}' cannot be read: {error.strerror}") from None
    try:
        proto = with_uint8_input(onnx.load_model_from_string(content))
    except DecodeError:
        raise IntegrityError(f"'{source}' is not an ONNX file") from None
    except IntegrityError as error:
        raise IntegrityError(f"'{source}': {error}") from None
    try:
        write_atomic(Path(target), proto.SerializeToString(deterministic=True))
    except OSError as error:
        raise ExportFailed(f"'{target}' could not be written: {error.strerror}") from error


def with_uint8_input(proto: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of a graph of ours, in any precision, that takes uint8 images [N, H, W, 3] under the same name.

    They are cast, transposed and divided by 255 in float32 before anything else, so that the logits are those of the
    graph for x / 255.

    Raises:
        IntegrityError: the graph is not a classifier of this package that takes float32 images.
    """
    size = _size(proto)
    graph = onnx.ModelProto()
    graph.CopyFrom(proto)
    for node in graph.graph.node:
        node.input[:] = ["images_unit" if name == INPUT else name for name in node.input]
    prologue = (
        helper.make_node("Cast", [INPUT], ["images_float"], name="images_cast", to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["images_float"], ["images_nchw"], name="images_transpose", perm=[0, 3, 1, 2]),
        helper.make_node("Div", ["images_nchw", "images_255"], ["images_unit"], name="images_divide"),
    )
    for position, node in enumerate(prologue):
        graph.graph.node.insert(position, node)
    graph.graph.initializer.append(helper.make_tensor("images_255", TensorProto.FLOAT, [], [255.0]))
    tensor = graph.graph.input[0].type.tensor_type
    tensor.elem_type = TensorProto.UINT8
    for dim, length in zip(tensor.shape.dim[1:], (size, size, 3), strict=True):
        dim.dim_value = length
    next(entry for entry in graph.metadata_props if entry.key == "input").value = CONTRACT
    try:
        onnx.checker.check_model(graph, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise IntegrityError(f"the graph is damaged: {str(error).strip().splitlines()[0]}") from error
    return graph


def _size(proto: onnx.ModelProto) -> int:
    """Height and width of the images that a classifier of ours takes, by its metadata and by its input alike."""
    held = {entry.key: entry.value for entry in proto.metadata_props}
    missing = [field for field in FIELDS if field not in held]
    if missing:
        raise IntegrityError(f"the graph is not one of this package: its metadata lack {', '.join(missing)}")
    try:
        spec = parse_spec(held["spec"])
    except UsageError as error:
        raise IntegrityError(f"the graph's metadata are damaged: {error}") from None
    wanted = {INPUT: [0, 3, spec.image_size, spec.image_size], OUTPUT: [0, spec.classes]}  # 0: any batch
    ports = [*proto.graph.input, *proto.graph.output]
    if [port.name for port in ports] != list(wanted):
        raise IntegrityError(
            f"the graph's ports are {', '.join(port.name for port in ports)}, not {INPUT} and {OUTPUT}"
        )
    for port in ports:
        tensor = port.type.tensor_type
        shape = [dim.dim_value for dim in tensor.shape.dim]
        if tensor.elem_type != TensorProto.FLOAT or shape != wanted[port.name]:
            kind = TensorProto.DataType.Name(tensor.elem_type).lower()
            raise IntegrityError(
                f"the graph's {port.name} are {kind} {_shown(shape)}, not float {_shown(wanted[port.name])}"
            )
    return spec.image_size


def _shown(shape: list[int]) -> str:
    return f"[{', '.join(str(length or 'N') for length in shape)}]"
