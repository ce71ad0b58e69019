"""Release a model: write its results into the registry, and its weights and per-image bits beside it.

Those of the released registry are in the package; a registry of one's own has them in its folder.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import BadZipFile

import numpy as np

from zoo.evaluation.flags import disagree
from zoo.evaluation.protocols import Protocol
from zoo.registry.entry import UNKNOWN, Entry
from zoo.registry.file import info, load_registry
from zoo.registry.schema import check_model
from zoo.registry.write import check_splits, make_registry, write_model
from zoo.specs import cost
from zoo.system.errors import IntegrityError, UsageError
from zoo.system.files import copy_atomic, locked, sha256_file, write_atomic
from zoo.weights.address import LOCAL
from zoo.weights.folder import CONFIG, PREDICTOR
from zoo.weights.load import BUNDLED, Found, beside, home

if TYPE_CHECKING:
    from zoo.datasets.base import Dataset
    from zoo.evaluation.measure import Measurement

LICENSE = "Apache-2.0"  # of the released models; under what others stand is for their owners to say


@dataclass(frozen=True)
class Candidate:
    """A model to release: its name, the weights file with its hash, and its entry so far.

    ``outdated`` has its results on images that have changed, by protocol with the hash of those: they are removed.
    """

    name: str
    weights: Path
    sha256: str
    entry: dict[str, Any]
    outdated: Mapping[str, str] = field(default_factory=dict)


def candidate(found: Found, *, replace: bool = False) -> Candidate:
    """The candidate of a registry entry, or of the trained model in a folder.

    "reported" in the folder's config.json goes into the entry, even if the weights were released before.

    Args:
        replace: it may take the place of other weights with its name, whose results are removed.

    Raises:
        UsageError: the folder was not written by training, a field of its config.json is malformed, its name is an
            alias of another model or belongs to other weights that must not be replaced, or the weights would
            overwrite a file that is not the registry's.
        IntegrityError: the stored per-image bits are damaged.
    """
    facts, path, sha256 = found.facts, found.path, found.sha256
    assert path is not None
    if isinstance(facts, Entry):
        if path != beside(facts.weights.file):
            raise UsageError(
                f"the weights of '{facts.name}' are not beside its registry: --write needs them in '{home().name}/'"
            )
        return _checked(Candidate(facts.name, path, sha256, facts.to_dict()))
    if found.address.scheme != LOCAL:
        raise UsageError(f"only a registry model or a model folder can be released: download '{found.address}' first")
    where = path.with_name(CONFIG)
    missing = [key for key in ("name", "family", "description", "train") if getattr(facts, key) is None]
    train = dict(facts.train or {})
    if "recipe_sha256" not in train:  # a sub-net has it from its dynamic net's entry
        missing += [f"train.{key}" for key in ("settings", "history") if key not in train]
        settings = json.dumps(train.get("settings"), sort_keys=True)
        train.pop("history", None)
        train["recipe_sha256"] = hashlib.sha256(settings.encode()).hexdigest()
    if missing or facts.name is None:
        raise UsageError(f"'{path.parent}' was not written by zoo train: {CONFIG} has no '{missing[0]}'")
    make_registry()
    named = load_registry().named.get(facts.name)
    if named is not None and named.name != facts.name:
        raise UsageError(f"'{facts.name}' is an alias of '{named.name}': give the model in '{where}' another name")
    if named is not None and named.weights.sha256 != sha256 and not replace:
        raise UsageError(
            f"the registry has other weights called '{facts.name}', whose results would be lost: give the model "
            f"another name in '{where}', or add --replace (replace=True)"
        )
    target = home() / f"{facts.name}.safetensors"
    if named is None and target.resolve() != path.resolve() and (foreign := _foreign(target, sha256)):
        raise UsageError(
            f"'{foreign}' is no file of this registry, and would be overwritten: move it, or give the model another "
            f"name in '{where}'"
        )
    macs, params = cost(found.spec)
    entry_so_far = {
        **{key: getattr(facts, key) for key in ("family", "description", "paper", "spec")},
        "aliases": list(named.aliases) if named else [],
        "macs": macs,
        "params": params,
        **({"dataset": found.task.dataset} if found.task.dataset else {}),
        "threat": asdict(found.task.threat),
        "weights": {"file": target.name, "size": path.stat().st_size, "sha256": sha256},
        "license": LICENSE if home() == BUNDLED else UNKNOWN,
        "train": train,
        "results": {},
        **({"supernet": facts.supernet} if facts.supernet else {}),
        **({"subnet": asdict(facts.subnet)} if facts.subnet else {}),
    }
    if named is not None and named.weights.sha256 == sha256:  # measured before: more results for the same weights
        entry_so_far = named.to_dict()
    if facts.reported is not None:
        entry_so_far["reported"] = facts.reported
    try:
        check_model(entry_so_far)
    except UsageError as error:
        raise UsageError(f"'{where}' cannot become a registry entry: {error}") from None
    return _checked(Candidate(facts.name, path, sha256, entry_so_far))


def _foreign(target: Path, sha256: str) -> Path | None:
    """A file where the new model's would go that an interrupted release of the same weights has not left."""
    bits = _bits_file(target.stem)
    if bits.exists() and _read_bits(bits).get("weights_sha256") != sha256:
        return bits
    return target if target.exists() and sha256_file(target) != sha256 else None


