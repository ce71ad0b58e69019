"""From a name to a model with its weights: bundled, local, or from the Hub; checked before they are parsed.

Only safetensors files are opened. Files are found before torch is imported, so that a miss answers at once.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from zoo.evaluation.threat import LINF_8, ThreatModel
from zoo.registry.entry import Weights
from zoo.system.errors import IntegrityError, Unreachable, UsageError, WrongDevice
from zoo.system.files import check_sha256, sha256_file, write_atomic
from zoo.system.hub import HubFiles

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from zoo.models import Classifier

BUNDLED = Path(__file__).parents[1] / "bundled"
CONFIG, TENSORS = "config.json", "model.safetensors"
PREDICTOR = "predictor.safetensors"  # beside the weights of a dynamic net, in the package after their name
LABELS = "labels.json"  # what it was fitted to
CUT_FROM = "cut_from"  # in the metadata of a sub-net's file: the hash of the dynamic net's
_ORIGIN = "_weights_sha256"  # where a loaded model keeps the hash of its file
_PICKLE = (b"\x80", b"PK\x03\x04")  # a bare pickle of protocol 2 or later; the zip of torch.save


def load(
    name: str,
    *,
    pretrained: bool = True,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    device: str | torch.device = "cpu",
    progress: bool = True,
) -> Classifier:
    """A model in eval mode: [0, 1] float32 images [N, 3, H, W] in, logits [N, classes] out.

    Args:
        name: a name of the registry; ``local-dir:PATH``, a folder with config.json (its "spec" is read) and
            model.safetensors; or ``hf-hub:org/repo[@revision]``, a Hub repository with the same two files.
        pretrained: False gives freshly initialised weights.
        revision: of a Hub repository; the registry pins its own.
        cache_dir: where the Hub's client keeps its files, if not in its default place.
        local_files_only: never use the network. The cache is always tried first.
        progress: show the download of Hub files.

    Raises:
        UnknownModel: the registry has no such name.
        NothingMatches: no released sub-net of the dynamic net is as small as the budget.
        Unreachable: a file is neither here nor, as far as the network may be used, on the Hub.
        IntegrityError: a file is damaged, has another hash than the registry says, or does not fit the architecture.
        UsageError: the name or the config is malformed.
        WrongDevice: this torch has no such device.
    """
    hub = HubFiles(cache_dir=cache_dir, offline=local_files_only, progress=progress)
    found = _found(name, hub, revision=revision, pretrained=pretrained)

    from zoo.models import build
    from zoo.specs import parse_spec

    where = _device(device)
    model = build(parse_spec(found.spec))
    if found.path is not None:
        _fill(model, _tensors(found, hub), found.path)
        vars(model)[_ORIGIN] = sha256_file(found.path)
    return model.eval().to(where)


class Task(NamedTuple):
    """What a model is for: a data set, None where the model names none, and the threat model that it withstands."""

    dataset: str | None = None
    threat: ThreatModel = LINF_8


class _Found(NamedTuple):
    """A model: its architecture, as JSON has it; its weights file, where one is wanted; and the dynamic net that it is
    a part of, or the space of those that are parts of it."""

    spec: Any
    path: Path | None
    subnet: Mapping[str, Any] | None = None
    supernet: str | None = None
    task: Task = Task()


def task_of(name: str, *, offline: bool = False) -> Task:
    """What the model called ``name`` is for. No weights are opened; errors are those of :func:`load`."""
    return _found(name, HubFiles(offline=offline, progress=False), pretrained=False).task


def weights_file(name: str, *, offline: bool = False) -> Path:
    """The file that :func:`load` fills the model ``name`` from, checked like there; errors are the same."""
    path = _found(name, HubFiles(cache_dir=None, offline=offline, progress=False)).path
    assert path is not None
    return path


def _found(name: str, hub: HubFiles, *, revision: str | None = None, pretrained: bool = True) -> _Found:
    scheme, _, place = name.partition(":")
    if revision is not None and scheme != "hf-hub":
        raise UsageError(f"'{name}' has no revisions: only hf-hub: names take one")
    if scheme == "local-dir":
        folder = Path(place).expanduser()
        config = _config(_local(folder / CONFIG))
        path = _local(folder / TENSORS) if pretrained else None
    elif scheme == "hf-hub":
        repo_id, _, tag = place.partition("@")
        if revision and tag:
            raise UsageError(f"'{name}' names a revision, and revision={revision!r} another: leave one of them out")
        config = _config(hub.fetch(repo_id, CONFIG, revision or tag or None))
        path = hub.fetch(repo_id, TENSORS, revision or tag or None) if pretrained else None
    else:
        from zoo.registry.file import info

        entry = info(name)
        path = _released(entry.name, entry.weights, hub) if pretrained else None
        task = Task(entry.dataset, entry.threat)
        return _Found(entry.spec, path, vars(entry.subnet) if entry.subnet else None, entry.supernet, task)
    return _Found(config["spec"], path, config.get("subnet"), config.get("supernet"), task_in(config))


def task_in(config: Mapping[str, Any]) -> Task:
    """What the model of a config.json is for. Trainings did not always write it there, but always their settings."""
    settings = (config.get("train") or {}).get("settings") or {}
    dataset, threat = config.get("dataset", settings.get("dataset")), config.get("threat", settings.get("attack")) or {}
    return Task(dataset, ThreatModel(**{key: threat[key] for key in ("norm", "eps") if key in threat}))


def _tensors(found: _Found, hub: HubFiles) -> dict[str, Tensor]:
    """All weights of the model, those of a sub-net cut from its dynamic net's."""
    from zoo.models.subnet import TRANSFORM, cut
    from zoo.specs import parse_spec

    assert found.path is not None
    tensors = read_tensors(found.path)
    if found.supernet:
        return {name: tensor for name, tensor in tensors.items() if not name.startswith(TRANSFORM)}
    if not found.subnet:
        return tensors
    of = found.subnet["of"]
    whole = _found(of, hub)
    assert whole.path is not None
    if {sha256_file(whole.path), read_metadata(found.path).get(CUT_FROM)} != {found.subnet["weights_sha256"]}:
        raise IntegrityError(
            f"'{found.path}' belongs to other weights than '{of}' has now: cut the sub-net again with zoo search"
        )
    try:
        parts = cut(read_tensors(whole.path), parse_spec(whole.spec), parse_spec(found.spec))
    except (KeyError, ValueError):
        raise IntegrityError(f"the architecture beside '{found.path}' is no part of '{of}': cut it again") from None
    return {**parts, **tensors}


