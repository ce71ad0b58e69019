"""Release a model: its measured results, per-image bits and weights go where users find them."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from zoo.evaluation.measure import Measurement
from zoo.registry.file import info, load_registry, write_model
from zoo.registry.schema import check_model
from zoo.specs import cost, parse_spec
from zoo.system.errors import UsageError
from zoo.system.files import write_atomic
from zoo.weights.load import BUNDLED, PREDICTOR, task_in

LICENSE = "Apache-2.0"


@dataclass(frozen=True)
class Candidate:
    """A model that could be released: its name, the weights file with its hash, and its entry so far."""

    name: str
    weights: Path
    sha256: str
    entry: dict[str, Any]


def candidate(name: str) -> Candidate:
    """The registry entry called ``name``, or the trained model in the folder of ``local-dir:PATH``.

    What the folder's config.json has under "reported" (``{protocol: {"value", "source"}}``, a paper's numbers) goes
    into the entry, also where the weights were released before.

    Raises:
        UnknownModel: the registry has no such name.
        UsageError: the folder is not one that training leaves, or a field of its config.json is malformed.
    """
    if not name.startswith("local-dir:"):
        entry = info(name)
        path = BUNDLED / entry.weights.file
        if not path.is_file():
            raise UsageError(
                f"the weights of '{name}' are not in this checkout: --write wants them in '{BUNDLED.name}/'"
            )
        return Candidate(name, path, entry.weights.sha256, entry.to_dict())
    folder = Path(name.removeprefix("local-dir:"))
    try:
        config = json.loads((folder / "config.json").read_text())
        weights = (folder / "model.safetensors").read_bytes()
        train = dict(config["train"])
        if "recipe_sha256" not in train:  # which a sub-net has from its dynamic net's entry
            settings = json.dumps(train.pop("settings"), sort_keys=True)
            train.pop("history")
            train["recipe_sha256"] = hashlib.sha256(settings.encode()).hexdigest()
        identity = {key: config[key] for key in ("family", "description", "paper", "spec")}
        called, task = str(config["name"]), task_in(config)
    except (OSError, KeyError, ValueError) as error:
        raise UsageError(f"'{folder}' is not a model folder that zoo train leaves: {error}") from None
    sha256 = hashlib.sha256(weights).hexdigest()
    macs, params = cost(parse_spec(identity["spec"]))
    entry_so_far = {
        **identity,
        "macs": macs,
        "params": params,
        **({"dataset": task.dataset} if task.dataset else {}),
        "threat": asdict(task.threat),
        "weights": {"file": f"{called}.safetensors", "size": len(weights), "sha256": sha256},
        "license": LICENSE,
        "train": train,
        "results": {},
        **{key: config[key] for key in ("supernet", "subnet") if key in config},
    }
    known = load_registry().models.get(called)
    if known is not None and known.weights.sha256 == sha256:  # measured before: more results for the same weights
        entry_so_far = known.to_dict()
    if "reported" in config:
        entry_so_far["reported"] = config["reported"]
    try:
        check_model(entry_so_far)
    except UsageError as error:
        raise UsageError(f"'{folder / 'config.json'}' makes no entry: {error}") from None
    return Candidate(called, folder / "model.safetensors", sha256, entry_so_far)


def release(model: Candidate, measurements: Iterable[Measurement]) -> None:
    """Add ``measurements`` to the entry of ``model`` in the registry; its weights and bits are copied into the package.

    The registry is written last: until then it knows nothing of the new files.

    Raises:
        IntegrityError: the registry would not be valid, and was left as it was.
    """
    measured = list(measurements)
    BUNDLED.mkdir(exist_ok=True)
    target = BUNDLED / model.entry["weights"]["file"]
    if target.resolve() != model.weights.resolve():
        _copy(model.weights, target)
        predictor = model.weights.with_name(PREDICTOR)
        if predictor.exists():
            _copy(predictor, target.with_name(f"{target.stem}.{PREDICTOR}"))
    _store_bits(BUNDLED / f"{model.name}.bits.npz", model.sha256, measured)
    model.entry["results"] |= {one.protocol.name: one.result for one in measured}
    flags = set(model.entry.get("flags", ())) | {"unreliable" for one in measured if one.unreliable}
    model.entry["flags"] = sorted(flags)
    splits = {one.protocol.split: one for one in measured}
    datasets = {
        one.protocol.dataset: {"splits": {split: {"n": one.split_size, "sha256": one.result["dataset_sha256"]}}}
        for split, one in splits.items()
    }
    before = load_registry().models
    known = before.get(model.name)
    if known is not None and known.weights.sha256 == model.sha256:  # timed, perhaps, since the evaluation began
        model.entry["latency"] = known.to_dict()["latency"]
    write_model(model.name, model.entry, datasets=datasets, protocols=[one.protocol for one in measured])
    for gone in before.keys() - load_registry().models.keys():  # sub-nets of the weights that these replace
        for file in (before[gone].weights.file, f"{gone}.bits.npz"):
            (BUNDLED / file).unlink(missing_ok=True)


def _copy(source: Path, target: Path) -> None:
    """Whole or not at all."""
    scratch = target.with_suffix(".tmp")
    shutil.copyfile(source, scratch)
    scratch.replace(target)


def _store_bits(path: Path, weights_sha256: str, measured: list[Measurement]) -> None:
    """Packed bits [n / 8] by protocol, with n beside them; those of other weights are dropped."""
    arrays: dict[str, Any] = {}
    if path.exists():
        with np.load(path) as stored:
            if str(stored["weights_sha256"]) == weights_sha256:
                arrays = dict(stored)
    arrays["weights_sha256"] = np.array(weights_sha256)
    for one in measured:
        arrays[one.protocol.name] = np.packbits(one.bits)
        arrays[f"{one.protocol.name}.n"] = np.array(len(one.bits))
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    write_atomic(path, buffer.getvalue())


def stored_bits(name: str) -> dict[str, np.ndarray]:
    """The per-image bits, bool [n] by protocol, of the released model ``name``: right under that attack or not.

    Raises:
        UnknownModel: the registry has no such name.
        UsageError: no bits are stored for the entry's weights.
    """
    entry, path = info(name), BUNDLED / f"{name}.bits.npz"
    if path.exists():
        with np.load(path) as stored:
            if str(stored["weights_sha256"]) == entry.weights.sha256:
                return {
                    key: np.unpackbits(stored[key], count=int(stored[f"{key}.n"])).astype(bool)
                    for key in entry.results
                    if key in stored
                }
    raise UsageError(f"no per-image bits are stored for '{name}': measure it with `zoo eval {name} --write`")
