"""Files of the Hugging Face Hub: from the cache of its client, else downloaded, checked, and recorded."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from zoo.system.errors import IntegrityError, Unreachable, UsageError, first_line
from zoo.system.files import cache_root, check_sha256, sha256_file, stored_json, write_atomic

if TYPE_CHECKING:
    from logging import LogRecord

COMMIT = re.compile(r"[0-9a-f]{40}")
_HASH = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
RepoType = Literal["model", "dataset"]


def promised_sha256(path: Path) -> str | None:
    """The SHA-256 of a cached file as the cache states it, which names large files by it; where it cannot link to these
    names, as the record of the download states it. None if neither does."""
    promised = _promised(path) or ""
    return promised if len(promised) == 64 else None


def check_blob(path: Path) -> None:
    """Raise IntegrityError if ``path`` is a cached file without the hash that the cache has of the Hub: the SHA-256 of
    a large file, git's hash of a small one (from some mirrors its SHA-1)."""
    _check_hash(path, _promised(path) or "")


def _promised(path: Path) -> str | None:
    if _HASH.fullmatch(name := path.resolve().name):
        return name
    with suppress(OSError, IntegrityError, LookupError, TypeError):
        return str(stored_json(_note(path))["sha256"])
    return None


def _check_hash(path: Path, promised: str) -> None:
    if len(promised) == 64:
        check_sha256(path, promised)
    elif COMMIT.fullmatch(promised):
        content = path.read_bytes()
        if promised not in (git_hash(content), hashlib.sha1(content).hexdigest()):
            raise IntegrityError(f"'{path}' was altered or damaged: it does not have the Hub's hash")


def git_hash(content: bytes) -> str:
    """The name that git gives to a file with this content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def commit_of(path: Path, filename: str) -> str:
    """The commit that the file ``filename`` of a repository is from, by its ``path`` in the client's cache."""
    return path.parents[filename.count("/")].name


@dataclass(frozen=True)
class Download:
    """The record of a file that was put into the client's cache: only such files are removed from there again."""

    repo_type: str
    repo_id: str
    revision: str  # the commit
    filename: str
    path: str
    size: int
    sha256: str

    @property
    def cache(self) -> Path:
        """The client's cache folder that the file is in: ``CACHE/models--org--name/snapshots/COMMIT/FILENAME``."""
        return Path(self.path).parents[3 + self.filename.count("/")]

    @property
    def placed(self) -> bool:
        """Whether its path is where the client puts the file."""
        repository = f"{self.repo_type}s--{self.repo_id.replace('/', '--')}"
        place = Path(repository, "snapshots", self.revision, self.filename)
        return COMMIT.fullmatch(self.revision) is not None and Path(self.path).parts[-len(place.parts) :] == place.parts

    @property
    def note(self) -> Path:
        """The file of this record."""
        return _note(Path(self.path))

    def write(self) -> None:
        """Store the record; where the cache cannot be written, the file is used all the same."""
        with suppress(OSError):
            self.note.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(self.note, json.dumps(asdict(self), indent=2) + "\n")


def _note(path: Path) -> Path:
    return cache_root() / "downloads" / f"{hashlib.sha256(os.fsencode(path.absolute())).hexdigest()}.json"


@dataclass(frozen=True)
class _File:
    """A file of a repository, and how it is called in messages."""

    repo_id: str
    filename: str
    revision: str | None
    repo_type: RepoType

    @property
    def pinned(self) -> bool:
        return COMMIT.fullmatch(self.revision or "") is not None

    @property
    def title(self) -> str:
        return f"'{self.filename}' of '{self.repo_id}'" + (f" at {self.revision}" if self.revision else "")

    def malformed(self) -> UsageError:
        return UsageError(f"'{self.repo_id}' is not a Hub repository: write it as organisation/name")


_barred = 0  # blocks of without_network that are entered


@contextmanager
def without_network(wanted: bool = True) -> Iterator[None]:
    """Inside, no access to the Hub uses the network, whoever asks for it; nothing changes if not ``wanted``."""
    global _barred
    _barred += wanted
    try:
        yield
    finally:
        _barred -= wanted


