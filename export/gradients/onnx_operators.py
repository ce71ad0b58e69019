"""The operators of ONNX that image classifiers are made of, in PyTorch, with gradients.

Each takes its inputs in order (None for one that is left out) and its attributes by name. What is an input today and
was an attribute in older opsets has the attribute's name. A form that is not here raises :class:`Unsupported`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from onnx import TensorProto, numpy_helper
from torch import Tensor

from zoo.export.gradients.steps import Operator, Unsupported

Numbers = Tensor | Sequence[int] | None

DTYPES = {  # as TensorProto numbers them
    1: torch.float32,
    2: torch.uint8,
    3: torch.int8,
    6: torch.int32,
    7: torch.int64,
    9: torch.bool,
    10: torch.float16,
    11: torch.float64,
    16: torch.bfloat16,
}


def tensor(proto: Any) -> Tensor:
    """What ONNX holds as a TensorProto.

    Raises:
        Unsupported: PyTorch has no numbers of its type.
    """
    try:
        return torch.from_numpy(numpy_helper.to_array(proto).copy())
    except TypeError:
        raise Unsupported(f"numbers of the type {TensorProto.DataType.Name(proto.data_type)}") from None


def constant(**form: Any) -> Tensor:
    """The value of a Constant, of which it has one attribute."""
    ((name, value),) = form.items()
    if name == "value":
        return tensor(value)
    if name in ("value_float", "value_floats"):
        return torch.tensor(value, dtype=torch.float32)
    if name in ("value_int", "value_ints"):
        return torch.tensor(value, dtype=torch.int64)
    raise Unsupported(f"a constant with {name}")


def plain(form: dict[str, Any], **usual: Any) -> None:
    """Raise Unsupported unless these attributes are as usual, or left out."""
    for name, value in usual.items():
        if form.get(name, value) != value:
            raise Unsupported(f"{name}={form[name]}")


def _numbers(given: Numbers) -> Any:
    """What an input or an attribute holds."""
    return given.tolist() if isinstance(given, Tensor) else given


# -- windows ---------------------------------------------------------------------------------------------------------


def _pads(x: Tensor, window: Sequence[int], form: dict[str, Any]) -> tuple[int, int, int, int]:
    """Rows above, columns left, rows below, columns right."""
    automatic = form.get("auto_pad", "NOTSET")
    if automatic in ("NOTSET", "VALID"):
        top, left, bottom, right = form.get("pads", (0, 0, 0, 0)) if automatic == "NOTSET" else (0, 0, 0, 0)
        return top, left, bottom, right
    plain(form, dilations=[1, 1])
    pairs = []
    for side, extent, stride in zip(x.shape[2:], window, form.get("strides", (1, 1)), strict=True):
        whole = max((-(-side // stride) - 1) * stride + extent - side, 0)
        less, more = whole // 2, whole - whole // 2
        pairs.append((less, more) if automatic == "SAME_UPPER" else (more, less))
    (top, bottom), (left, right) = pairs
    return top, left, bottom, right


def _flat(x: Tensor) -> None:
    if x.ndim != 4:
        raise Unsupported(f"{x.ndim - 2} axes of space")


def _conv(x: Tensor, weight: Tensor, bias: Tensor | None = None, **form: Any) -> Tensor:
    _flat(x)
    top, left, bottom, right = _pads(x, weight.shape[2:], form)
    if (top, left) == (bottom, right):
        padding = (top, left)
    else:
        x, padding = F.pad(x, (left, right, top, bottom)), (0, 0)
    how = {"stride": form.get("strides", 1), "dilation": form.get("dilations", 1), "groups": form.get("group", 1)}
    return F.conv2d(x, weight, bias, padding=padding, **how)


def _even(pads: tuple[int, int, int, int], window: Sequence[int]) -> bool:
    """Whether PyTorch's pooling takes these pads: the same on both sides, and at most half of the window."""
    top, left, bottom, right = pads
    return (top, left) == (bottom, right) and top <= window[0] // 2 and left <= window[1] // 2


def _max_pool(x: Tensor, **form: Any) -> Tensor:
    plain(form, storage_order=0)
    window = form["kernel_shape"]
    _flat(x)
    top, left, bottom, right = _pads(x, window, form)
    how = {"dilation": form.get("dilations", 1), "ceil_mode": bool(form.get("ceil_mode", 0))}
    if _even((top, left, bottom, right), window):
        padding = (top, left)
    else:
        plain(form, ceil_mode=0)
        x, padding = F.pad(x, (left, right, top, bottom), value=-torch.inf), (0, 0)
    return F.max_pool2d(x, window, form.get("strides", 1), padding, **how)


