"""Files of the Hugging Face Hub: from the cache of its client, else downloaded, checked, and recorded."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from zoo.system.client import client_output, refusal
from zoo.system.downloads import (
    COMMIT,
    Download,
    check_blob,
    check_hash,
    commit_of,
    remove_partial,
    stated_hash,
    stated_sha256,
)
from zoo.system.errors import IntegrityError, Unreachable, UsageError
from zoo.system.files import sha256_file

RepoType = Literal["model", "dataset"]


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

        if not known and not stated_hash(path):
            url = hf_hub_url(file.repo_id, file.filename, revision=file.revision, repo_type=file.repo_type)
            with self._asking(file):
                check_hash(path, get_hf_file_metadata(url, retry_on_errors=True).etag or "")

    def _record(self, file: _File, path: Path) -> None:
        size, sha256 = path.stat().st_size, stated_sha256(path) or sha256_file(path)
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
        return refusal(cause, what, repo_id)


def check_size(size: int | None, limit: int | None, what: str) -> None:
    """Raise IntegrityError if ``size`` is above ``limit``, both in bytes; None is unknown, or no limit."""
    if limit is not None and size is not None and size > limit:
        raise IntegrityError(f"{what} has {size:,} bytes, where at most {limit:,} are expected: it is not read")
