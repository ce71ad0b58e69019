"""Files of weights: only safetensors are opened, and they are checked before they are parsed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from zoo.system.errors import IntegrityError
from zoo.system.files import check_sha256, write_atomic

if TYPE_CHECKING:
    from torch import Tensor

    from zoo.models import Classifier
    from zoo.specs import Spec

HEADER_LIMIT = 1_000_000  # bytes of a safetensors header; that of a net of 100 layers has some 50,000
_PICKLE = (b"\x80", b"PK\x03\x04")  # a bare pickle of protocol 2 or later; the zip of torch.save


def check_file(path: Path, *, size: int, sha256: str) -> None:
    """Raise IntegrityError unless ``path`` is the safetensors file of this size in bytes and this SHA-256."""
    _refuse_pickle(path)
    actual = path.stat().st_size
    if actual != size:
        raise IntegrityError(f"'{path}' has {actual:,} bytes, but {size:,} are expected: fetch or install it again")
    check_sha256(path, sha256)


def check_header(path: Path) -> None:
    """Raise IntegrityError if ``path`` is a pickle, or claims a header of a length that no file of ours has.

    The safetensors library checks the rest of a header, and takes memory in proportion to it.
    """
    _refuse_pickle(path)
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
    if length > min(HEADER_LIMIT, path.stat().st_size):
        raise IntegrityError(f"'{path}' is not a complete safetensors file: it claims a header of {length:,} bytes")


def _refuse_pickle(path: Path) -> None:
    with open(path, "rb") as file:
        start = file.read(9)
    if start.startswith(_PICKLE) and start[8:] != b"{":  # safetensors: the header's length in 8 bytes, then its JSON
        raise IntegrityError(
            f"'{path}' is a pickle, not safetensors: it was not opened, because unpickling runs any code that it holds"
        )


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, on the CPU; half precision becomes float32.

    Raises:
        IntegrityError: the file is not safetensors, is incomplete, or holds values that are not finite.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    check_header(path)
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise IntegrityError(f"'{path}' is not a complete safetensors file: {error}") from None
    return checked(tensors, path)


def checked(tensors: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """The tensors of the file ``path``, those of floats in float32.

    Raises:
        IntegrityError: values are not finite in float32, or a tensor is not a dense one of integers or of floats of 16
            bits or more.
    """
    import torch

    floats = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
    plain = (*floats, torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
    read = {}
    for key, value in tensors.items():
        dense = value.layout == torch.strided and value.device.type == "cpu" and value.dtype in plain
        if not dense or value.untyped_storage().nbytes() < value.numel() * value.element_size():
            raise IntegrityError(
                f"'{path}' does not hold all values of '{key}' as plain numbers ({value.dtype}): "
                "save it as a dense tensor of float32 or float16"
            )
        read[key] = value.float() if value.dtype in floats else value
        if not torch.isfinite(read[key]).all():
            raise IntegrityError(f"'{path}' holds values in '{key}' that are not finite in float32")
    return read


def read_metadata(path: Path) -> dict[str, str]:
    """The metadata of a safetensors file."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        return dict(file.metadata() or {})


def read_model(path: Path, spec: Spec) -> Classifier:
    """The model of ``spec`` with the weights in the safetensors file ``path``, in eval mode.

    Raises:
        IntegrityError: as :func:`read_tensors`, or the weights do not fit the architecture.
    """
    from zoo.models import build

    model = build(spec)
    fill(model, read_tensors(path), path)
    return model.eval()


def fill(model: Classifier, tensors: Mapping[str, Tensor], path: Path, names: Mapping[str, str] | None = None) -> None:
    """Copy ``tensors`` into ``model``; ``names`` are those that they have in the file ``path``, if they are others.

    Raises:
        IntegrityError: names or shapes differ from the model's, integers stand for floats, or a variance is negative.
    """
    expected, names = model.state_dict(), names or {}
    for fault, keys in (("lacks", expected.keys() - tensors.keys()), ("has", tensors.keys() - expected.keys())):
        if keys:
            first, *more = sorted(names.get(key, key) for key in keys)
            named = f"'{first}'" + (f" and {len(more)} more" if more else "")
            beyond = ", which the architecture lacks" if fault == "has" else ""
            raise IntegrityError(f"the weights do not fit the architecture: '{path}' {fault} {named}{beyond}")
    for key, value in expected.items():
        if tensors[key].shape != value.shape:
            raise IntegrityError(
                f"the weights do not fit the architecture: '{names.get(key, key)}' in '{path}' has shape "
                f"{list(tensors[key].shape)}, not {list(value.shape)}"
            )
        if value.is_floating_point() and not tensors[key].is_floating_point():
            raise IntegrityError(f"'{path}' holds integers in '{names.get(key, key)}', where weights are floats")
        if key.endswith("running_var") and (tensors[key] < 0).any():
            raise IntegrityError(f"'{path}' holds a negative variance in '{names.get(key, key)}'")
    model.load_state_dict(dict(tensors))


def check_count(tensors: Mapping[str, Tensor], spec: Spec, path: Path) -> None:
    """Raise IntegrityError if the net of ``spec`` is much larger than the file ``path``, whose ``tensors`` these are: a
    slip in the spec, such as in its classes, whose net may not fit into memory."""
    from zoo.specs import cost

    held, wanted = sum(tensor.numel() for tensor in tensors.values()), cost(spec).params
    if wanted > 100 * held:
        raise IntegrityError(f"'{path}' holds {held:,} values, and this architecture has {wanted:,} weights")


def save_weights(state_dict: Mapping[str, Tensor], path: Path, **metadata: str) -> None:
    """Write tensors and metadata as a safetensors file, atomically.

    Raises:
        OSError: the folder cannot be written, or the disk is full.
    """
    from safetensors.torch import save

    tensors = {key: value.detach().cpu().contiguous() for key, value in state_dict.items()}
    write_atomic(path, save(tensors, metadata={"format": "pt", **metadata}))
