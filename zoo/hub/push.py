"""Publish registry entries on the Hub: everything is checked and made here first, then uploaded, then registered."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from shutil import rmtree
from tempfile import TemporaryDirectory

from zoo.export.ladder.climb import Progress, silent
from zoo.hub.card import Facts
from zoo.hub.remote import GIT, Held, check_may_write, check_token, collect, commit, create, look
from zoo.hub.repository import CARD, NAME, Content, repository_id, write_repository
from zoo.registry.entry import Hub
from zoo.registry.file import info, load_registry, registry_path
from zoo.registry.write import write_hub
from zoo.system.errors import IntegrityError, UsageError, ZooError
from zoo.system.files import check_folder
from zoo.system.hub import HubFiles
from zoo.weights.folder import CONFIG, CONFIG_LIMIT, read_config
from zoo.weights.load import Found, find

Say = Callable[[str], None]


@dataclass(frozen=True)
class Order:
    """A model that is to be published, as far as it is known without the network."""

    found: Found
    facts: Facts

    @property
    def repo_id(self) -> str:
        return self.facts.repo_id


@dataclass(frozen=True)
class Pushed:
    """What became of one model: its repository, the commit that the registry refers to now, and the files that changed;
    ``error`` instead if it was refused."""

    name: str
    repo_id: str
    revision: str | None = None
    changed: tuple[str, ...] = ()
    deleted: tuple[str, ...] = ()
    error: ZooError | None = None


def orders(names: Sequence[str], pattern: str, *, license: str | None = None, offline: bool = False) -> list[Order]:
    """The models called ``names``, found and checked, each with its repository.

    Args:
        pattern: ``ORG/NAME``, where ``{name}`` stands for the model's name.
        license: publish them under this one, as "mit"; None: under that of their entries.
        offline: never use the network.

    Raises:
        UsageError: the name of a repository or of the licence is malformed, two models share a repository, or a model
            was not measured under attack.
        UnknownModel, Unreachable, IntegrityError: a model or its weights are not here, or damaged.
    """
    registry = load_registry()
    entries = list({entry.name: entry for entry in (info(name, registry=registry) for name in names)}.values())
    if len(entries) > 1 and NAME not in pattern:
        raise UsageError(f"{len(entries)} models need a repository each: write {NAME} into --repo-id, as org/{NAME}")
    if license:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9.+-]*", license):
            raise UsageError(f"'{license}' is not the name of a licence: write it as mit, apache-2.0 or cc-by-4.0")
        entries = [replace(entry, license=license) for entry in entries]
    facts = [Facts(entry, registry, repository_id(pattern, entry)) for entry in entries]
    owners: dict[str, str] = {}
    for one in facts:
        if owners.setdefault(one.repo_id.lower(), one.entry.name) != one.entry.name:
            other = owners[one.repo_id.lower()]
            raise UsageError(f"'{other}' and '{one.entry.name}' would both go to '{one.repo_id}': push them one by one")
    hub = HubFiles(offline=offline, progress=False)
    return [Order(find(one.entry.name, hub), one) for one in facts]


def prepare(
    orders: Sequence[Order], out: Path, *, say: Say = lambda sentence: None, progress: Progress = silent
) -> list[Content]:
    """Write each repository into a folder of its name in ``out``; all or, after an error, none.

    Raises:
        UsageError: such a folder is there already.
        ParityGateFailed, ExportFailed: an ONNX graph could not be made, or does not agree with its model.
    """
    folders = {order.repo_id: out / order.repo_id.rpartition("/")[2] for order in orders}
    for folder in folders.values():
        check_folder(folder)
        if folder.exists() and any(folder.iterdir()):
            raise UsageError(f"'{folder}' exists already: choose another folder")
    made = []
    try:
        for order in orders:
            say(f"{order.repo_id}: writing card and ONNX graph ...")
            folder = folders[order.repo_id]
            made.append(write_repository(order.found, order.facts, folder, notify=say, progress=progress))
    except BaseException:
        for folder in folders.values():
            rmtree(folder, ignore_errors=True)
        raise
    return made


def push(
    orders: Sequence[Order],
    *,
    private: bool = False,
    parent: str | None = None,
    say: Say = lambda sentence: None,
    progress: Progress = silent,
) -> list[Pushed]:
    """Publish the models, and write the commit of each into the registry once the Hub has it.

    A repository whose content is the same already gets no commit. One that has changed since the registry's commit is
    left as it is: that is its conflict, and the other models still go.

    Args:
        private: make new repositories private.
        parent: the commit to replace, where the registry does not refer to the head of the repository.

    Raises:
        UsageError: the registry cannot be written; a repository holds something else, or is public although ``private``
            is asked for.
        Unreachable: there is no token, or the Hub cannot be reached; nothing was uploaded.
        ParityGateFailed, ExportFailed: as :func:`prepare`; nothing was uploaded.
    """
    registry = registry_path().resolve()
    if not all(os.access(path, os.W_OK) for path in (registry, registry.parent)):
        raise UsageError(f"the registry '{registry}', which gets the commits, cannot be written: use one of your own")
    check_token()
    held = {order.repo_id: look(order.repo_id) for order in orders}
    for order in orders:
        if there := held[order.repo_id]:
            _check_ours(order, there, private=private)
            check_may_write(order.repo_id)
    with TemporaryDirectory() as scratch:
        return [
            _publish(content, held[content.repo_id], private=private, parent=parent, say=say)
            for content in prepare(orders, Path(scratch), say=say, progress=progress)
        ]


def gather(title: str, pushed: Sequence[Pushed], *, private: bool) -> str:
    """Put what was pushed into the collection ``title`` of their organisation; returns its address."""
    return collect(title, pushed[0].repo_id.partition("/")[0], [one.repo_id for one in pushed], private=private)


def _check_ours(order: Order, held: Held, *, private: bool) -> None:
    """Raise UsageError unless the repository is new, or of this model."""
    if private and not held.private:
        raise UsageError(f"'{order.repo_id}' is public already: make it private on the Hub, or leave --private out")
    if held.files.keys() <= {GIT, CARD}:
        return
    entry, stated = order.facts.entry, None
    if CONFIG in held.files:
        file = HubFiles(progress=False).fetch(order.repo_id, CONFIG, held.revision, limit=CONFIG_LIMIT)
        try:
            stated = read_config(file).name
        except IntegrityError:  # of another library
            stated = None
    if stated not in (entry.name, *entry.aliases):
        what = f"the model '{stated}'" if stated else "something else"
        raise UsageError(f"'{order.repo_id}' holds {what}, not '{entry.name}': choose another repository")


def _publish(content: Content, held: Held | None, *, private: bool, parent: str | None, say: Say) -> Pushed:
    entry, repo_id = content.entry, content.repo_id
    done = Pushed(entry.name, repo_id)
    try:
        wanted = content.files()
        if held is None:
            say(f"{repo_id}: making the repository ...")
            held = create(repo_id, private=private)
        changed, gone = held.changes(wanted)
        revision = held.revision
        if changed or gone:
            _check_parent(content, held, parent)
            size = sum(wanted[name].stat().st_size for name in changed)
            say(f"{repo_id}: uploading {len(changed)} files ({size:,} bytes), deleting {len(gone)} ...")
            revision = commit(repo_id, held, wanted, f"{entry.name}, by robust-zoo")
        hub = Hub(repo_id=repo_id, revision=revision, filename=content.weights)
        if hub != entry.weights.hub or entry.license != info(entry.name).license:
            write_hub(entry.name, entry.weights.sha256, hub, license=entry.license)
    except ZooError as error:
        return replace(done, error=error)
    return replace(done, revision=revision, changed=tuple(changed), deleted=tuple(gone))


def _check_parent(content: Content, held: Held, parent: str | None) -> None:
    """Raise IntegrityError where the head of the repository is neither new nor the commit that the registry, or
    ``parent``, says."""
    if parent == held.revision or held.files.keys() <= {GIT}:
        return
    hub = content.entry.weights.hub
    ours = hub.revision if hub and hub.repo_id == content.repo_id else None
    if parent is None and ours == held.revision:
        return
    known = f"the registry knows {ours}" if ours else "the registry refers to no commit of it"
    raise IntegrityError(
        f"'{content.repo_id}' is at commit {held.revision}, and {known}: look at what is there; --parent "
        f"{held.revision} replaces it"
    )
