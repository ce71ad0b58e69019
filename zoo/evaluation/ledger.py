"""The ledger of an unfinished evaluation: a file with the batches that are done, from which the next run goes on.

The file's name has a key of everything that decides the bits. Weights are not enough: other code can make another net
of them, and mask its gradients. So the key has what the model *is* (modules, tensors, answers and input gradients on
some of the images), what is done to it (protocol, batch size, images, labels, the source of attacks and evaluation),
and with what (device, versions). Answers may differ between devices and numbers of threads in the last bit; then the
evaluation begins again, which costs time only. A run with fewer images has a key and a file of its own.
"""

from __future__ import annotations

import hashlib
import json
import re
from contextlib import suppress
from functools import cache
from pathlib import Path
from threading import Lock

import numpy as np
import torch
from torch import Tensor, nn

import zoo.attacks
from zoo.datasets.base import to_float
from zoo.evaluation.exact import exact
from zoo.evaluation.protocols import Protocol
from zoo.system.files import locked, write_atomic
from zoo.system.notice import say_once
from zoo.version import __version__

Counts = dict[str, float]
Batches = dict[str, tuple[list[int], Counts]]  # by attack and first image: bits, what was counted
PROBE = 16  # images
_TURN = Lock()  # the switches of cuDNN are the whole program's


def run_key(
    model: nn.Module, images: np.ndarray, labels: np.ndarray, protocol: Protocol, batch_size: int, device: str
) -> str:
    """The key of an evaluation, in hexadecimal.

    Args:
        model: ready to be attacked, on ``device``.
        images: uint8 [N, H, W, 3]; labels: int64 [N].
    """
    modules = re.sub(r" at 0x[0-9a-f]+", "", repr(model))  # addresses differ from run to run
    facts = [protocol.model_dump(), batch_size, device, torch.__version__, __version__, _sources(), modules]
    digest = hashlib.sha256(json.dumps(facts).encode())
    hash_tensors(digest, model)
    for tensor in _answers(model, to_float(images[:PROBE]).to(device)):
        digest.update(_bytes(tensor))
    digest.update(np.ascontiguousarray(images).data)
    digest.update(np.ascontiguousarray(labels).data)
    return digest.hexdigest()


def hash_tensors(digest: hashlib._Hash, model: nn.Module) -> int:
    """Add the parameters and buffers of ``model`` to ``digest``, also those that are not saved; how many there are."""
    tensors = [*model.named_parameters(), *model.named_buffers()]
    for name, tensor in tensors:
        digest.update(name.encode())
        digest.update(_bytes(tensor))
    return len(tensors)


def _answers(model: nn.Module, x: Tensor) -> tuple[Tensor, ...]:
    """The logits on ``x`` [n, 3, H, W], and the gradients of the largest ones where there are any."""
    x.requires_grad_()
    with exact(), _TURN, torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
        logits = model(x.clone())  # the model may write to it
        if not logits.requires_grad:
            return (logits,)
        (gradient,) = torch.autograd.grad(logits.amax(1).sum(), x, allow_unused=True)
    return (logits,) if gradient is None else (logits, gradient)


def _bytes(tensor: Tensor) -> bytes:
    dense = tensor.detach().cpu() if tensor.layout is torch.strided else tensor.detach().cpu().to_dense()
    return dense.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


@cache
def _sources() -> str:
    """The hash of the source of attacks and evaluation."""
    digest = hashlib.sha256()
    for folder in (Path(zoo.attacks.__file__).parent, Path(__file__).parent):
        for path in sorted(folder.glob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()


class Ledger:
    """The finished batches of an evaluation, stored in ``path`` after each one (None: not stored).

    Processes that do the same evaluation at once share the file. If it cannot be written, the evaluation goes on
    without it; if it is damaged, the evaluation begins again. Each is reported once.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.batches: Batches = {}
        self._merge()

    def known(self, attack: str, index: np.ndarray) -> np.ndarray | None:
        """The bits after ``attack`` on the images ``index`` [B], bool [B]; None if this batch is not done."""
        bits, _ = self.batches.get(f"{attack} {index[0]}", ([], {}))
        return np.array(bits, bool) if len(bits) == len(index) else None

    def add(self, *batches: Batches) -> None:
        """Add the finished ``batches`` of other processes."""
        for others in batches:
            self.batches |= others

    def record(self, attack: str, index: np.ndarray, bits: np.ndarray, counts: Counts) -> None:
        """Add the ``bits`` [B] after ``attack`` on the images ``index`` [B], and the ``counts`` of this batch."""
        self.batches[f"{attack} {index[0]}"] = (bits.astype(int).tolist(), counts)
        if self.path is None:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with locked(self.path.parent):
                self._merge()
                write_atomic(self.path, json.dumps(self.batches))
        except OSError as error:
            say_once(
                f"the progress cannot be stored in '{self.path.parent}' ({error.strerror or error}): "
                "the evaluation goes on, but cannot be resumed"
            )
            self.path = None

    @property
    def counts(self) -> Counts:
        """The sums over all batches, such as the images that each part of a composed attack broke."""
        total: Counts = {}
        for _, counts in self.batches.values():
            for part, count in counts.items():
                total[part] = total.get(part, 0) + count
        return total

    def remove(self) -> None:
        """Remove the file, as the evaluation is done."""
        if self.path is not None:
            with suppress(OSError):
                self.path.unlink(missing_ok=True)

    def _merge(self) -> None:
        """Add the batches in the file."""
        if self.path is None:
            return
        try:
            stored = json.loads(self.path.read_bytes())
            stored = {
                first: ([int(bit) for bit in bits], {part: float(count) for part, count in counts.items()})
                for first, (bits, counts) in stored.items()
            }
        except (FileNotFoundError, NotADirectoryError):
            return
        except (OSError, ValueError, TypeError, AttributeError) as error:
            say_once(
                f"the progress in '{self.path}' cannot be read ({type(error).__name__}): the evaluation begins again"
            )
            return
        self.batches = stored | self.batches
