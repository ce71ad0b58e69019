"""Every operator of the ONNX reader computes what ONNX Runtime does, or is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, reject, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from zoo.export.gradients.onnx import read
from zoo.export.gradients.onnx_operators import FLOAT
from zoo.export.gradients.steps import LEAK, Unsupported, on_grid
from zoo.export.runtimes import onnxruntime

IMAGE = (2, 4, 6, 6)
IMAGES = object()


def floats(*shape: int, seed: int = 0) -> np.ndarray:
    """From a normal distribution, of both signs."""
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def whole(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.int64)


def saved(
    path: Path, operator: str, inputs: list[Any], *, outputs: int = 1, opset: int = 20, **attributes: Any
) -> Path:
    """A graph of one ``operator``; IMAGES in its inputs are those of the graph, and its last output is the graph's."""
    held = {f"held{i}": np.asarray(one) for i, one in enumerate(inputs) if isinstance(one, np.ndarray | np.generic)}
    names = ["x" if one is IMAGES else f"held{i}" if f"held{i}" in held else "" for i, one in enumerate(inputs)]
    made = [f"z{i}" for i in range(outputs)]
    nodes = [
        helper.make_node(operator, names, made, **attributes),
        helper.make_node("Cast", made[-1:], ["float"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMax", ["x"], ["most"], keepdims=0),  # so that all depends on the images
        helper.make_node("Mul", ["most", "zero"], ["nothing"]),
        helper.make_node("Add", ["float", "nothing"], ["out"]),
    ]
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, IMAGE)],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in {**held, "zero": np.float32(0)[None]}.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    onnx.save(model, str(path))
    return path