@dataclass(frozen=True)
class HubFiles:
    """Access to the Hub: the client's cache folder (None: the default), and whether the network may be used.

    Attributes:
        newest: ask the Hub first what a branch holds now; False: what the cache has of it is taken.
        seen: called with the path of each file that is downloaded.
    """

    cache_dir: str | Path | None = None
    offline: bool = False
    progress: bool = True
    newest: bool = False
    seen: Callable[[Path], Any] = lambda path: None

    def fetch(
        self,
        repo_id: str,
        filename: str,
        revision: str | None,
        *,
        check: Callable[[Path], None] = check_blob,
        limit: int | None = None,
        repo_type: RepoType = "model",
    ) -> Path:
        """The path of the file, after ``check``. A damaged file is downloaded again once: the client checks sizes only.

        Args:
            limit: bytes that the file may have; a larger one is not downloaded.

        Raises:
            Unreachable: the file is not cached, and the Hub does not have it, refuses it, cannot be reached or must not
                be used; or the cache cannot be written.
            IntegrityError: ``check`` fails, also after a new download; or the file is larger than ``limit``.
            UsageError: the repository's name is malformed.
        """
        file = _File(repo_id, filename, revision, repo_type)
        path = None if self.newest and not self._offline and not file.pinned else self._cached(file)
        made = downloaded = path is None
        if path is None:
            if self.newest or limit is not None:
                stated = self._get(file, dry_run=True)
                made, downloaded = not Path(stated.local_path).exists(), stated.will_download
                check_size(stated.file_size, limit, file.title)
            path = Path(self._get(file))
        check_size(path.stat().st_size, limit, f"'{path}'")
        file = replace(file, revision=revision if file.pinned else commit_of(path, filename))
        try:
            check(path)
            self._compare(path, file, known=not downloaded or check is not check_blob)
        except IntegrityError as damaged:
            if self._offline:
                raise
            downloaded = True
            if not path.is_symlink():  # the client replaces the target of a link only
                with suppress(OSError):
                    path.unlink()
            try:
                path = Path(self._get(file, force_download=True))
            except Unreachable as error:
                raise IntegrityError(f"{damaged}; another download failed: {error}") from None
            check(path)
            self._compare(path, file, known=check is not check_blob)
        if made:
            self._record(file, path)
        if downloaded:
            self.seen(path)
        return path

    @property
    def _offline(self) -> bool:
        from huggingface_hub import constants

        return self.offline or _barred > 0 or constants.HF_HUB_OFFLINE

    def _cached(self, file: _File) -> Path | None:
        """The path in the cache; None if the file is not there, and may be downloaded."""
        from huggingface_hub import try_to_load_from_cache
        from huggingface_hub.errors import HFValidationError

        try:  # hf_hub_download asks the Hub for a list of programs first, even with local_files_only
            found = try_to_load_from_cache(
                file.repo_id, file.filename, self.cache_dir, revision=file.revision, repo_type=file.repo_type
            )
        except HFValidationError:
            raise file.malformed() from None
        if isinstance(found, str):
            return Path(found)
        if self._offline:
            raise Unreachable(f"{file.title} is not in the Hub's cache, and the network must not be used")
        return None

    def _compare(self, path: Path, file: _File, *, known: bool) -> None:
        """Compare a new file with the hash that the Hub states now, where the cache cannot link to files that are named
        by it; not if its hash is ``known``."""
        from huggingface_hub import get_hf_file_metadata, hf_hub_url

        if not known and not _promised(path):
            url = hf_hub_url(file.repo_id, file.filename, revision=file.revision, repo_type=file.repo_type)
            with self._asking(file):
                _check_hash(path, get_hf_file_metadata(url, retry_on_errors=True).etag or "")

    def _record(self, file: _File, path: Path) -> None:
        size, sha256 = path.stat().st_size, promised_sha256(path) or sha256_file(path)
        commit, place = commit_of(path, file.filename), str(path.absolute())
        found = Download(file.repo_type, file.repo_id, commit, file.filename, place, size, sha256)
        found.write()
        remove_partial(found.cache, path.parents[2 + file.filename.count("/")].name)

    def _get(self, file: _File, **options: Any) -> Any:
        from huggingface_hub import hf_hub_download

        with self._asking(file):
            return hf_hub_download(
                file.repo_id,
                file.filename,
                revision=file.revision,
                repo_type=file.repo_type,
                cache_dir=self.cache_dir,
                **options,
            )

    @contextmanager
    def _asking(self, file: _File) -> Iterator[None]:
        """Turn the client's errors into ours."""
        from huggingface_hub import errors

        try:
            with client_output(self.progress):
                yield
        except errors.HFValidationError:
            raise file.malformed() from None
        except (OSError, ValueError, ImportError, errors.HTTPError) as error:  # HTTPError: of the HTTP client in use
            raise self._sentence(error, file.title, file.repo_id) from error

    def _sentence(self, error: Exception, what: str, repo_id: str) -> Exception:
        """What to raise for an error of the client."""
        from huggingface_hub import constants, errors

        if isinstance(error, OSError) and not isinstance(error, errors.LocalEntryNotFoundError | errors.HTTPError):
            if error.filename is not None:
                place = self.cache_dir or constants.HF_HUB_CACHE
                return Unreachable(
                    f"{what} is not in the Hub's cache '{place}', which cannot be written ({error.strerror}): set "
                    "HF_HUB_CACHE to a folder that can be, or carry the file over with `zoo cache import`"
                )
            if error.errno is not None and not isinstance(error, ConnectionError | TimeoutError):
                return error  # such as a full disk
        cause = error if isinstance(error, errors.HTTPError) else error.__cause__ or error
        return _refusal(cause, what, repo_id)


