"""Load a model with its weights: bundled, local, or from the Hub. Files are located before torch is imported, so that a
missing one is reported at once.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from zoo.datasets import DATASETS, dataset_for
from zoo.datasets.base import check_fits
from zoo.evaluation.threat import LINF_8, ThreatModel
from zoo.registry.entry import Entry, Weights
from zoo.system.arguments import typed
from zoo.system.downloads import commit_of, stated_sha256
from zoo.system.errors import IntegrityError, UnknownModel, Unreachable, UsageError
from zoo.system.files import sha256_file
from zoo.system.hub import HubFiles, check_size
from zoo.system.torch_device import torch_device
from zoo.weights.address import FILE, HUB, KEPT, LOCAL, NAME, OWN, Address
from zoo.weights.folder import CONFIG, CONFIG_LIMIT, SUFFIX, TENSORS, ModelConfig, ModelFolder, read_beside, read_config
from zoo.weights.tensors import HEADER_LIMIT, check_count, check_file, fill, read_metadata, read_tensors

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from zoo.datasets.base import Dataset
    from zoo.models import Classifier
    from zoo.specs import Spec

QUIET = HubFiles(progress=False)
BUNDLED = Path(__file__).parents[1] / "bundled"
CUT_FROM = "cut_from"  # metadata of a sub-net's file: the hash of the dynamic net's file
_ORIGIN = "_weights_sha256"  # attribute of a loaded model: the hash of its file


def load(
    name: str | Address,
    *,
    pretrained: bool = True,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    device: str | torch.device = "cpu",
    progress: bool = True,
) -> Classifier:
    """A model in eval mode: [0, 1] float32 images [N, 3, H, W] in, logits [N, classes] out. Other input is refused.

    >>> import torch
    >>> load("rnascl-s7-wrt34")(torch.rand(2, 3, 32, 32)).shape
    torch.Size([2, 10])

    Args:
        name: a name or an alias of the registry; ``SUPERNET@BUDGET``, the best released sub-net within BUDGET MACs;
            ``local-dir:PATH``, a folder with config.json (its "spec" is read) and model.safetensors, or a file
            NAME.safetensors with a NAME.json beside it that has the "spec"; or ``hf-hub:org/repo[@revision]``, a Hub
            repository with the two files of a folder.
        pretrained: False gives freshly initialised weights.
        revision: of a Hub repository; the registry pins its own.
        cache_dir: the cache folder of the Hub's client, if not the default.
        local_files_only: never use the network. The cache is always tried first.
        progress: show progress bars of downloads.

    Raises:
        UnknownModel: the registry does not have this name.
        NothingMatches: the budget is below all released sub-nets of the dynamic net.
        Unreachable: a file is neither local nor cached, and cannot be downloaded.
        IntegrityError: a file is damaged, does not have the registry's hash, or does not fit the architecture.
        UsageError: the name or the spec is malformed, or the name is a path without ``local-dir:``.
        WrongDevice: torch does not find this device.
    """
    typed(revision=(revision, str | None), cache_dir=(cache_dir, str | PathLike | None))
    hub = HubFiles(cache_dir=cache_dir, offline=local_files_only, progress=progress)
    return find(Address.parse(name).at(revision), hub, pretrained=pretrained).load(device)


class Task(NamedTuple):
    """The task of a model: a data set (None if the model names none) and a threat model."""

    dataset: str | None = None
    threat: ThreatModel = LINF_8


@dataclass(frozen=True)
class Found:
    """A model located by its address.

    Attributes:
        address: its address; for a registry model the name of the entry, even if an alias or a budget was given.
        facts: its registry entry, or its config.json.
        path: its weights file; None without ``pretrained``.
        sha256: the hash of this file, computed once; without a file the registry's hash, else "".
        hub: downloads further files, such as those of a dynamic net.
        state: of the file when it was hashed; it must be the same when it is read.
    """

    address: Address
    facts: Entry | ModelConfig
    path: Path | None
    sha256: str
    hub: HubFiles = field(repr=False)
    state: tuple[int, ...] | None = None

    @property
    def title(self) -> str:
        """The name of the model; see :func:`own_name` for a trained model with the name of a released one."""
        if self.address.scheme == HUB:
            return str(self.address)
        name = self.facts.name or Path(self.address.place).resolve().name.removesuffix(SUFFIX)
        return name if self.released else own_name(name, self.sha256)

    @property
    def released(self) -> Entry | None:
        """Its registry entry; of a folder or repository the entry with the same name, weights and architecture."""
        if isinstance(self.facts, Entry):
            return self.facts
        from zoo.registry.file import entry_called
        from zoo.specs import parse_spec

        entry = entry_called(self.facts.name or "")
        same = entry and entry.weights.sha256 == self.sha256 and parse_spec(entry.spec) == self.spec
        return entry if same else None

    @property
    def spec(self) -> Spec:
        """Its architecture; UsageError if that is malformed."""
        from zoo.specs import parse_spec

        return parse_spec(self.facts.spec)

    @property
    def task(self) -> Task:
        """Its data set, and its threat model: l-infinity with 8/255 where it states none."""
        threat = self.facts.threat or ThreatModel()
        if not threat.sound:
            raise IntegrityError(
                f"'{self.address}' states a threat model of {threat}: its eps must be above 0, and at most 1 in linf"
            )
        return Task(self.facts.dataset, threat)

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of its classes in the order of the logits: those in its config.json, of a released model those of
        its data set; empty where nobody has stated them.

        Raises:
            IntegrityError: config.json contradicts the architecture or the data set.
        """
        known = DATASETS[self.task.dataset].classes if self.task.dataset in DATASETS else ()
        if isinstance(self.facts, Entry):
            return known if len(known) == self.spec.classes else ()
        stated = self.facts.classes or ()
        if stated and len(stated) != self.spec.classes:
            raise IntegrityError(
                f"the {CONFIG} of '{self.address}' names {len(stated)} classes, but its architecture has "
                f"{self.spec.classes}: correct 'classes', or remove it"
            )
        if stated and known and stated != known:
            raise IntegrityError(
                f"the {CONFIG} of '{self.address}' has other classes than its data set {self.task.dataset}, or in "
                "another order: correct 'classes' or 'dataset'"
            )
        return stated

    def tensors(self) -> dict[str, Tensor]:
        """All tensors of its weights file.

        Raises:
            IntegrityError: the file is damaged, or is not the one that was hashed.
        """
        assert self.path is not None
        tensors = read_tensors(self.path)
        if _state(self.path) != self.state:
            raise IntegrityError(f"'{self.path}' was replaced after it was checked: run the command again")
        return tensors

    def images(self, data: Path | str | None = None, *, offline: bool = False) -> Dataset:
        """Its data set with the images; arguments and errors are those of :meth:`zoo.datasets.base.Dataset.load`.

        Raises:
            UsageError: the images are of another size or other classes than the model's.
        """
        dataset = dataset_for(self.spec, self.task.dataset).load(data, offline=offline)
        check_fits(dataset, self.spec, self.classes)
        return dataset

    def load(self, device: str | torch.device = "cpu") -> Classifier:
        """The model, with fresh weights if ``path`` is None. Errors are those of :func:`load`."""
        spec = self.spec

        import torch

        from zoo.models import build

        where = torch_device(device)
        with torch.inference_mode(False):  # its weights may be trained and attacked later
            if self.path is None:
                return build(spec).eval().to(where)
            tensors = _tensors(self)
            check_count(tensors, spec, self.path)
            model = build(spec)
            fill(model, tensors, self.path)
            vars(model)[_ORIGIN] = self.sha256
            return model.eval().to(where)

    def companion(self, name: str) -> Path | None:
        """The file ``name`` that belongs to the weights, such as a predictor: beside them, else where the registry says
        that they are on the Hub; None if it is not here and they are on no Hub.

        Raises:
            Unreachable, IntegrityError: the Hub does not have it, cannot be reached, or it is damaged.
        """
        assert self.path is not None
        for path in (self.path.with_name(f"{self.path.stem}.{name}"), self.path.with_name(name)):
            if path.is_file():
                return path
        hub = self.facts.weights.hub if isinstance(self.facts, Entry) else None
        return self.hub.fetch(hub.repo_id, name, hub.revision) if hub else None

    def reference(self) -> dict[str, str]:
        """Its name and the hash of its weights file, as stored with a model trained from it."""
        return {"name": self.title, "weights_sha256": self.sha256}


