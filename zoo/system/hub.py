"""Files of the Hugging Face Hub: from the cache of its client, else downloaded."""

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
    """The Hub's SHA-256 of a cached file: the cache names large files by it. None for small files."""
    name = path.resolve().name
    return name if _SHA256.fullmatch(name) else None


def check_blob(path: Path) -> None:
    """Raise IntegrityError if ``path`` is a cached large file that does not have the Hub's SHA-256."""
    if promised := promised_sha256(path):
        check_sha256(path, promised)


@dataclass(frozen=True)
class HubFiles:
    """Access to the Hub: the client's cache folder (None: the default), and whether the network may be used."""

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
        """The path of the file, after ``check``. A damaged file is downloaded again once: the client checks sizes only.

        Raises:
            Unreachable: the file is not cached, and the Hub does not have it, cannot be reached or must not be used.
            IntegrityError: ``check`` fails, also after a new download.
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
            with bars(self.progress):
                return Path(hf_hub_download(repo_id, filename, revision=revision, cache_dir=self.cache_dir, **options))
        except errors.HFValidationError:
            raise UsageError(f"'{repo_id}' is not a Hub repository: write it as organisation/name") from None
        except errors.LocalEntryNotFoundError as error:
            why = "the network must not be used" if self._offline else "the Hub cannot be reached"
            raise Unreachable(f"{file} is not in the Hub's cache, and {why}") from error
        except errors.HfHubHTTPError as error:
            message = error.server_message or str(error).splitlines()[0]
            raise Unreachable(f"the Hub refuses {file}: {message}") from error
        except (OSError, ValueError, errors.HTTPError) as error:  # HTTPError: of the HTTP client in use
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EDQUOT):
                raise  # disk errors keep their message
            raise Unreachable(f"{file} could not be fetched ({type(error).__name__}): try again") from error


@contextmanager
def bars(shown: bool) -> Iterator[None]:
    """Show the client's progress bars within the block, or not."""
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    if shown or are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()
