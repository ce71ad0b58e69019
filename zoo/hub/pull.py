"""Pull models: from the package, else the cache of the Hub's client, else the Hub at the revision that is pinned."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from zoo.registry.entry import Entry
from zoo.registry.file import info
from zoo.registry.pick import matching
from zoo.system.downloads import COMMIT, commit_of, stated_sha256
from zoo.system.errors import Unreachable, UsageError
from zoo.system.files import sha256_file
from zoo.system.hub import HubFiles
from zoo.weights.address import HUB, NAME, Address
from zoo.weights.folder import CONFIG, TENSORS
from zoo.weights.load import beside, find
from zoo.weights.tensors import check_header


@dataclass(frozen=True, kw_only=True)
class Pulled:
    """A file that a model needs, which is here now and has its hash.

    Attributes:
        name: the model, as it is loaded.
        source: where it was: in the package or beside the registry, in the client's cache, or only at the Hub.
        repo_id, revision, filename: its place at the Hub, None for a file of the package that is not there; ``branch``
            is what was asked for, if that is not a commit.
    """

    name: str
    source: Literal["package", "cache", "hub"]
    path: Path
    size: int
    sha256: str
    repo_id: str | None = None
    revision: str | None = None
    filename: str | None = None
    branch: str | None = None


def wanted(pattern: str) -> list[Address]:
    """The models that ``pattern`` names: a name, a glob of names, or ``hf-hub:ORG/REPO[@REVISION]``.

    Raises:
        UnknownModel, NothingMatches, UsageError: nothing has this name, or it is not on the Hub.
        Unreachable: the weights of one of them are neither in the package nor at the Hub.
    """
    address = Address.parse(pattern)
    if address.scheme == HUB:
        return [address]
    if address.scheme != NAME:
        raise UsageError(f"'{pattern}' is not on the Hub: only names and hf-hub: addresses are pulled")
    entries = [info(name) for name in matching(pattern)]
    for entry in entries:
        for part in _parts(entry):
            if part.weights.hub is None and not beside(part.weights.file).exists():
                raise Unreachable(
                    f"the weights of '{part.name}' are neither in the package nor at the Hub, as the registry names no "
                    "repository for them: reinstall the package, or copy them from where they were trained"
                )
    return [Address(NAME, entry.name) for entry in entries]


def pull(address: Address, hub: HubFiles) -> list[Pulled]:
    """Every file that ``address`` needs, downloaded where it is not here yet.

    Of a branch the newest commit is taken. Errors are those of :func:`zoo.weights.load.find`.
    """
    new: list[Path] = []
    hub = replace(hub, newest=True, seen=new.append)
    if address.scheme == NAME:
        return [_released(part, hub, new) for part in _parts(info(address.place))]
    found = find(address, hub)
    assert found.path is not None
    check_header(found.path)
    commit, name = commit_of(found.path, TENSORS), str(address)
    branch = None if COMMIT.fullmatch(address.revision or "") else address.revision or "main"
    files = [
        Pulled(
            name=name,
            source="hub" if path in new else "cache",
            path=path,
            size=path.stat().st_size,
            sha256=stated_sha256(path) or sha256_file(path),
            repo_id=address.place,
            revision=commit,
            filename=path.name,
            branch=branch,
        )
        for path in (found.path.with_name(CONFIG), found.path)
    ]
    subnet = found.facts.subnet
    return [*files, *(pull(Address(NAME, subnet.of), hub) if subnet else ())]


def _parts(entry: Entry) -> Iterator[Entry]:
    """The entry, and the dynamic net whose weights a sub-net shares."""
    yield entry
    if entry.subnet:
        yield info(entry.subnet.of)


def _released(entry: Entry, hub: HubFiles, new: list[Path]) -> Pulled:
    path, weights = find(entry.name, hub).path, entry.weights
    assert path is not None
    source: Literal["package", "cache", "hub"] = "hub" if path in new else "cache"
    return Pulled(
        name=entry.name,
        source="package" if path == beside(weights.file) else source,
        path=path,
        size=weights.size,
        sha256=weights.sha256,
        repo_id=weights.hub.repo_id if weights.hub else None,
        revision=weights.hub.revision if weights.hub else None,
        filename=weights.hub.filename if weights.hub else None,
    )