def _checked(model: Candidate) -> Candidate:
    _kept_bits(model.name)  # refused now, not after the evaluation
    return model


def release(model: Candidate, measurements: Iterable[Measurement]) -> None:
    """Add ``measurements`` to the entry of ``model`` in the registry; its weights and bits are copied beside it.

    The registry is written last, so that it never refers to missing files, and no file is written unless the registry
    stays valid. Only one process releases at a time; results that another process added meanwhile are kept.

    Raises:
        IntegrityError: the registry would become invalid, or the stored bits are damaged; nothing was changed.
    """
    home().mkdir(exist_ok=True)
    with locked(home()):
        _release(model, list(measurements))


def _release(model: Candidate, measured: Sequence[Measurement]) -> None:
    before = load_registry().models
    known = before.get(model.name)
    if known is not None and known.weights.sha256 == model.sha256:  # measured or timed since the evaluation began
        now = known.to_dict()
        model.entry["latency"] = now["latency"]
        model.entry["results"] = now["results"]
    so_far, outdated = model.entry["results"].items(), model.outdated
    results = {name: result for name, result in so_far if outdated.get(name) != result["dataset_sha256"]}
    model.entry["results"] = results | {item.protocol.name: item.result for item in measured}
    named = {*results, "weights_sha256"}
    bits = {key: array for key, array in _kept_bits(model.name).items() if key.removesuffix(".n") in named}
    arrays = _with_bits(bits, model.sha256, measured)
    known_protocols = {name: Protocol(**asked) for name, asked in load_registry().protocols.items()}
    known_protocols |= {item.protocol.name: item.protocol for item in measured}
    model.entry["flags"] = flags_of(model.entry["results"], _unpacked(arrays), known_protocols)
    write_model(
        model.name,
        model.entry,
        datasets=_splits((one.protocol, one.split_size, one.result["dataset_sha256"]) for one in measured),
        protocols=[item.protocol for item in measured],
        files=lambda: _write_files(model, arrays),
    )
    for removed in before.keys() - load_registry().models.keys():  # sub-nets of replaced weights
        for file in (home() / before[removed].weights.file, _bits_file(removed)):
            file.unlink(missing_ok=True)