def _average_pool(x: Tensor, **form: Any) -> Tensor:
    plain(form, dilations=[1, 1])
    window, strides, counts = form["kernel_shape"], form.get("strides", 1), bool(form.get("count_include_pad", 0))
    _flat(x)
    top, left, bottom, right = _pads(x, window, form)
    if _even((top, left, bottom, right), window):
        return F.avg_pool2d(x, window, strides, (top, left), bool(form.get("ceil_mode", 0)), counts)
    plain(form, ceil_mode=0)

    def mean(x: Tensor) -> Tensor:
        return F.avg_pool2d(F.pad(x, (left, right, top, bottom)), window, strides)

    return mean(x) if counts else mean(x) / mean(torch.ones_like(x[:1, :1]))


def _resize(
    x: Tensor, region: Tensor | None = None, scales: Numbers = None, sizes: Numbers = None, **form: Any
) -> Tensor:
    plain(form, antialias=0, exclude_outside=0, keep_aspect_ratio_policy="stretch", cubic_coeff_a=-0.75)
    mode, place = form.get("mode", "nearest"), form.get("coordinate_transformation_mode", "half_pixel")
    by, to = _numbers(scales) or (), _numbers(sizes) or ()
    known = ("asymmetric",) if mode == "nearest" else ("half_pixel", "pytorch_half_pixel")
    if place not in known or (mode == "nearest" and form.get("nearest_mode") != "floor"):
        raise Unsupported(f"mode={mode}, coordinate_transformation_mode={place}")
    if (
        "axes" in form
        or x.ndim != 4
        or len(by or to) != 4
        or list((by or to)[:2]) != ([1, 1] if by else [*x.shape[:2]])
    ):
        raise Unsupported("other axes than height and width")
    how: dict[str, Any] = {"mode": {"nearest": "nearest", "linear": "bilinear", "cubic": "bicubic"}[mode]}
    how |= {"scale_factor": by[2:], "recompute_scale_factor": False} if by else {"size": to[2:]}
    resized = F.interpolate(x, **how)
    expected = [int(np.float32(side) * np.float32(scale)) for side, scale in zip(x.shape[2:], by[2:], strict=bool(by))]
    if by and expected != [*resized.shape[2:]]:
        raise Unsupported("a size that is rounded otherwise in float32")
    if place == "pytorch_half_pixel" and 1 in resized.shape[2:]:  # PyTorch has it otherwise
        raise Unsupported("a side of one pixel")
    return resized


# -- layers ----------------------------------------------------------------------------------------------------------


def _gemm(x: Tensor, weight: Tensor, bias: Tensor | None = None, **form: Any) -> Tensor:
    x, weight = x.T if form.get("transA") else x, weight.T if form.get("transB") else weight
    alpha, beta = form.get("alpha", 1.0), form.get("beta", 1.0)
    return alpha * (x @ weight) if bias is None else torch.addmm(bias, x, weight, alpha=alpha, beta=beta)


def _batch_norm(x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, variance: Tensor, **form: Any) -> Tensor:
    plain(form, training_mode=0)
    return F.batch_norm(x, mean, variance, scale, bias, eps=form.get("epsilon", 1e-5))


def _layer_norm(x: Tensor, scale: Tensor, bias: Tensor | None = None, **form: Any) -> Tensor:
    rest = x.shape[form.get("axis", -1) % x.ndim :]
    return F.layer_norm(
        x, rest, scale.expand(rest), None if bias is None else bias.expand(rest), form.get("epsilon", 1e-5)
    )


def _selu(x: Tensor, *, alpha: float = 1.6732632, gamma: float = 1.050701) -> Tensor:
    return gamma * torch.where(x > 0, x, alpha * torch.expm1(x.clamp(max=0)))


def _dropout(x: Tensor, ratio: Numbers | float = None, training_mode: Tensor | None = None, **form: Any) -> Tensor:
    if training_mode is not None and training_mode.item():
        raise Unsupported("training_mode=1")
    return x


def _flattened(function: Callable[[Tensor, int], Tensor]) -> Operator:
    """``function`` over all axes from the first that is named, as it was before opset 13."""
    return lambda x, axis=1: function(_flatten(x, axis=axis), -1).reshape(x.shape)


# -- shapes ----------------------------------------------------------------------------------------------------------


