"""What the Hub's client says: its errors in sentences of ours, and its output without secrets."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from zoo.system.errors import Unreachable, first_line

if TYPE_CHECKING:
    from logging import LogRecord


def refusal(error: BaseException, what: str, repo_id: str) -> Unreachable:
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