def find(name: str | Address, hub: HubFiles = QUIET, *, pretrained: bool = True, folders: bool = False) -> Found:
    """Locate the model ``name`` (any address that :func:`load` takes) and check its weights file, without torch.

    Args:
        pretrained: False leaves the weights out.
        folders: accept paths of folders and of safetensors files too, in preference to registry names.

    Raises:
        UnknownModel, NothingMatches, Unreachable, IntegrityError, UsageError: as :func:`load`.
    """
    address = Address.parse(name, folders=folders)
    if address.scheme in (OWN, FILE):
        kind = "would be a function in Python" if address.scheme == OWN else "is a file without a spec"
        raise UsageError(f"'{address}' {kind}, which only zoo eval and zoo sweep take: a model here is {KEPT}")
    if address.scheme == LOCAL:
        place = Path(address.place)
        if place.suffix == SUFFIX and not place.is_dir():
            config, weights = read_beside(place), place
        else:
            folder = ModelFolder(place)
            config, weights = folder.read(), folder.file(TENSORS) if pretrained else folder.weights
        path = weights if pretrained else None
        if path:
            with suppress(UsageError):  # a malformed architecture is refused where it is used
                check_size(path.stat().st_size, _room(config), f"'{path}'")
        state = _state(path)
        return Found(address, config, path, sha256_file(path) if path else "", hub, state)
    if address.scheme == HUB:
        file = hub.fetch(address.place, CONFIG, address.revision, limit=CONFIG_LIMIT)
        config, path = read_config(file), None
        if pretrained:  # from the same commit, also if the branch has moved on
            path = hub.fetch(address.place, TENSORS, commit_of(file, CONFIG), limit=_room(config))
        state = _state(path)
        return Found(address, config, path, (stated_sha256(path) or sha256_file(path)) if path else "", hub, state)
    entry = _registered(address.place)
    path = _released(entry.name, entry.weights, hub) if pretrained else None
    return Found(Address(NAME, entry.name), entry, path, entry.weights.sha256, hub, _state(path))