def _pad(
    x: Tensor, pads: Numbers, value: Tensor | float | None = None, axes: Numbers = None, *, mode: str = "constant"
) -> Tensor:
    if mode not in ("constant", "reflect", "edge"):
        raise Unsupported(f"mode={mode}")
    along, amounts = _numbers(axes) or list(range(x.ndim)), _numbers(pads)
    before, after = amounts[: len(along)], amounts[len(along) :]
    by_axis = {axis % x.ndim: pair for axis, *pair in zip(along, before, after, strict=True)}
    flat = [amount for axis in reversed(range(x.ndim)) for amount in by_axis.get(axis, (0, 0))]
    if mode == "constant":
        return F.pad(x, flat, value=0.0 if value is None else float(value))
    if x.ndim != 4 or any(flat[4:]):
        raise Unsupported("other axes than height and width")
    return F.pad(x, flat[:4], mode="reflect" if mode == "reflect" else "replicate")


def _reshape(x: Tensor, shape: Numbers, *, allowzero: int = 0) -> Tensor:
    sizes = enumerate(_numbers(shape))
    return torch.reshape(x, [x.shape[i] if size == 0 and not allowzero else size for i, size in sizes])


def _flatten(x: Tensor, *, axis: int = 1) -> Tensor:
    return x.reshape(x.shape[:axis].numel(), -1)


def _squeeze(x: Tensor, axes: Numbers = None) -> Tensor:
    return x.squeeze() if axes is None else x.squeeze(tuple(_numbers(axes)))


def _unsqueeze(x: Tensor, axes: Numbers) -> Tensor:
    along = _numbers(axes)
    for axis in sorted(one % (x.ndim + len(along)) for one in along):
        x = x.unsqueeze(axis)
    return x


def _slice(x: Tensor, starts: Numbers, ends: Numbers, axes: Numbers = None, steps: Numbers = None) -> Tensor:
    low, high = _numbers(starts), _numbers(ends)
    along, strides = _numbers(axes) or list(range(len(low))), _numbers(steps) or [1] * len(low)
    for axis, first, last, step in zip(along, low, high, strides, strict=True):
        n = x.shape[axis]
        first, last = (side + n if side < 0 else side for side in (first, last))
        if step > 0:
            x = x[(slice(None),) * (axis % x.ndim) + (slice(max(first, 0), min(max(last, 0), n), step),)]
        else:
            picked = range(min(max(first, 0), n - 1), min(max(last, -1), n - 1), step)
            x = x.index_select(axis, torch.tensor(picked, dtype=torch.int64))
    return x


def _gather(x: Tensor, indices: Tensor, *, axis: int = 0) -> Tensor:
    axis %= x.ndim
    places = indices.long() % x.shape[axis]
    return x.index_select(axis, places.reshape(-1)).reshape([*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :]])


def _gather_nd(x: Tensor, indices: Tensor, **form: Any) -> Tensor:
    plain(form, batch_dims=0)
    return x[indices.unbind(-1)]


def _scatter_nd(x: Tensor, indices: Tensor, updates: Tensor, **form: Any) -> Tensor:
    plain(form, reduction="none")
    return x.index_put(indices.unbind(-1), updates)