def _refusal(error: BaseException, what: str, repo_id: str) -> Unreachable:
    """The sentence for an answer of the Hub, or for none. Tokens are never in it."""
    from huggingface_hub import constants, errors

    status = error.response.status_code if isinstance(error, errors.HfHubHTTPError) else None
    endpoint = without_token(constants.ENDPOINT)
    login = "log in with `hf auth login`, or set HF_TOKEN"
    if isinstance(error, errors.GatedRepoError):
        return Unreachable(f"{what} is gated: ask for access on the page of '{repo_id}' at the Hub, and {login}")
    if isinstance(error, errors.RepositoryNotFoundError):
        return Unreachable(f"{what}: the Hub has no such repository, or it is private: check the name, or {login}")
    if isinstance(error, errors.RevisionNotFoundError):
        return Unreachable(f"{what}: the repository has no such revision")
    if isinstance(error, errors.EntryNotFoundError) and status is not None:
        return Unreachable(f"{what}: the repository has no such file")
    if status == 401:
        return Unreachable(f"{what}: the Hub does not accept the token in HF_TOKEN or of `hf auth login`: log in again")
    if status == 429:
        return Unreachable(f"{what}: the Hub answers that there were too many requests: try again in some minutes")
    if status is not None and status >= 500:
        return Unreachable(f"{what}: the Hub is out of order (HTTP status {status}): try again later")
    if isinstance(error, errors.HfHubHTTPError):
        return Unreachable(f"the Hub refuses {what}: {without_token(error.server_message or first_line(error))}")
    if isinstance(error, errors.FileMetadataError):
        return Unreachable(f"{what}: '{endpoint}' does not answer as a Hub: check HF_ENDPOINT and the proxy")
    if isinstance(error, errors.HTTPError | errors.LocalEntryNotFoundError):
        return Unreachable(
            f"{what} is not in the Hub's cache, and the Hub at '{endpoint}' cannot be reached "
            f"({type(error).__name__}): check the network, HF_ENDPOINT and the proxy"
        )
    if isinstance(error, ImportError):
        return Unreachable(f"{what} could not be fetched: a SOCKS proxy needs `pip install 'httpx[socks]'`")
    if isinstance(error, UnicodeEncodeError):
        return Unreachable(f"{what} could not be fetched: the token has letters that no token has: {login}")
    return Unreachable(f"{what} could not be fetched ({type(error).__name__}): try again")


def without_token(text: str) -> str:
    """``text`` without secrets: the user's token, which a server may repeat, and passwords and signatures in URLs."""
    from huggingface_hub import get_token

    token = get_token()
    text = text.replace(token, "***") if token else text
    return re.sub(r"(https?://)(?:[^\s/@]*@)?([^\s?'\"]*)(?:\?[^\s'\"]*)?", r"\1\2", text)


def _without_secrets(record: LogRecord) -> bool:
    record.msg, record.args = without_token(record.getMessage()), ()
    return True


def check_size(size: int | None, limit: int | None, what: str) -> None:
    """Raise IntegrityError if ``size`` is above ``limit``, both in bytes; None is unknown, or no limit."""
    if limit is not None and size is not None and size > limit:
        raise IntegrityError(f"{what} has {size:,} bytes, where at most {limit:,} are expected: it is not read")


def remove_partial(cache: Path, repo: str) -> int:
    """Remove what interrupted downloads left of the repository folder ``repo`` in a cache; returns the bytes freed.

    The client holds a lock while it downloads: a file whose lock is free belongs to a process that was killed.
    """
    from filelock import FileLock, Timeout

    freed = 0
    for path in (cache / repo / "blobs").glob("*.incomplete"):
        lock = cache / ".locks" / repo / f"{path.name.partition('.')[0]}.lock"
        with suppress(OSError, Timeout, NotImplementedError), FileLock(lock, 0) if lock.exists() else nullcontext():
            size = path.stat().st_size
            path.unlink()
            freed += size
    return freed


@contextmanager
def client_output(shown: bool) -> Iterator[None]:
    """Without ``shown`` the client draws no bars and prints no warnings; addresses in its warnings have no secrets."""
    from huggingface_hub.utils import (
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
        logging,
    )

    if shown:
        handlers = logging.get_logger().handlers
        for handler in handlers:
            handler.addFilter(_without_secrets)
        try:
            yield
        finally:
            for handler in handlers:
                handler.removeFilter(_without_secrets)
        return
    bars, level = not are_progress_bars_disabled(), logging.get_verbosity()
    disable_progress_bars()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            enable_progress_bars()
