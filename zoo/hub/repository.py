"""What a repository of the Hub holds for one registry entry, written into a folder."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from zoo.datasets import DATASETS
from zoo.export.bundle.source import without_folders
from zoo.export.exporter import export_model
from zoo.export.ladder.climb import Progress, silent
from zoo.export.onnx.graph import GRAPH
from zoo.hub.card import PLOT, Facts, Files, eval_records, model_card
from zoo.registry.entry import Entry
from zoo.specs import parse_spec
from zoo.system.errors import Unreachable, UsageError
from zoo.system.files import copy_atomic, sha256_file
from zoo.weights.folder import PREDICTOR, TENSORS, ModelConfig, ModelFolder
from zoo.weights.load import Found
from zoo.weights.tensors import check_file, save_weights

SUBNET = "subnet.safetensors"  # the released file of a sub-net, which needs its dynamic net; model.safetensors does not
ONNX, CARD = f"onnx/{GRAPH}", "README.md"
NAME = "{name}"  # stands for the entry's name in --repo-id


@dataclass(frozen=True)
class Content:
    """The files of a repository in ``folder``.

    Attributes:
        entry: the registry entry, in the repository ``repo_id``.
        weights: the name of the file that the registry refers to: the released one, byte for byte.
        card: the text of the model card.
    """

    entry: Entry
    repo_id: str
    folder: Path
    weights: str
    card: str

    def files(self) -> dict[str, Path]:
        """Every file by its name in the repository, sorted."""
        found = (path for path in self.folder.rglob("*") if path.is_file())
        return dict(sorted((path.relative_to(self.folder).as_posix(), path) for path in found))

    def listing(self) -> list[dict[str, Any]]:
        """Name, size in bytes and SHA-256 of every file."""
        return [
            {"path": name, "size": path.stat().st_size, "sha256": sha256_file(path)}
            for name, path in self.files().items()
        ]


def repository_id(pattern: str, entry: Entry) -> str:
    """``pattern`` with the entry's name for ``{name}``; '@' is a hyphen there, because the Hub does not allow it.

    Raises:
        UsageError: the Hub would refuse the name.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    repo_id = pattern.replace(NAME, entry.name.replace("@", "-"))
    try:
        validate_repo_id(repo_id)
        if repo_id.count("/") == 1:
            return repo_id
    except HFValidationError:
        pass
    raise UsageError(
        f"'{repo_id}' is not a Hub repository: --repo-id takes ORGANISATION/NAME of letters, digits, '-', '_' and '.', "
        f"where {NAME} stands for the model's name"
    )


def write_repository(
    found: Found, facts: Facts, folder: Path, *, notify: Callable[[str], None], progress: Progress = silent
) -> Content:
    """Write all files of the entry's repository into ``folder``, which is empty or missing.

    A sub-net is written complete, cut out of its dynamic net, so that whoever has the repository alone can load it. Its
    released file goes beside it: that one is in the registry, and its measurements name its hash.

    Raises:
        ParityGateFailed: the ONNX graph does not agree with the model.
        ExportFailed, IntegrityError, Unreachable: the model could not be converted, or its weights are not here.
    """
    entry = facts.entry
    assert found.path is not None
    place = ModelFolder(folder)
    place.write(_config(entry))
    name = SUBNET if entry.subnet else TENSORS
    copy_atomic(found.path, folder / name)
    check_file(folder / name, size=entry.weights.size, sha256=entry.weights.sha256)
    if entry.subnet:
        save_weights(found.load().state_dict(), place.weights)
    if entry.supernet:
        try:
            predictor = found.companion(PREDICTOR)
        except Unreachable as error:  # not every dynamic net has one
            predictor = None
            notify(f"{facts.repo_id} gets no predictor: {error}")
        if predictor:
            copy_atomic(predictor, place.predictor)
    graph = _graph(entry, folder, notify, progress)
    weights = {"file": TENSORS, "size": place.weights.stat().st_size, "sha256": sha256_file(place.weights)}
    card = str(model_card(facts, Files(weights=weights, cut=SUBNET if entry.subnet else None, **graph)))
    for file, text in {CARD: card, PLOT: facts.plot, **eval_records(facts)}.items():
        (folder / file).parent.mkdir(exist_ok=True)
        (folder / file).write_text(text, encoding="utf-8", newline="\n")
    return Content(entry, facts.repo_id, folder, name, card)


def _config(entry: Entry) -> ModelConfig:
    """The facts of the entry without folders of this machine, which a recipe may name."""
    known = DATASETS[entry.dataset].classes if entry.dataset in DATASETS else ()
    kept = ("name", "family", "description", "paper", "spec", "dataset", "threat", "supernet")
    return ModelConfig(
        **{key: getattr(entry, key) for key in kept},
        classes=known if len(known) == parse_spec(entry.spec).classes else None,
        reported={name: asdict(number) for name, number in entry.reported.items()} or None,
        train=_public(asdict(entry.train)),
    )


def _public(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _public(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_public(one) for one in value]
    return without_folders(value) if isinstance(value, str) else value


def _graph(entry: Entry, folder: Path, notify: Callable[[str], None], progress: Progress) -> dict[str, Any]:
    """Write the ONNX graph by an export up to parity; returns what the card says of it."""
    scratch = folder.with_name(f"{folder.name}.export")
    try:
        order: dict[str, Any] = {"format": "onnx", "verify": "parity", "offline": True}
        manifest = (bundle := export_model(entry.name, out=scratch, notify=notify, progress=progress, **order)).manifest
        (folder / ONNX).parent.mkdir()
        copy_atomic(bundle.folder / GRAPH, folder / ONNX)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    (parity,) = (gate for gate in manifest.gates if gate.name == "parity")
    batches = ", ".join(map(str, parity.measured["batches"]))
    check = (
        f"On ONNX Runtime its logits differ from the float model's by at most {parity.threshold['tolerance']:g} of "
        f"their spread, on {parity.n} images at batch sizes {batches}"
    )
    return {"graph": ONNX, "opset": manifest.artifact.opset, "check": check}