def own_name(name: str, sha256: str) -> str:
    """``name``, with the first 8 digits of the weights' hash where the registry finds another model by that name: the
    figures of a released model must not be taken for those of a retrained one."""
    from zoo.registry.file import entry_called

    return f"{name}-{sha256[:8]}" if sha256 and entry_called(name) else name


def _state(path: Path | None) -> tuple[int, ...] | None:
    """Time, size and inode of a file: another state is another file."""
    return ((state := path.stat()).st_mtime_ns, state.st_size, state.st_ino) if path else None


def _registered(name: str) -> Entry:
    from zoo.registry.file import info

    try:
        return info(name)
    except UnknownModel:
        path = Path(name).expanduser()
        if path.is_dir() or path.suffix == SUFFIX:
            what = "folder" if path.is_dir() else "file"
            raise UsageError(f"'{name}' is a {what}, not a registry name: write local-dir:{name}") from None
        if path.is_file():
            raise UsageError(
                f"'{name}' is a file, not a model: make a model folder from a checkpoint with `zoo convert`"
            ) from None
        raise


def _tensors(found: Found) -> dict[str, Tensor]:
    """All weights of the model; those of a sub-net are cut from its dynamic net."""
    from zoo.models.subnet import TRANSFORM, cut

    tensors = found.tensors()
    subnet = found.facts.subnet
    if found.facts.supernet:
        return {name: tensor for name, tensor in tensors.items() if not name.startswith(TRANSFORM)}
    if not subnet:
        return tensors
    assert found.path is not None
    supernet = find(subnet.of, found.hub)
    if {supernet.sha256, read_metadata(found.path).get(CUT_FROM)} != {subnet.weights_sha256}:
        raise IntegrityError(
            f"'{found.path}' belongs to other weights of '{subnet.of}': cut the sub-net again with `zoo search`"
        )
    try:
        parts = cut(supernet.tensors(), supernet.spec, found.spec)
    except (KeyError, ValueError):
        raise IntegrityError(
            f"the architecture of '{found.path}' is not a sub-net of '{subnet.of}': cut it again with `zoo search`"
        ) from None
    return {**parts, **tensors}


def home() -> Path:
    """The folder of the weights and per-image bits of the registry in force: the package's, and for a registry of the
    user's own the folder that it is in."""
    from zoo.registry.file import PACKAGED, registry_path

    path = registry_path().resolve()
    return BUNDLED if path == PACKAGED.resolve() else path.parent


def beside(file: str) -> Path:
    """The path of ``file`` beside the registry, else in the package; it may not exist."""
    own = home() / file
    return own if own.exists() else BUNDLED / file


def _room(config: ModelConfig) -> int:
    """The bytes that the weights of ``config`` may take: twice its parameters, for BatchNorm and the transforms of a
    dynamic net, in float64; UsageError if its architecture is malformed."""
    from zoo.specs import cost, parse_spec

    return 16 * cost(parse_spec(config.spec)).params + HEADER_LIMIT


def weights_sha256(model: nn.Module) -> str:
    """The SHA-256 of the file that :func:`load` read ``model`` from; it is stored in results.

    Raises:
        UsageError: the model's weights do not come from a file.
    """
    sha256 = vars(model).get(_ORIGIN)
    if sha256 is None:
        raise UsageError("the model's weights do not come from a file: load it by its name")
    return sha256


def _released(name: str, weights: Weights, hub: HubFiles) -> Path:
    """The weights file of a registry entry, after a check of its hash."""
    path = beside(weights.file)
    if path.exists():
        check_file(path, size=weights.size, sha256=weights.sha256)
        return path
    if weights.hub is None:
        raise Unreachable(f"the weights of '{name}' are neither in the package ('{path}') nor on the Hub: reinstall it")

    def check(path: Path) -> None:
        check_file(path, size=weights.size, sha256=weights.sha256)

    file = weights.hub
    return hub.fetch(file.repo_id, file.filename, file.revision, check=check, limit=weights.size)