def bundled(weights: Weights) -> Path:
    """Where the package keeps these weights, if it does."""
    return BUNDLED / weights.file


def check_file(path: Path, *, size: int, sha256: str) -> None:
    """Raise IntegrityError unless ``path`` is the safetensors file of this size in bytes and this SHA-256."""
    _refuse_pickle(path)
    found = path.stat().st_size
    if found != size:
        raise IntegrityError(f"'{path}' has {found:,} bytes where {size:,} are expected: fetch or install it again")
    check_sha256(path, sha256)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, on the CPU; half precision becomes float32.

    Raises:
        IntegrityError: the file is not safetensors, is incomplete, or holds values that are not finite.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    _refuse_pickle(path)
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise IntegrityError(f"'{path}' is not a complete safetensors file: {error}") from None
    tensors = {key: value.float() if value.is_floating_point() else value for key, value in tensors.items()}
    for key, value in tensors.items():
        if not torch.isfinite(value).all():
            raise IntegrityError(f"'{path}' holds values in '{key}' that are not finite")
    return tensors


def read_metadata(path: Path) -> dict[str, str]:
    """What a safetensors file says of itself."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        return dict(file.metadata() or {})


def weights_sha256(model: nn.Module) -> str:
    """The SHA-256 of the file that :func:`load` filled ``model`` from; results are bound to it.

    Raises:
        UsageError: the model's weights do not come from a file.
    """
    found = vars(model).get(_ORIGIN)
    if found is None:
        raise UsageError("the model's weights do not come from a file: load it by its name")
    return found


def save_weights(state_dict: Mapping[str, Tensor], path: Path, **metadata: str) -> None:
    """Write tensors and metadata as a safetensors file, whole or not at all.

    Raises:
        OSError: the folder cannot be written, or the disk is full.
    """
    from safetensors.torch import save

    tensors = {key: value.detach().cpu().contiguous() for key, value in state_dict.items()}
    write_atomic(path, save(tensors, metadata={"format": "pt", **metadata}))


def _released(name: str, weights: Weights, hub: HubFiles) -> Path:
    """The weights file of a registry entry, hashed."""
    path = bundled(weights)
    if path.exists():
        check_file(path, size=weights.size, sha256=weights.sha256)
        return path
    if weights.hub is None:
        raise Unreachable(f"the weights of '{name}' are neither in the package ('{path}') nor on the Hub: reinstall")

    def check(path: Path) -> None:
        check_file(path, size=weights.size, sha256=weights.sha256)

    return hub.fetch(weights.hub.repo_id, weights.hub.filename, weights.hub.revision, check=check)


def _local(path: Path) -> Path:
    if path.is_file():
        return path
    if not path.parent.is_dir():
        raise Unreachable(f"there is no folder '{path.parent}'")
    raise Unreachable(f"'{path.parent}' holds no {path.name}: a model folder has {CONFIG} and {TENSORS}")


def _config(path: Path) -> dict[str, Any]:
    """The contents of a config.json, which has a "spec" at least."""
    try:
        config = json.loads(path.read_bytes())
    except ValueError as error:
        raise IntegrityError(f"'{path}' is not JSON: {error}") from None
    if not isinstance(config, dict) or not isinstance(config.get("spec"), dict):
        raise IntegrityError(f"'{path}' has no architecture in it: a model's {CONFIG} holds an object under 'spec'")
    subnet, supernet = config.get("subnet"), config.get("supernet")
    if subnet is not None and not (
        isinstance(subnet, dict) and all(isinstance(subnet.get(key), str) for key in ("of", "weights_sha256"))
    ):
        raise IntegrityError(f"'{path}' does not tell under 'subnet' of which net, and of which weights, it is a part")
    if supernet is not None and not isinstance(supernet, str):
        raise IntegrityError(f"'{path}' does not name a space under 'supernet'")
    return config


def _refuse_pickle(path: Path) -> None:
    with open(path, "rb") as file:
        start = file.read(4)
    if start.startswith(_PICKLE):
        raise IntegrityError(
            f"'{path}' is a pickle, not safetensors: it was not opened, since unpickling runs whatever code it holds"
        )


def _fill(model: Classifier, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Copy ``tensors`` into ``model``, which has exactly these."""
    expected = model.state_dict()
    for fault, keys in (("lacks", expected.keys() - tensors.keys()), ("has", tensors.keys() - expected.keys())):
        if keys:
            first, *more = sorted(keys)
            named = f"'{first}'" + (f" and {len(more)} more" if more else "")
            beyond = ", which the architecture has not" if fault == "has" else ""
            raise IntegrityError(f"the weights do not fit the architecture: '{path}' {fault} {named}{beyond}")
    for key, value in expected.items():
        if tensors[key].shape != value.shape:
            raise IntegrityError(
                f"the weights do not fit the architecture: '{key}' in '{path}' has shape {list(tensors[key].shape)}, "
                f"not {list(value.shape)}"
            )
    model.load_state_dict(dict(tensors))


def _device(device: str | torch.device) -> torch.device:
    import torch

    try:
        where = torch.device(device)
    except RuntimeError:
        raise UsageError(f"'{device}' is not a device: cpu, cuda, cuda:1, mps, ...") from None
    if where.type == "cuda" and (where.index or 0) >= torch.cuda.device_count():
        raise WrongDevice(f"this torch sees {torch.cuda.device_count()} CUDA devices, and none is '{device}': use cpu")
    return where