def answers(path: Path, x: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(np.array(onnxruntime.open([str(path)], 1)[0](x.numpy())))


CASES: dict[str, list[tuple[list[Any], dict[str, Any]]]] = {
    "Conv": [
        ([IMAGES, floats(8, 2, 3, 3), floats(8)], {"group": 2, "strides": [2, 1], "pads": [1, 0, 1, 2]}),
        ([IMAGES, floats(3, 4, 3, 3)], {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
        ([IMAGES, floats(3, 4, 2, 2)], {"auto_pad": "SAME_LOWER"}),
        ([IMAGES, floats(3, 4, 2, 2)], {"auto_pad": "VALID", "dilations": [2, 2]}),
    ],
    "MaxPool": [
        ([IMAGES], {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}),
        ([IMAGES], {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1}),
        ([IMAGES], {"kernel_shape": [2, 2], "pads": [0, 0, 1, 1]}),
        ([IMAGES], {"kernel_shape": [3, 3], "auto_pad": "SAME_UPPER", "strides": [2, 2]}),
        ([IMAGES], {"kernel_shape": [3, 3], "pads": [2, 2, 2, 2]}),
    ],
    "AveragePool": [
        ([IMAGES], {"kernel_shape": [2, 3], "strides": [2, 1]}),
        ([IMAGES], {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}),
        ([IMAGES], {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "count_include_pad": 1}),
        ([IMAGES], {"kernel_shape": [2, 2], "pads": [0, 0, 1, 1], "count_include_pad": 1}),
        ([IMAGES], {"kernel_shape": [3, 3], "pads": [2, 2, 2, 2]}),
    ],
    "GlobalAveragePool": [([IMAGES], {}), ([floats(2, 3, 4, 4, 4)], {}), ([floats(2, 3, 4)], {})],
    "GlobalMaxPool": [([IMAGES], {}), ([floats(2, 3, 4, 4, 4)], {})],
    "Resize": [
        ([IMAGES, "", np.array([1, 1, 2, 2], np.float32)], {"mode": "linear"}),
        ([IMAGES, "", "", whole(2, 4, 9, 9)], {"mode": "cubic"}),
        (
            [IMAGES, "", "", whole(2, 4, 9, 9)],
            {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"},
        ),
        ([IMAGES, "", np.array([1, 1, 1.3, 0.7], np.float32)], {"mode": "linear"}),
        ([IMAGES, "", np.array([1, 1, 1.3, 1.3], np.float32)], {"mode": "cubic"}),
        (
            [IMAGES, "", np.array([1, 1, 1.3, 1.7], np.float32)],
            {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"},
        ),
    ],
    "Gemm": [
        ([floats(3, 4), floats(4, 5)], {"alpha": 0.5}),
        ([floats(4, 3), floats(5, 4), floats(5)], {"transA": 1, "transB": 1, "beta": 2.0}),
    ],
    "MatMul": [([IMAGES, floats(6, 5)], {})],
    "Einsum": [([IMAGES, floats(4, 5)], {"equation": "nchw,cd->ndhw"})],
    "BatchNormalization": [([IMAGES, floats(4), floats(4), floats(4), abs(floats(4))], {"epsilon": 0.01})],
    "InstanceNormalization": [([IMAGES, floats(4), floats(4)], {"epsilon": 0.01})],
    "LayerNormalization": [
        ([IMAGES, floats(6), floats(6)], {}),
        ([IMAGES, floats(6, 6)], {"axis": 2, "epsilon": 0.01}),
    ],
    "Softmax": [([IMAGES], {}), ([IMAGES], {"axis": 1})],
    "LogSoftmax": [([IMAGES], {"axis": 1})],
    "Relu": [([IMAGES], {})],
    "LeakyRelu": [([IMAGES], {}), ([IMAGES], {"alpha": 0.2})],
    "PRelu": [([IMAGES, floats(4, 1, 1)], {})],
    "Elu": [([IMAGES], {}), ([IMAGES], {"alpha": 0.5})],
    "Selu": [([IMAGES], {}), ([IMAGES], {"alpha": 0.7, "gamma": 2.0})],
    "Gelu": [([IMAGES], {}), ([IMAGES], {"approximate": "tanh"})],
    "Mish": [([IMAGES], {})],
    "Swish": [([IMAGES], {"alpha": 0.5, "opset": 24})],
    "HardSwish": [([IMAGES], {})],
    "HardSigmoid": [([IMAGES], {}), ([IMAGES], {"alpha": 0.5, "beta": 0.4})],
    "Sigmoid": [([IMAGES], {})],
    "Tanh": [([IMAGES], {})],
    "Softplus": [([IMAGES], {})],
    "Erf": [([IMAGES], {})],
    "Clip": [
        ([IMAGES, np.float32(-0.5), np.float32(0.5)], {}),
        ([IMAGES, "", np.float32(0.2)], {}),
        ([IMAGES], {}),
        ([whole(2, 7), np.int64(3), np.int64(5)], {}),
    ],
    "Add": [([IMAGES, floats(6)], {})],
    "Sub": [([floats(6), IMAGES], {})],
    "Mul": [([IMAGES, IMAGES], {})],
    "Div": [([IMAGES, floats(6)], {})],
    "Mod": [([IMAGES, np.float32(0.7)], {"fmod": 1})],
    "Pow": [([IMAGES, np.float32(2)], {}), ([whole(2, 3), np.float32(1.5)], {})],
    "Sum": [([IMAGES, IMAGES, floats(6)], {})],
    "Max": [([IMAGES, floats(6)], {})],
    "Min": [([IMAGES, floats(6), floats(6)], {})],
    "Sqrt": [([IMAGES], {})],
    "Exp": [([IMAGES], {})],
    "Log": [([IMAGES], {})],
    "Neg": [([IMAGES], {})],
    "Abs": [([IMAGES], {})],
    "Reciprocal": [([IMAGES], {})],
    "Equal": [([IMAGES, IMAGES], {})],
    "Not": [([np.array([True, False])], {})],
    "Where": [([np.array([True, False] * 3), IMAGES, floats(6)], {})],
    "ReduceMean": [([IMAGES, whole(2, 3)], {}), ([IMAGES, whole(-1)], {"keepdims": 0}), ([IMAGES], {})],
    "ReduceSum": [([IMAGES, whole(1)], {}), ([IMAGES], {"noop_with_empty_axes": 1})],
    "ReduceMax": [([IMAGES, whole(1, 2)], {})],
    "ReduceL2": [([IMAGES, whole(-1)], {})],
    "Pad": [
        ([IMAGES, whole(0, 0, 1, 2, 0, 0, 3, 0), np.float32(0.5)], {}),
        ([IMAGES, whole(1, 2, 0, 1), "", whole(3, -2)], {}),
        ([IMAGES, whole(0, 0, 1, 2, 0, 0, 3, 0)], {"mode": "reflect"}),
        ([IMAGES, whole(0, 0, 1, 2, 0, 0, 3, 0)], {"mode": "edge"}),
    ],
    "Reshape": [
        ([IMAGES, whole(0, -1)], {}),
        ([IMAGES, whole(4, 0, -1)], {}),
        ([floats(0, 3), whole(3, 0)], {"allowzero": 1}),
    ],
    "Flatten": [([IMAGES], {}), ([IMAGES], {"axis": 0}), ([IMAGES], {"axis": 2}), ([IMAGES], {"axis": -1})],
    "Squeeze": [([floats(1, 2, 1), whole(0)], {}), ([floats(1, 2, 1)], {})],
    "Unsqueeze": [([IMAGES, whole(0, -1)], {})],
    "Transpose": [([IMAGES], {"perm": [0, 2, 3, 1]}), ([IMAGES], {})],
    "Concat": [([IMAGES, IMAGES, floats(2, 1, 6, 6)], {"axis": 1}), ([IMAGES, IMAGES], {"axis": -1})],
    "Split": [
        ([IMAGES, whole(1, 3)], {"axis": 1, "outputs": 2}),
        ([IMAGES], {"axis": -1, "num_outputs": 3, "outputs": 3}),
    ],
    "Slice": [
        ([IMAGES, whole(1, -3), whole(9, 2**63 - 1), whole(1, -1), whole(2, 1)], {}),
        ([IMAGES, whole(-1), whole(-(2**63)), whole(2), whole(-2)], {}),
        ([IMAGES, whole(0), whole(1)], {}),
    ],
    "Gather": [
        ([IMAGES, whole(0, -1)], {"axis": 1}),
        ([IMAGES, np.array(1)], {"axis": -1}),
        ([IMAGES, np.array([[0, 1]])], {}),
    ],
    "GatherND": [([IMAGES, np.array([[0, 1], [1, -1]])], {})],
    "ScatterND": [
        ([IMAGES, np.array([[0], [1]]), floats(2, 4, 6, 6)], {}),
        ([IMAGES, np.array([[1, 2]]), floats(1, 6, 6)], {}),
    ],
    "Expand": [([floats(1, 6), whole(2, 3, 1, 1)], {})],
    "Shape": [([IMAGES], {}), ([IMAGES], {"start": 1, "end": -1}), ([np.float32(1)], {})],
    "Range": [([np.int64(1), np.int64(7), np.int64(2)], {}), ([np.float32(1), np.float32(-1), np.float32(-0.5)], {})],
    "ConstantOfShape": [
        ([whole(2, 3)], {}),
        ([whole(2)], {"value": helper.make_tensor("v", TensorProto.INT64, [1], [7])}),
        ([whole()], {}),
    ],
    "Cast": [([IMAGES], {"to": TensorProto.INT32}), ([IMAGES], {"to": TensorProto.FLOAT16})],
    "Identity": [([IMAGES], {})],
    "Dropout": [([IMAGES], {}), ([IMAGES, np.float32(0.5), np.array(False)], {})],
}


def assert_same(path: Path, x: torch.Tensor | None = None) -> None:
    x = torch.from_numpy(floats(*IMAGE)) if x is None else x
    torch.testing.assert_close(read(path)(x), answers(path, x), rtol=1e-4, atol=1e-5)


OLD: list[tuple[int, str, list[Any], dict[str, Any]]] = [
    (9, "Clip", [IMAGES], {"min": 0.2, "max": 0.6}),
    (9, "Slice", [IMAGES], {"starts": [1, 0], "ends": [4, 2], "axes": [2, 1]}),
    (9, "Pad", [IMAGES], {"pads": [0, 0, 1, 0, 0, 0, 0, 2], "value": 0.3}),
    (9, "Dropout", [IMAGES], {"ratio": 0.3}),
    (11, "Softmax", [IMAGES], {}),
    (11, "Softmax", [IMAGES], {"axis": 2}),
    (11, "LogSoftmax", [IMAGES], {"axis": -1}),
    (11, "Unsqueeze", [IMAGES], {"axes": [1, 5]}),
    (11, "Squeeze", [floats(1, 3)], {"axes": [0]}),
    (11, "Split", [IMAGES], {"split": [1, 3], "axis": 1, "outputs": 2}),
    (13, "ReduceMean", [IMAGES], {"axes": [2, 3]}),
]

REFUSED: list[tuple[str, list[Any], dict[str, Any]]] = [
    ("Resize", [IMAGES, "", np.array([1, 1, 2, 2], np.float32)], {"mode": "nearest"}),
    ("Resize", [IMAGES, "", np.array([1, 2, 2, 1], np.float32)], {"mode": "linear"}),
    ("Resize", [IMAGES, "", "", whole(2, 8, 6, 6)], {"mode": "linear"}),
    (
        "Resize",
        [IMAGES, "", "", whole(2, 4, 1, 6)],
        {"mode": "linear", "coordinate_transformation_mode": "pytorch_half_pixel"},
    ),
    ("Pad", [IMAGES, whole(0, 1, 0, 0, 0, 1, 0, 0)], {"mode": "reflect"}),
    ("Pad", [IMAGES, whole(0, 0, 1, 1, 0, 0, 1, 1)], {"mode": "wrap"}),
    ("Dropout", [IMAGES, np.float32(0.5), np.array(True)], {}),
    ("Cast", [IMAGES], {"to": TensorProto.STRING}),
    ("Conv", [floats(2, 3, 8), floats(4, 3, 3)], {}),
    ("Cos", [IMAGES], {}),
]


def test_each_operator_has_a_case():
    assert {name for name, cases in CASES.items() if cases} == set(FLOAT)


@pytest.mark.parametrize("operator", FLOAT)
def test_it_computes_what_onnx_runtime_does(tmp_path, operator):
    x = torch.from_numpy(floats(*IMAGE))
    for inputs, attributes in CASES[operator]:
        path = saved(tmp_path / "net.onnx", operator, inputs, **attributes)
        assert_same(path, x.abs() + 0.1 if operator in ("Sqrt", "Log", "Reciprocal") else x)


@pytest.mark.parametrize(("opset", "operator", "inputs", "attributes"), OLD)
def test_so_it_does_in_older_forms(tmp_path, opset, operator, inputs, attributes):
    assert_same(saved(tmp_path / "net.onnx", operator, inputs, opset=opset, **attributes))


@pytest.mark.parametrize(("operator", "inputs", "attributes"), REFUSED)
def test_what_is_not_known_is_refused_by_name(tmp_path, operator, inputs, attributes):
    with pytest.raises(Unsupported, match=f"^the operator '{operator}'"):
        read(saved(tmp_path / "net.onnx", operator, inputs, **attributes))(torch.from_numpy(floats(*IMAGE)))


def graph(path: Path, nodes: list[Any], held: dict[str, np.ndarray] | None = None, *, listed: bool = False) -> Path:
    """A graph from "x" to "out"; weights are ``listed`` among its inputs in old files."""
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, IMAGE)]
    weights = [numpy_helper.from_array(array, name) for name, array in (held or {}).items()]
    if listed:
        inputs += [helper.make_tensor_value_info(one.name, one.data_type, one.dims) for one in weights]
    out = [helper.make_tensor_value_info("out", TensorProto.FLOAT, None)]
    made = helper.make_graph(nodes, "graph", inputs, out, weights)
    onnx.save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=8), str(path))
    return path


def node(kind: str, inputs: str, outputs: str = "out", **attributes: Any) -> Any:
    return helper.make_node(kind, inputs.split(), outputs.split(), **attributes)


GRID = {
    "s": np.array(0.02, np.float32),
    "t": np.array(0.02, np.float32),
    "z": np.array(3, np.int8),
    "o": np.array(0, np.uint8),
    "c": np.array([0.01, 0.02, 0.03, 0.1], np.float32),
    "d": np.array([0, 3, -7, 0], np.int8),
    "w": floats(4, 4, 3, 3),
    "k": np.arange(-18, 18, dtype=np.int8).reshape(6, 6),
}
QUANTISED = node("QuantizeLinear", "x s z", "q")


@pytest.mark.parametrize("how", [{"value_float": 2.0}, {"value_floats": [2.0] * 6}, {"value_ints": [2, 3]}])
def test_constants_are_weights(tmp_path, how):
    nodes = [node("Constant", "", "c", **how), node("Cast", "c", "f", to=TensorProto.FLOAT)]
    nodes += [node("ReduceMax", "f", "m", keepdims=0), node("Mul", "x m")]
    assert_same(graph(tmp_path / "net.onnx", nodes))


def test_weights_may_be_listed_among_the_inputs(tmp_path):
    assert_same(graph(tmp_path / "net.onnx", [node("Mul", "x w")], {"w": floats(6)}, listed=True))


BACK = node("DequantizeLinear", "q s z")
QUANTISING = {
    "usual": [QUANTISED, BACK],
    "equal scales": [QUANTISED, node("DequantizeLinear", "q t z")],
    "no zero points": [node("QuantizeLinear", "x s", "q"), node("DequantizeLinear", "q s")],
    "one zero point": [node("QuantizeLinear", "x s", "q"), node("DequantizeLinear", "q s o")],
    "computed zero point": [node("Identity", "z", "i"), node("QuantizeLinear", "x s i", "q"), BACK],
    "computed scale": [
        node("ReduceMax", "x", "m", keepdims=0),
        node("QuantizeLinear", "x m z", "q"),
        node("DequantizeLinear", "q m z"),
    ],
    "by channel": [node("QuantizeLinear", "x c d", "q", axis=1), node("DequantizeLinear", "q c d", axis=1)],
    "not in order": [BACK, QUANTISED],
    "weights": [
        node("QuantizeLinear", "w c d", "q", axis=0),
        node("DequantizeLinear", "q c d", "v", axis=0),
        node("Conv", "x v"),
    ],
    "weights that are moved": [
        node("Transpose", "k", "kt"),
        node("DequantizeLinear", "kt s z", "v"),
        node("Mul", "x v"),
    ],
}


@pytest.mark.parametrize("nodes", QUANTISING.values(), ids=QUANTISING)
def test_it_quantises_as_onnx_runtime_does(tmp_path, nodes):
    assert_same(graph(tmp_path / "net.onnx", nodes, GRID))


def test_onnx_runtime_s_own_way_of_quantising_is_read(tmp_path):
    nodes = [QUANTISED, BACK]
    path = graph(tmp_path / "net.onnx", nodes, GRID)
    proto = onnx.load(str(path))
    for one in proto.graph.node:
        one.domain = "com.microsoft"
    proto.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    onnx.save(proto, str(path))
    assert_same(path)


@pytest.mark.parametrize(
    ("nodes", "message"),
    [
        ([QUANTISED, node("Cast", "q", to=TensorProto.FLOAT)], "'Cast' on integers"),
        ([QUANTISED, node("MaxPool", "q", "p", kernel_shape=[2, 2]), node("DequantizeLinear", "p s z")], "on integers"),
        ([QUANTISED, node("DequantizeLinear", "q u z")], "another scale"),
        ([node("Relu", "s")], "logits that do not depend on the images"),
        ([node("Relu", "y"), node("Relu", "q", "y")], "'Relu' of what nothing computes"),
        ([node("MaxPool", "x", "p i", kernel_shape=[2, 2]), node("Cast", "i", to=TensorProto.FLOAT)], "another output"),
        ([node("Add", "x y")], "more than images and logits"),
    ],
)
def test_other_graphs_are_refused(tmp_path, nodes, message):
    path = graph(tmp_path / "net.onnx", nodes, {**GRID, "u": np.array(0.03, np.float32)})
    if nodes[0].op_type == "Add":
        proto = onnx.load(str(path))
        proto.graph.input.append(helper.make_tensor_value_info("y", TensorProto.FLOAT, IMAGE))
        onnx.save(proto, str(path))
    with pytest.raises(Unsupported, match=message):
        read(path)


@pytest.mark.parametrize(
    ("value", "low", "high", "slope"),  # of the scale
    [(3.2, -4, 7, 1), (7.4, -4, 7, 1), (7.6, -4, 7, LEAK), (-4.6, -4, 7, LEAK), (-0.6, 0, 7, 0), (0.6, -4, 0, 0)],
)
def test_what_is_rounded_has_its_gradient_and_what_is_clipped_a_tenth_of_it(value, low, high, slope):
    for kind in (float, torch.tensor):
        x = torch.tensor(0.25 * value, requires_grad=True)
        rounded = on_grid(x, kind(0.25), kind(low), kind(high))
        rounded.backward()
        assert (rounded.item(), x.grad.item()) == (0.25 * min(max(round(value), low), high), pytest.approx(slope))


SIDES = st.integers(0, 2)


@given(
    operator=st.sampled_from(("Conv", "MaxPool", "AveragePool")),
    window=st.tuples(st.integers(2, 3), st.integers(2, 3)),
    strides=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    dilations=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    pads=st.tuples(SIDES, SIDES, SIDES, SIDES),
    auto=st.sampled_from(("NOTSET", "NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID")),
    switches=st.fixed_dictionaries({}, optional={"ceil_mode": st.just(1), "count_include_pad": st.just(1)}),
)
@settings(max_examples=60)
def test_windows_lie_where_onnx_runtime_has_them_or_are_refused(
    tmp_path_factory, operator, window, strides, dilations, pads, auto, switches
):
    form: dict[str, Any] = {"strides": strides, "auto_pad": auto}
    if auto == "NOTSET":
        form["pads"] = [min(pad, side - 1) for pad, side in zip(pads, 2 * window, strict=True)]
    if operator != "AveragePool":
        form["dilations"] = dilations
    if operator != "Conv":
        form |= {
            "kernel_shape": window,
            **{key: on for key, on in switches.items() if "ceil" in key or "A" in operator},
        }
    weight = [floats(3, 4, *window)] if operator == "Conv" else []
    path = saved(tmp_path_factory.mktemp("net") / "net.onnx", operator, [IMAGES, *weight], **form)
    x = torch.from_numpy(floats(*IMAGE, seed=1))
    try:
        answers(path, x)
    except Exception:  # ONNX Runtime refuses it itself
        reject()
    above, below = form.get("pads", (0, 0, 0, 0))[:2], form.get("pads", (0, 0, 0, 0))[2:]
    even = above == below and all(pad <= side // 2 for pad, side in zip(above, window, strict=True))
    same = auto.startswith("SAME")
    try:
        assert_same(path, x)
    except Unsupported:
        assert (form.get("ceil_mode") and (same or not even)) or (same and dilations != (1, 1))


@given(start=st.integers(-9, 9), end=st.integers(-9, 9), step=st.integers(-3, 3).filter(bool), axis=st.integers(-4, 3))
@settings(max_examples=30)
def test_a_slice_is_onnx_runtime_s(tmp_path_factory, start, end, step, axis):
    path = tmp_path_factory.mktemp("net") / "net.onnx"
    assert_same(saved(path, "Slice", [IMAGES, *map(whole, (start, end, axis, step))]))