def _split(x: Tensor, split: Numbers = None, *, part: int, parts: int, axis: int = 0, **form: Any) -> Tensor:
    """The output with the number ``part``, of ``parts``."""
    return x.split(_numbers(split) or -(-x.shape[axis] // parts), axis)[part]


def _transpose(x: Tensor, *, perm: Sequence[int] | None = None) -> Tensor:
    return x.permute(*(reversed(range(x.ndim)) if perm is None else perm))


def _cast(x: Tensor, *, to: int, **form: Any) -> Tensor:
    if to not in DTYPES:
        raise Unsupported(f"to={to}")
    return x.to(DTYPES[to])


def _filled(shape: Tensor, *, value: Any = None) -> Tensor:
    one = torch.zeros(1) if value is None else tensor(value)
    return one.reshape([]).expand(shape.tolist())


# -- numbers ---------------------------------------------------------------------------------------------------------


def _reduced(function: Callable[..., Tensor]) -> Operator:
    """``function`` over some axes, or all."""

    def reduce(x: Tensor, axes: Numbers = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0) -> Tensor:
        along = _numbers(axes)
        if not along and noop_with_empty_axes:
            return x
        return function(x, along or list(range(x.ndim)), keepdim=bool(keepdims))

    return reduce


def _clip(x: Tensor, min: Tensor | float | None = None, max: Tensor | float | None = None) -> Tensor:
    low, high = (None if one is None else torch.as_tensor(one, dtype=x.dtype) for one in (min, max))
    return x if low is None and high is None else x.clamp(low, high)


def _folded(function: Callable[[Tensor, Tensor], Tensor]) -> Operator:
    """``function`` of two, for any number of inputs."""

    def fold(x: Tensor, *more: Tensor) -> Tensor:
        for one in more:
            x = function(x, one)
        return x

    return fold


def _divide(x: Tensor, y: Tensor) -> Tensor:
    return x / y if x.is_floating_point() else torch.div(x, y, rounding_mode="trunc")


FLOAT: dict[str, Operator] = {
    "Conv": _conv,
    "MaxPool": _max_pool,
    "AveragePool": _average_pool,
    "GlobalAveragePool": lambda x: x.mean(list(range(2, x.ndim)), keepdim=True),
    "GlobalMaxPool": lambda x: x.amax(list(range(2, x.ndim)), keepdim=True),
    "Resize": _resize,
    "Gemm": _gemm,
    "MatMul": torch.matmul,
    "Einsum": lambda *factors, equation: torch.einsum(equation, *factors),
    "BatchNormalization": _batch_norm,
    "InstanceNormalization": lambda x, scale, bias, epsilon=1e-5: F.instance_norm(
        x, None, None, scale, bias, eps=epsilon
    ),
    "LayerNormalization": _layer_norm,
    "Softmax": lambda x, axis=-1: x.softmax(axis),
    "LogSoftmax": lambda x, axis=-1: x.log_softmax(axis),
    "Relu": torch.relu,
    "LeakyRelu": lambda x, alpha=0.01: F.leaky_relu(x, alpha),
    "PRelu": lambda x, slope: torch.where(x < 0, x * slope, x),
    "Elu": lambda x, alpha=1.0: F.elu(x, alpha),
    "Selu": _selu,
    "Gelu": lambda x, approximate="none": F.gelu(x, approximate=approximate),
    "Mish": F.mish,
    "Swish": lambda x, alpha=1.0: x * (alpha * x).sigmoid(),
    "HardSwish": F.hardswish,
    "HardSigmoid": lambda x, alpha=0.2, beta=0.5: (alpha * x + beta).clamp(0, 1),
    "Sigmoid": torch.sigmoid,
    "Tanh": torch.tanh,
    "Softplus": F.softplus,
    "Erf": torch.erf,
    "Clip": _clip,
    "Add": torch.add,
    "Sub": torch.sub,
    "Mul": torch.mul,
    "Div": _divide,
    "Mod": lambda x, y, fmod=0: torch.fmod(x, y) if fmod else torch.remainder(x, y),
    "Pow": lambda x, y: torch.pow(x, y).to(x.dtype),
    "Sum": _folded(torch.add),
    "Max": _folded(torch.maximum),
    "Min": _folded(torch.minimum),
    "Sqrt": torch.sqrt,
    "Exp": torch.exp,
    "Log": torch.log,
    "Neg": torch.neg,
    "Abs": torch.abs,
    "Reciprocal": torch.reciprocal,
    "Equal": torch.eq,
    "Not": torch.logical_not,
    "Where": torch.where,
    "ReduceMean": _reduced(torch.mean),
    "ReduceSum": _reduced(torch.sum),
    "ReduceMax": _reduced(torch.amax),
    "ReduceL2": _reduced(lambda x, axes, keepdim: torch.linalg.vector_norm(x, dim=axes, keepdim=keepdim)),
    "Pad": _pad,
    "Reshape": _reshape,
    "Flatten": _flatten,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Transpose": _transpose,
    "Concat": lambda *parts, axis: torch.cat(parts, axis),
    "Split": _split,
    "Slice": _slice,
    "Gather": _gather,
    "GatherND": _gather_nd,
    "ScatterND": _scatter_nd,
    "Expand": lambda x, shape: x.expand(torch.broadcast_shapes(x.shape, tuple(shape.tolist()))),
    "Shape": lambda x, start=0, end=None: torch.tensor(x.shape[start:end], dtype=torch.int64),
    "Range": lambda start, end, step: torch.arange(start.item(), end.item(), step.item(), dtype=start.dtype),
    "ConstantOfShape": _filled,
    "Cast": _cast,
    "Identity": lambda x: x,
    "Dropout": _dropout,
}
BEFORE_13: dict[str, Operator] = {
    "Softmax": _flattened(torch.softmax),
    "LogSoftmax": _flattened(torch.log_softmax),
}
