"""Carry pulled files to a machine without a network: a folder of plain files, with a manifest of their hashes.

    contents.json
    org--name/COMMIT/model.safetensors

The manifest comes from elsewhere, so it is read with suspicion: its names are bounded, and only safetensors files and
config.json are taken over.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from zoo.hub.pull import Pulled
from zoo.registry.entry import Commit
from zoo.system.downloads import Download, check_blob, git_hash
from zoo.system.errors import IntegrityError, Unreachable, UsageError, first_fault
from zoo.system.files import (
    check_folder,
    check_sha256,
    copy_atomic,
    kind_of,
    locked,
    read_utf8,
    sha256_file,
    write_atomic,
)
from zoo.system.hub import check_size
from zoo.system.records import Bounds, Record, Sha256
from zoo.weights.folder import CONFIG, CONFIG_LIMIT

if TYPE_CHECKING:
    from pydantic import TypeAdapter

CONTENTS = "contents.json"
Repo = Annotated[str, Bounds(pattern=r"^[A-Za-z0-9_][A-Za-z0-9._-]{0,95}/[A-Za-z0-9_][A-Za-z0-9._-]{0,95}$")]
File = Annotated[str, Bounds(pattern=r"^(config\.json|[A-Za-z0-9][A-Za-z0-9@._-]{0,95}\.safetensors)$")]
Branch = Annotated[str, Bounds(pattern=r"^[A-Za-z0-9_][A-Za-z0-9._-]{0,95}(/[A-Za-z0-9_][A-Za-z0-9._-]{0,95}){0,9}$")]


@dataclass(frozen=True, kw_only=True)
class Parcel(Record):
    """A file that is carried: its place at the Hub, and its hash. ``branch`` is the one that it was pulled from."""

    repo_id: Repo
    revision: Commit
    filename: File
    branch: Branch | None = None
    size: Annotated[int, Bounds(ge=0)]
    sha256: Sha256

    @property
    def place(self) -> Path:
        """Its path in the folder."""
        return Path(self.repo_id.replace("/", "--"), self.revision, self.filename)


@dataclass(frozen=True, kw_only=True)
class Contents(Record):
    """The manifest of a folder."""

    schema_version: Literal[1]
    files: tuple[Parcel, ...]


@cache
def _adapter() -> TypeAdapter[Contents]:
    from pydantic import TypeAdapter

    return TypeAdapter(Contents)


def read_contents(path: Path) -> Contents:
    """The manifest at ``path``.

    Raises:
        Unreachable: there is none.
        IntegrityError: it is malformed; the message names the place.
    """
    from pydantic import ValidationError

    if not path.is_file():
        raise Unreachable(f"'{path.parent}' holds no {CONTENTS}: give a folder that `zoo pull --to` wrote")
    try:
        return _adapter().validate_json(read_utf8(path))
    except ValidationError as error:
        raise IntegrityError(f"'{path}' is wrong{first_fault(error)}") from None


def check_target(folder: Path) -> None:
    """Raise UsageError or IntegrityError if ``folder`` cannot take files: it is a file, or another's folder."""
    check_folder(folder)
    if (folder / CONTENTS).exists():
        read_contents(folder / CONTENTS)
    elif folder.is_dir() and any(folder.iterdir()):
        raise UsageError(f"'{folder}' holds other files, and no {CONTENTS}: choose a new folder")


def write(files: Iterable[Pulled], folder: Path) -> list[Path]:
    """Copy the pulled ``files`` into ``folder``, beside those that it has; returns where. Files that only the package
    has are left out: the other machine has the package, too.

    Raises:
        UsageError, IntegrityError: see :func:`check_target`; or a copy does not have its hash.
    """
    parcels = {
        Parcel(
            repo_id=file.repo_id,
            revision=file.revision,
            filename=file.filename,
            branch=file.branch,
            size=file.size,
            sha256=file.sha256,
        ): file.path
        for file in files
        if file.repo_id and file.revision and file.filename
    }
    if not parcels:
        return []
    check_target(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder):
        before = read_contents(folder / CONTENTS).files if (folder / CONTENTS).exists() else ()
        for parcel, path in parcels.items():
            target = folder / parcel.place
            target.parent.mkdir(parents=True, exist_ok=True)
            copy_atomic(path, target)
            check_sha256(target, parcel.sha256)
        contents = Contents(schema_version=1, files=(*(one for one in before if one not in parcels), *parcels))
        write_atomic(folder / CONTENTS, json.dumps(asdict(contents), indent=2) + "\n")
    return [folder / parcel.place for parcel in parcels]


def take_in(folder: Path, cache_dir: Path | str | None = None) -> list[Download]:
    """Put the files of ``folder`` into the cache of the Hub's client, where ``load`` finds them; None: the default one.

    All files are checked before the first is taken over.

    Raises:
        Unreachable: ``folder`` is not there, was not written by :func:`write`, or the cache cannot be written.
        IntegrityError: its manifest is malformed, a file is missing, damaged or not a plain file, or the cache has
            another one of the same commit.
    """
    from huggingface_hub import constants

    parcels = tuple(dict.fromkeys(read_contents(folder / CONTENTS).files))
    for parcel in parcels:
        path = folder / parcel.place
        if not path.is_file() or kind_of(path, follow=False):
            raise IntegrityError(f"'{path}' is missing, or not a plain file: copy the folder again")
        size = path.stat().st_size
        check_size(size, CONFIG_LIMIT if parcel.filename == CONFIG else parcel.size, f"'{path}'")
        check_sha256(path, parcel.sha256)
    root = Path(cache_dir or constants.HF_HUB_CACHE)
    try:
        return [_placed(parcel, folder / parcel.place, root) for parcel in parcels]
    except OSError as error:
        if error.filename is None:  # such as a full disk
            raise
        raise Unreachable(
            f"the Hub's cache '{root}' cannot be written ({error.strerror}): set HF_HUB_CACHE to a folder that can be"
        ) from None


def _placed(parcel: Parcel, source: Path, root: Path) -> Download:
    """The file in the client's cache, laid out as the client does: a blob under its hash, and a link to it."""
    from huggingface_hub.file_download import repo_folder_name

    storage = root / repo_folder_name(repo_id=parcel.repo_id, repo_type="model")
    etag = git_hash(source.read_bytes()) if parcel.filename == CONFIG else parcel.sha256
    blob, pointer = storage / "blobs" / etag, storage / "snapshots" / parcel.revision / parcel.filename
    for place in (blob, pointer):
        place.parent.mkdir(parents=True, exist_ok=True)
    if not _whole(blob):
        copy_atomic(source, blob)
        check_blob(blob)
    if pointer.exists() and not pointer.samefile(blob) and sha256_file(pointer) != parcel.sha256:
        if _whole(pointer):
            raise IntegrityError(
                f"'{source}' is not the file that the Hub's cache has of the same commit: if that is the wrong one, "
                f"remove it with `zoo cache rm {parcel.repo_id}`, else do not use the folder"
            )
        pointer.unlink()
    if not pointer.exists():
        try:
            os.symlink(os.path.relpath(blob, pointer.parent), pointer)
        except OSError:  # Windows, or a file system without links
            copy_atomic(source, pointer)
    if parcel.branch:
        ref = storage / "refs" / parcel.branch
        ref.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(ref, parcel.revision)
    at, size = str(pointer.absolute()), source.stat().st_size
    found = Download("model", parcel.repo_id, parcel.revision, parcel.filename, at, size, parcel.sha256)
    found.write()
    return found


def _whole(blob: Path) -> bool:
    with suppress(IntegrityError, OSError):
        check_blob(blob)
        return True
    return False