def _write_files(model: Candidate, arrays: Mapping[str, Any]) -> None:
    """The bits first: those of other weights than the registry's are ignored."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    write_atomic(_bits_file(model.name), buffer.getvalue())
    target = home() / model.entry["weights"]["file"]
    if target.resolve() != model.weights.resolve():
        copy_atomic(model.weights, target)
        predictor = model.weights.with_name(PREDICTOR)
        if predictor.is_file():
            copy_atomic(predictor, target.with_name(f"{target.stem}.{PREDICTOR}"))


def on_images(model: Candidate, dataset: Dataset, protocols: Sequence[Protocol], *, replace: bool = False) -> Candidate:
    """``model``, to be measured under ``protocols`` on ``dataset``; refuses now what :func:`release` would refuse.

    Where a split has other images than those that the registry's results are on, all of the model's results on those
    must be measured anew, and released at once, or removed.

    Args:
        replace: results that are not measured anew may be removed.

    Raises:
        IntegrityError: the registry has results on other images: of another model, or of this one, and they are neither
            measured anew nor to be removed.
    """
    splits = {one.split: dataset.split(one.split) for one in protocols}
    registered = load_registry().datasets.get(dataset.name, {"splits": {}})["splits"]
    changed = [name for name in splits if name in registered and registered[name]["sha256"] != splits[name].fingerprint]
    before = {registered[name]["sha256"] for name in changed}
    on = {name: result["dataset_sha256"] for name, result in model.entry["results"].items()}
    outdated = {name: sha256 for name, sha256 in on.items() if sha256 in before}
    kept = {name: result for name, result in model.entry["results"].items() if name not in outdated}
    asked = [(one, len(splits[one.split]), splits[one.split].fingerprint) for one in protocols]
    check_splits(model.name, {**model.entry, "results": kept}, _splits(asked))
    if not replace and (lost := sorted(outdated.keys() - {one.name for one in protocols})):
        raise IntegrityError(
            f"the registry has results of '{model.name}' on other images of {dataset.name}: measure {', '.join(lost)} "
            "anew too, or add --replace (replace=True), which removes them"
        )
    return dataclasses.replace(model, outdated=outdated)


def _splits(measured: Iterable[tuple[Protocol, int, str]]) -> dict[str, Any]:
    """The splits of protocols, their sizes and fingerprints, as the registry has them."""
    datasets: dict[str, Any] = {}
    for protocol, n, sha256 in measured:
        datasets.setdefault(protocol.dataset, {"splits": {}})["splits"][protocol.split] = {"n": n, "sha256": sha256}
    return datasets


def flags_of(
    results: Mapping[str, Mapping[str, Any]], bits: Mapping[str, np.ndarray], protocols: Mapping[str, Protocol]
) -> list[str]:
    """The flags of an entry: those of its results, and ``unreliable`` if two protocols disagree (bits: bool [n])."""
    flags = {flag for result in results.values() for flag in result.get("flags", ())}
    if disagree((protocols[name], bits[name]) for name in results if name in bits):
        flags.add("unreliable")
    return sorted(flags)


def _bits_file(name: str) -> Path:
    return home() / f"{name}.bits.npz"


def _kept_bits(name: str) -> dict[str, Any]:
    return _read_bits(beside(f"{name}.bits.npz"))


def _with_bits(stored: Mapping[str, Any], weights_sha256: str, measured: Iterable[Measurement]) -> dict[str, Any]:
    """``stored`` with the packed bits [n / 8] and n of what was measured; without the bits of other weights."""
    known = stored.get("weights_sha256") == weights_sha256
    arrays = {**stored} if known else {"weights_sha256": np.array(weights_sha256)}
    for item in measured:
        arrays[item.protocol.name] = np.packbits(item.bits)
        arrays[f"{item.protocol.name}.n"] = np.array(len(item.bits))
    return arrays


def _unpacked(arrays: Mapping[str, Any]) -> dict[str, np.ndarray]:
    names = [key.removesuffix(".n") for key in arrays if key.endswith(".n")]
    return {name: np.unpackbits(arrays[name], count=int(arrays[f"{name}.n"])).astype(bool) for name in names}


def _read_bits(path: Path) -> dict[str, Any]:
    """The arrays in the file ``path``, none if it is missing.

    Raises:
        IntegrityError: the file is damaged.
    """
    if not path.exists():
        return {}
    try:
        with np.load(path) as stored:
            arrays = dict(stored)
        _unpacked(arrays)
        return arrays
    except (OSError, ValueError, TypeError, LookupError, AttributeError, EOFError, BadZipFile, zlib.error) as error:
        fault = type(error).__name__
    raise IntegrityError(f"the per-image bits in '{path}' are damaged ({fault}): restore the file, or remove it")


def stored_bits(name: str) -> dict[str, np.ndarray]:
    """The per-image bits of the released model ``name`` (or alias), bool [n] by protocol: True if correct.

    Raises:
        UnknownModel: the registry does not have this name.
        UsageError: no bits are stored for the entry's weights.
        IntegrityError: the stored bits are damaged.
    """
    entry = info(name)
    stored = _kept_bits(entry.name)
    if stored.get("weights_sha256") == entry.weights.sha256:
        return {name: bits for name, bits in _unpacked(stored).items() if name in entry.results}
    raise UsageError(f"no per-image bits are stored for '{entry.name}': run `zoo eval {entry.name} --write`")
