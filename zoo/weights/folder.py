"""A model folder: ``config.json`` and ``model.safetensors``, as training writes them and the Hub stores them."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from zoo.evaluation.threat import ThreatModel
from zoo.registry.entry import Subnet
from zoo.system.errors import IntegrityError, Unreachable, UsageError
from zoo.system.files import check_folder, kind_of, read_utf8, write_atomic
from zoo.system.records import Line, Text

if TYPE_CHECKING:
    from pydantic import TypeAdapter

CONFIG, TENSORS = "config.json", "model.safetensors"
SUFFIX = ".safetensors"
PREDICTOR = "predictor.safetensors"  # beside the weights of a dynamic net; in the package with their name as a prefix
LABELS = "labels.json"  # the training data of the predictor
HELD_OUT = "held_out.json"  # the model's accuracy on held-out training images
CONFIG_LIMIT = 4_000_000  # bytes of a config.json that is read; training writes some thousand


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The content of ``config.json``. Loading needs only ``spec``; unknown fields are ignored.

    A registry entry is made from ``reported`` (``{protocol: {"value", "source"}}``, a paper's numbers) and ``train``,
    which are validated at that time.
    """

    __pydantic_config__: ClassVar[Any] = {"extra": "ignore", "strict": True}

    name: Line | None = None
    family: Text | None = None
    description: str | None = None
    paper: str | None = None
    spec: dict[str, Any]
    dataset: Text | None = None
    threat: ThreatModel | None = None
    classes: tuple[Line, ...] | None = None  # names, in the order of the logits
    reported: Any = None
    train: dict[str, Any] | None = None
    tutors: dict[str, str] | None = None  # of a student: the teacher's convolution for each of the student's
    supernet: Text | None = None  # of a dynamic net: the space of its sub-nets
    subnet: Subnet | None = None


@cache
def _adapter() -> TypeAdapter[ModelConfig]:
    from pydantic import TypeAdapter

    return TypeAdapter(ModelConfig)


def read_config(path: Path) -> ModelConfig:
    """Read and validate the ``config.json`` at ``path``.

    Raises:
        IntegrityError: it is not JSON, is too large, has no architecture, or a field is malformed, which the message
            names.
    """
    from pydantic import ValidationError

    try:
        return _adapter().validate_json(read_utf8(path, limit=CONFIG_LIMIT))
    except ValidationError as error:
        first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    if first["type"] == "json_invalid":
        raise IntegrityError(f"'{path}' is not JSON: {first['msg']}")
    if where in ("", "spec"):
        raise IntegrityError(f"'{path}' has no architecture: a model's {CONFIG} needs an object under 'spec'")
    raise IntegrityError(f"'{path}' is wrong at '{where}': {first['msg']}")


def read_beside(weights: Path) -> ModelConfig:
    """The config of a weights file that is in no model folder: ``NAME.json`` beside ``NAME.safetensors``.

    Raises:
        Unreachable: one of the two files is missing.
        IntegrityError: as :func:`read_config`.
    """
    config = weights.with_suffix(".json")
    for path in (weights, config):
        if kind := kind_of(path):
            raise Unreachable(f"'{path}' is {kind}, not a file")
    if not weights.is_file():
        raise Unreachable(f"there is no file '{weights}'")
    if not config.is_file():
        raise Unreachable(
            f"'{weights}' has no architecture: write it to '{config}', such as "
            '{"spec": {"arch": "resnet", "depth": 18}}, or make a model folder with `zoo convert`'
        )
    return read_config(config)


class ModelFolder:
    """The folder of a model at ``path``, and the files in it."""

    def __init__(self, path: Path) -> None:
        self.path, self.config, self.weights = path, path / CONFIG, path / TENSORS
        self.predictor, self.labels, self.held_out = path / PREDICTOR, path / LABELS, path / HELD_OUT

    def read(self) -> ModelConfig:
        """Its config.json; see :func:`read_config`, whose IntegrityError it raises too.

        Raises:
            Unreachable: there is no such folder or file.
        """
        return read_config(self.file(CONFIG))

    def write(self, config: ModelConfig) -> None:
        """Write ``config`` to its config.json atomically; the folder is created if it is missing."""
        self.path.mkdir(parents=True, exist_ok=True)
        given = {key: value for key, value in asdict(config).items() if value is not None}
        write_atomic(self.config, json.dumps(given, indent=2) + "\n")

    def file(self, name: str) -> Path:
        """The path of the file ``name``.

        Raises:
            Unreachable: there is no such folder or file.
        """
        if self.path.is_file():
            raise Unreachable(
                f"'{self.path}' is a file, not a model folder: make one from a checkpoint with `zoo convert`"
            )
        if not self.path.is_dir():
            raise Unreachable(f"there is no folder '{self.path}'")
        if kind := kind_of(self.path / name):
            raise Unreachable(f"'{self.path / name}' is {kind}, not a file: a model folder has {CONFIG} and {TENSORS}")
        if not (self.path / name).is_file():
            raise Unreachable(f"'{self.path}' holds no {name}: a model folder has {CONFIG} and {TENSORS}")
        return self.path / name

    def check_free(self) -> None:
        """Raise UsageError if the folder already holds a model, or is a file."""
        check_folder(self.path)
        if self.config.exists() or self.weights.exists():
            raise UsageError(f"'{self.path}' already holds a model: choose another folder")
