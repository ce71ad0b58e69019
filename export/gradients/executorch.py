"""The module that a ``.pte`` file describes, from the weights and the ranges that are in it.

XNNPACK packs weights in its own way only when it loads them; in the file they are as PyTorch had them. ExecuTorch's own
deserialiser reads the file. The graph of each delegate is read with the schema, and the compiler ``flatc``, that
ExecuTorch ships to write it. A graph from before the lowering, kept beside the program, would be easier to read, but it
would show what the program was made from, not what it is.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.export.gradients.steps import (
    Operator,
    Steps,
    Unsupported,
    averaged,
    convolved,
    dequantised,
    followed,
    halved,
    padded,
    quantised,
)

NOTHING = 2**32 - 1  # the number of an input that is left out
KEEP_DIMS = 64  # a flag of pooling; others change what an operator computes
FLOATS = {"FLOAT": np.float32, "HALF": np.float16, "LONG": np.int64}
DTYPES = {"fp32": np.float32, "fp16": np.float16, "qcint8": np.int8, "qint8": np.int8, "qcint32": np.int32}

Blobs = dict[str, bytes]


def read(path: Path) -> Steps:
    """The program in the file ``path``.

    Raises:
        Unsupported: it has an operator, or a type of tensors, that the programs of this package do not have.
    """
    from executorch.exir._serialize._program import deserialize_pte_binary

    file = deserialize_pte_binary(path.read_bytes())
    (plan,) = file.program.execution_plan
    (chain,) = plan.chains
    named = file.named_data
    blobs = {key: named.buffers[entry.buffer_index] for key, entry in named.pte_data.items()} if named else {}
    calls = [instruction.instr_args for instruction in chain.instructions]
    set_by = {index for call in calls for index in getattr(call, "args", ())[-1:]}
    values: dict[Any, Any] = {}
    for index, value in enumerate(plan.values):
        if index not in set_by:
            values |= _constant(index, value.val, file.program.constant_buffer)
    steps: list[Any] = []
    for number, call in enumerate(calls):
        if type(call).__name__ == "DelegateCall":
            delegate = plan.delegates[call.delegate_index]
            if delegate.id != "XnnpackBackend":
                raise Unsupported(f"delegate '{delegate.id}'")
            graph = _graph(bytes(file.program.backend_delegate_data[delegate.processed.index].data))
            held, more = _delegate(number, graph, call.args, blobs)
            values |= held
            steps += more
        elif type(call).__name__ == "KernelCall":
            steps += _kernel(plan, call)
        else:
            raise Unsupported(f"instruction '{type(call).__name__}'")
    (source,), (target,) = plan.inputs, plan.outputs
    return Steps(source, target, values, steps)


# -- the program around the delegates ------------------------------------------------------------------------------


def _constant(index: int, value: Any, buffers: Sequence[Any]) -> dict[int, Any]:
    """The value at ``index`` of the program, by its index, where it is known before the program runs."""
    match type(value).__name__:
        case "Int" | "Bool" | "Double":
            return {index: next(iter(vars(value).values()))}
        case "Null":
            return {index: None}
        case "Tensor" if value.data_buffer_idx:
            stored = np.frombuffer(bytes(buffers[value.data_buffer_idx].storage), FLOATS[value.scalar_type.name])
            return {index: torch.tensor(stored[: math.prod(value.sizes)]).reshape(value.sizes).float()}
    return {}


def _kernel(plan: Any, call: Any) -> list[Any]:
    """The steps of an operator that XNNPACK does not run."""
    name = f"{plan.operators[call.op_index].name}.{plan.operators[call.op_index].overload}"
    if name not in KERNELS:
        raise Unsupported(f"operator '{name}'")
    target = call.args[-1]  # which the operators with an "out" argument are given twice
    inputs = [index for index in call.args[:-1] if index != target]
    lists = [index for index in inputs if type(plan.values[index].val).__name__ == "IntList"]
    halves = getattr(getattr(plan.values[target].val, "scalar_type", None), "name", None) == "HALF"
    gathered = [(lambda *items: list(items), plan.values[index].val.items, index) for index in lists]
    return [*gathered, (followed(KERNELS[name], halved if halves else None), inputs, target)]


KERNELS: dict[str, Operator] = {
    "aten::mean.out": lambda x, axes, keep, dtype: x.mean(axes, keepdim=keep),
    "aten::slice_copy.Tensor_out": torch.ops.aten.slice.Tensor,
    "aten::sym_size.int": lambda x, axis: x.shape[axis],
    "dim_order_ops::_to_dim_order_copy.out": lambda x, blocking, order: x,
    "executorch_prim::et_view.default": lambda x, shape: x.reshape(shape),
}


# -- a delegate ----------------------------------------------------------------------------------------------------


def _graph(blob: bytes) -> dict[str, Any]:
    """XNNPACK's graph in a delegate's ``blob``; floats as the integers that their bits make, because ``flatc`` prints
    six decimals of a float."""
    from executorch.backends.xnnpack.serialization import xnnpack_graph_serialize as xnnpack
    from executorch.exir._serialize._flatbuffer import _flatc_decompile

    header = xnnpack.XNNHeader.from_bytes(blob[: xnnpack.XNNHeader.EXPECTED_LENGTH])
    if header.constant_data_size:
        raise Unsupported("weights in the delegate itself")
    with tempfile.TemporaryDirectory() as folder:
        schema, packed = Path(folder, "schema.fbs"), Path(folder, "graph.bin")
        schema.write_bytes(xnnpack._get_schema_bytes().replace(b"float", b"uint"))
        packed.write_bytes(blob[header.flatbuffer_offset :][: header.flatbuffer_size])
        _flatc_decompile(folder, str(schema), str(packed), ["--raw-binary"])
        graph: dict[str, Any] = json.loads(packed.with_suffix(".json").read_bytes())
        return graph


def _float(bits: int) -> float:
    return float(np.uint32(bits).view(np.float32))


def _delegate(
    number: int, graph: dict[str, Any], arguments: Sequence[int], blobs: Blobs
) -> tuple[dict[Any, Any], list[Any]]:
    """What is constant in the graph, and its steps. A tensor inside is called (``number``, its own number)."""
    values: dict[Any, Any] = {(number, NOTHING): None}
    names: dict[int, Any] = {NOTHING: (number, NOTHING)}
    rounding: dict[int, Callable[[Tensor], Tensor] | None] = {}
    for entry in graph["xvalues"]:
        tensor = entry["xvalue_union"]
        rule = tensor.get("quant_params", {})
        tensor = tensor.get("tensor_value", tensor)
        own = tensor["id_out"]
        names[own] = (number, own) if tensor["external_id"] == NOTHING else arguments[tensor["external_id"]]
        if tensor["constant_buffer_idx"]:
            values[names[own]] = _weight(tensor, rule, graph["constant_data"], blobs)
        else:
            rounding[own] = _rounding(tensor, rule)
    steps = []
    for node in graph["xnodes"]:
        kind, form = node["xnode_union_type"], node["xnode_union"]
        if kind not in NODES or form["flags"] & ~KEEP_DIMS:
            raise Unsupported(f"operator '{kind}' with flags {form['flags']}")
        inputs = [names[one] for key, one in form.items() if key.endswith("_id") and key != "output_id"]
        operator = followed(NODES[kind](form), _clamp(node.get("output_min_max")))
        steps.append((followed(operator, rounding[form["output_id"]]), inputs, names[form["output_id"]]))
    return values, steps


def _weight(tensor: dict[str, Any], rule: dict[str, Any], places: list[dict[str, Any]], blobs: Blobs) -> Tensor:
    def stored(place: int, dtype: type) -> np.ndarray:
        return np.frombuffer(blobs[places[place]["named_key"]], dtype)

    dtype = DTYPES[tensor["datatype"].removeprefix("xnn_datatype_")]
    array = torch.tensor(stored(tensor["constant_buffer_idx"], dtype).reshape(tensor["dims"]))
    if not rule:
        return array.float()
    if "scale_buffer_idx" in rule:
        scales = torch.tensor(stored(rule["scale_buffer_idx"], np.float32))
        return dequantised(array, scales, torch.zeros(1), rule["channel_dim"])
    return dequantised(array, torch.tensor([_float(rule["scale"])]), torch.tensor([rule["zero_point"]]), 0)


def _rounding(tensor: dict[str, Any], rule: dict[str, Any]) -> Callable[[Tensor], Tensor] | None:
    """What becomes of a result that is stored in ``tensor``."""
    match tensor["datatype"]:
        case "xnn_datatype_fp32":
            return None
        case "xnn_datatype_fp16":
            return halved
        case "xnn_datatype_qint8":
            return quantised(_float(rule["scale"]), rule["zero_point"])
        case other:
            raise Unsupported(f"a result in {other}")


def _clamp(limits: dict[str, int] | None) -> Callable[[Tensor], Tensor] | None:
    if limits is None:
        return None
    return partial(torch.clamp, min=_float(limits["output_min"]), max=_float(limits["output_max"]))


def _convolution(form: dict[str, Any], *, depthwise: bool = False) -> Operator:
    pads = [form[f"padding_{side}"] for side in ("left", "right", "top", "bottom")]
    stride, dilation = ((form[f"{key}_height"], form[f"{key}_width"]) for key in ("subsampling", "dilation"))
    settings = {"stride": stride, "dilation": dilation, "groups": form["groups"], "pads": pads}
    if depthwise:  # its weight is [1, kH, kW, out]
        return lambda x, weight, bias: convolved(x, weight.permute(3, 1, 2, 0), bias, **settings)
    return lambda x, weight, bias: convolved(x, weight, bias, **settings)


def _average(form: dict[str, Any]) -> Operator:
    if any(form[f"padding_{side}"] for side in ("left", "right", "top", "bottom")):
        raise Unsupported("average pooling with padding")
    window, stride = ((form[f"{key}_height"], form[f"{key}_width"]) for key in ("pooling", "stride"))
    return partial(averaged, window=window, stride=stride)


def _pad(form: dict[str, Any]) -> Operator:
    before, after, value = form["pre_paddings"], form["post_paddings"], _float(form["padding_value"])
    return partial(padded, before=before, after=after, value=value)


NODES: dict[str, Callable[[dict[str, Any]], Operator]] = {
    "XNNAdd": lambda form: torch.add,
    "XNNSubtract": lambda form: torch.sub,
    "XNNMultiply": lambda form: torch.mul,
    "XNNDiv": lambda form: torch.div,
    "XNNConvert": lambda form: lambda x: x,
    "XNNClamp": lambda form: lambda x: x,
    "XNNSigmoid": lambda form: torch.sigmoid,
    "XNNHardswish": lambda form: F.hardswish,
    "XNNStaticTranspose": lambda form: partial(torch.permute, dims=form["perm"]),
    "XNNStaticConstantPad": _pad,
    "XNNConv2d": _convolution,
    "XNNDepthwiseConv2d": partial(_convolution, depthwise=True),
    "XNNFullyConnected": lambda form: F.linear,
    "XNNAvgPooling2d": _average,
    "XNNGlobalAvgPooling2d": lambda form: lambda x: x.mean((1, 2), keepdim=bool(form["flags"] & KEEP_DIMS)),
}
