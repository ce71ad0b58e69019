"""Files of the Hugging Face Hub: from its client's cache, else over the network."""

from __future__ import annotations

import errno
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from zoo.system.errors import IntegrityError, Unreachable, UsageError
from zoo.system.files import check_sha256

_SHA256 = re.compile(r"[0-9a-f]{64}")


def promised_sha256(path: Path) -> str | None:
    """The SHA-256 that the Hub promised of a cached file: it names large files by it, and its cache keeps the name. Of
    small files nothing is known."""
    name = path.resolve().name
    return name if _SHA256.fullmatch(name) else None


def check_blob(path: Path) -> None:
    """Raise IntegrityError if ``path`` is a cached large file whose bytes are not those that the Hub promised."""
    if promised := promised_sha256(path):
        check_sha256(path, promised)


@dataclass(frozen=True)
class HubFiles:
    """How to get at the Hub: where its client's cache is (None: its default), and whether the network may be used."""

    cache_dir: str | Path | None = None
    offline: bool = False
    progress: bool = True

    def fetch(
        self,
        repo_id: str,
        filename: str,
        revision: str | None,
        *,
        check: Callable[[Path], None] = check_blob,
        repo_type: Literal["model", "dataset"] = "model",
    ) -> Path:
        """The file, checked. The client does not notice damage that keeps the size: such a file is fetched once more.

        Raises:
            Unreachable: it is not cached, and the Hub has it not, or may not or cannot be asked.
            IntegrityError: it fails ``check``, fetched afresh too.
            UsageError: the repository's name is malformed.
        """
        path = self._cached_or_fetched(repo_id, filename, revision, repo_type=repo_type)
        try:
            check(path)
        except IntegrityError:
            if self._offline:
                raise
            path = self._get(repo_id, filename, revision, repo_type=repo_type, force_download=True)
            check(path)
        return path

    @property
    def _offline(self) -> bool:
        from huggingface_hub import constants

        return self.offline or constants.HF_HUB_OFFLINE

    def _cached_or_fetched(self, repo_id: str, filename: str, revision: str | None, **options: Any) -> Path:
        from huggingface_hub.errors import LocalEntryNotFoundError

        try:
            return self._get(repo_id, filename, revision, local_files_only=True, **options)
        except Unreachable as error:
            if self._offline or not isinstance(error.__cause__, LocalEntryNotFoundError):
                raise
        return self._get(repo_id, filename, revision, **options)

    def _get(self, repo_id: str, filename: str, revision: str | None, **options: Any) -> Path:
        from huggingface_hub import errors, hf_hub_download

        file = f"'{filename}' of '{repo_id}'" + (f" at {revision}" if revision else "")
        try:
            with _bars(self.progress):
                return Path(hf_hub_download(repo_id, filename, revision=revision, cache_dir=self.cache_dir, **options))
        except errors.HFValidationError:
            raise UsageError(f"'{repo_id}' is not a Hub repository: write it as organisation/name") from None
        except errors.LocalEntryNotFoundError as error:
            why = "the network is not to be used" if self._offline else "the Hub cannot be reached"
            raise Unreachable(f"{file} is not in the Hub's cache, and {why}") from error
        except errors.HfHubHTTPError as error:
            told = error.server_message or str(error).splitlines()[0]
            raise Unreachable(f"the Hub does not hand out {file}: {told}") from error
        except (OSError, ValueError, errors.HTTPError) as error:  # HTTPError: of whichever HTTP client it uses
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EDQUOT):
                raise  # the disk's trouble, in its own words
            raise Unreachable(f"{file} could not be fetched ({type(error).__name__}): try again") from error


@contextmanager
def _bars(shown: bool) -> Iterator[None]:
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    if shown or are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()
