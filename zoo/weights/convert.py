"""Checkpoints from elsewhere: other names of the same tensors. Nothing that a pickle holds is run.

The layouts: torchvision's ResNets (``downsample``, ``fc``), those of RobustBench and many CIFAR repositories
(``shortcut``, ``linear``), VGG with one linear layer (``classifier``), the WideResNets of TRADES and RobustBench
(``block1.layer.0.conv1``). In these layouts the names and shapes decide what the net computes.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.specs import Spec, WideResNetSpec
from zoo.system.errors import IntegrityError, UsageError, nearest
from zoo.system.files import kind_of
from zoo.weights.folder import SUFFIX
from zoo.weights.tensors import check_count, checked, fill, read_tensors

if TYPE_CHECKING:
    from torch import Tensor

NESTS = ("state_dict", "model_state_dict", "net", "model")  # keys of a checkpoint that may hold the state dict
WRAPPERS = re.compile(r"^((module|model)\.)+")  # prefixes that DataParallel and normalising wrappers add
UNUSED = re.compile(r"^sub_block1\.")  # TRADES' WideResNet has these blocks and never calls them
NORMALISER = re.compile(r"^(?:normali[sz](?:er?|ation)\.)?(mean|mu|std|sigma)$")  # of RobustBench's nets
COUNTER = "num_batches_tracked"  # of BatchNorm; PyTorch before 0.4.1 stored none

RULES = {  # of a family: patterns in their names, and our names
    "resnet": ((r"^(fc|linear)\.", "head."), (r"\.shortcut\.", ".downsample."), (r"^(?!head\.)", "features.")),
    "vgg": ((r"^features\.", "features.0."), (r"^classifier\.(?=weight|bias)", "head.")),
}


def convert(path: Path, spec: Spec) -> dict[str, Tensor]:
    """The weights of ``build(spec)`` in the checkpoint ``path``, float32.

    Args:
        path: a safetensors file, or a pickle of a state dict, of which ``torch.load(weights_only=True)`` reads tensors
            and plain containers only. The state dict may be under "state_dict", "model_state_dict", "net" or "model".

    Raises:
        UsageError: no layout of this architecture is known.
        IntegrityError: the file is damaged or is not one of tensors alone, or names or shapes do not fit ``spec``; the
            sentence says which first.
    """
    import torch

    from zoo.models import build

    theirs = read_checkpoint(path)
    bare = {name: WRAPPERS.sub("", name) for name in theirs}
    _check_normalisation({plain: theirs[name] for name, plain in bare.items()}, spec, path)
    unused = {name for name, plain in bare.items() if UNUSED.match(plain) or NORMALISER.match(plain)}
    used = {name: _ours(plain, spec) for name, plain in bare.items() if name not in unused}
    names = {ours: name for name, ours in used.items()}
    if len(names) < len(used):
        raise IntegrityError(
            f"'{path}' holds names with and without a prefix, or in two layouts: keep those of one net"
        )
    tensors = {ours: theirs[name] for ours, name in names.items()}
    check_count(tensors, spec, path)
    model = build(spec)
    for name, tensor in model.state_dict().items():
        if name.endswith(COUNTER):
            tensors.setdefault(name, torch.zeros_like(tensor))
    fill(model, tensors, path, names)
    return model.state_dict()


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """The state dict in the file ``path``, in float32. Errors are those of :func:`convert`."""
    import torch
    from torch import Tensor

    if kind := kind_of(path):
        raise IntegrityError(f"'{path}' is {kind}, not a checkpoint")
    if not path.is_file():
        raise UsageError(f"there is no file '{path}'")
    if path.suffix == SUFFIX:
        return read_tensors(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what torch thinks of old formats
            found: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # a damaged file raises anything: AssertionError, TypeError, struct.error
        raise IntegrityError(
            f"'{path}' is not a whole pickle of tensors, and nothing else is unpickled, because that runs any code in "
            "it: save the model's state_dict() alone"
        ) from None
    for nest in NESTS:
        if isinstance(found, Mapping) and isinstance(found.get(nest), Mapping):
            found = found[nest]
    if not isinstance(found, Mapping) or not found or not all(isinstance(value, Tensor) for value in found.values()):
        raise IntegrityError(
            f"'{path}' holds no state dict: it must hold tensors by name, at its top or under {', '.join(NESTS)}"
        )
    return checked({str(name): tensor for name, tensor in found.items()}, path)


def _check_normalisation(tensors: Mapping[str, Tensor], spec: Spec, path: Path) -> None:
    """Raise IntegrityError if the checkpoint holds a mean and a std, and not those of ``spec``."""
    stored = {"mean": spec.mean, "std": spec.std}
    for name, tensor in tensors.items():
        if found := NORMALISER.match(name):
            stored["mean" if found[1] in ("mean", "mu") else "std"] = tuple(tensor.flatten().tolist())
    rounded = {key: [round(value, 4) for value in values] for key, values in stored.items()}
    if rounded != {key: [round(value, 4) for value in getattr(spec, key)] for key in stored}:
        given = " ".join(f'--set "{key}={values}"' for key, values in rounded.items())
        raise IntegrityError(f"'{path}' normalises images in another way: give {given} in place of --normalise")


def check_layout(arch: str) -> str:
    """``arch``; UsageError if no layout of checkpoints of this family is known."""
    known = [*RULES, "wideresnet"]
    if arch not in known:
        raise UsageError(
            f"no layout of checkpoints is known for '{arch}'{nearest(arch, known)} (known: {', '.join(known)})"
        )
    return arch


def _ours(name: str, spec: Spec) -> str:
    """The name in ``build(spec)`` of the tensor that a checkpoint calls ``name``; another one if there is none."""
    if isinstance(spec, WideResNetSpec):
        return _of_wideresnet(name, spec)
    for pattern, replacement in RULES[check_layout(str(getattr(spec, "arch", None)))]:
        name = re.sub(pattern, replacement, name)
    return name


def _of_wideresnet(name: str, spec: WideResNetSpec) -> str:
    blocks = spec.blocks_per_stage
    block = re.match(r"block([123])\.layer\.(\d+)\.(.+)", name)
    if block and int(block[2]) < blocks:
        place = 1 + (int(block[1]) - 1) * blocks + int(block[2])
        return f"features.{place}.{block[3].replace('convShortcut.', 'shortcut.')}"
    name = re.sub(r"^conv1\.", "features.0.", name)
    name = re.sub(r"^bn1\.", f"features.{1 + 3 * blocks}.", name)
    return re.sub(r"^fc\.", "head.", name)
