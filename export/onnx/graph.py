"""Freeze a classifier into one ONNX file."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx
import onnx.numpy_helper
import torch
from torch import nn

from zoo.models import Classifier
from zoo.models.fold import fold_batchnorm
from zoo.system.errors import ExportFailed, first_line
from zoo.system.silence import silence

OPSET = 20
GRAPH, INPUT, OUTPUT = "model.onnx", "images", "logits"


def save_onnx(model: Classifier, path: Path, *, metadata: Mapping[str, str] | None = None) -> int:
    """Write ``model`` to ``path`` with a dynamic batch: "images" [N, 3, H, W] in [0, 1] in, "logits" out.

    BatchNorm is folded into the convolutions. The normalisation stays in the graph: folded into the first
    convolution it would change the border, where the padding is a zero *after* normalisation. The same weights
    and metadata give the same bytes.

    Returns:
        The opset.

    Raises:
        ExportFailed: the exporter or the checker refused the model.
    """
    size = model.spec.image_size
    try:
        with quiet(logging.getLogger("torch.onnx")):
            program = torch.onnx.export(
                fold_batchnorm(model).cpu(),
                (torch.zeros(2, 3, size, size),),
                dynamo=True,
                input_names=[INPUT],
                output_names=[OUTPUT],
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                opset_version=OPSET,
                verbose=False,
            )
        assert program is not None  # it is only without dynamo
        proto = _plain(program.model_proto)
        for key, value in sorted((metadata or {}).items()):
            proto.metadata_props.add(key=key, value=value)
        onnx.checker.check_model(proto, full_check=True)
    except (torch.onnx.errors.OnnxExporterError, torch._dynamo.exc.TorchDynamoException, RuntimeError) as error:
        raise ExportFailed(f"PyTorch could not convert the model to ONNX: {first_line(error)}") from error
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportFailed(f"the ONNX checker refused the exported model: {first_line(error)}") from error
    path.write_bytes(proto.SerializeToString(deterministic=True))
    return next(entry.version for entry in proto.opset_import if entry.domain == "")


def metadata_of(path: Path) -> dict[str, str]:
    """The metadata that :func:`save_onnx` wrote into the file."""
    return {entry.key: entry.value for entry in onnx.load(str(path)).metadata_props}


def with_weights_of(path: Path, model: Classifier) -> nn.Module | None:
    """A folded copy of ``model`` with the weights in the ONNX file that :func:`save_onnx` once wrote, by their names.

    None if a weight is missing or has another shape: then the file is not of this architecture.
    """
    held = {entry.name: onnx.numpy_helper.to_array(entry) for entry in onnx.load(str(path)).graph.initializer}
    copy = fold_batchnorm(model)
    for name, tensor in copy.state_dict().items():
        if name in held and held[name].shape == tuple(tensor.shape):
            tensor.copy_(torch.from_numpy(held[name].copy()))
        elif tensor.is_floating_point() and tensor.any():  # the exporter leaves biases out that are all zero
            return None
    return copy


def finish(proto: onnx.ModelProto, *, like: onnx.ModelProto, path: Path) -> None:
    """Check ``proto`` and write it with the metadata of the graph that it was made from."""
    del proto.metadata_props[:]
    proto.metadata_props.extend(like.metadata_props)
    onnx.checker.check_model(proto, full_check=True)
    path.write_bytes(proto.SerializeToString(deterministic=True))


def _plain(proto: Any) -> Any:
    """The graph without the exporter's notes: stack traces name folders of the machine that exported."""
    graph = proto.graph
    for holder in (proto, graph):
        holder.ClearField("metadata_props")
        holder.ClearField("doc_string")
    for part in (*graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    return proto


@contextmanager
def quiet(logger: logging.Logger) -> Iterator[None]:
    """Keep a converter's progress and its advice to developers off the user's terminal; errors are still raised. One
    thread at a time: converters have states that are the whole program's."""
    with silence(), warnings.catch_warnings(action="ignore"):
        level = logger.level
        logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            logger.setLevel(level)
