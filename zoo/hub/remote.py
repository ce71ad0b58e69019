"""A model repository on the Hub as push sees it: look, create, commit. Errors are one sentence, without the token."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from zoo.system.client import without_token
from zoo.system.downloads import git_hash
from zoo.system.errors import IntegrityError, Unreachable, UsageError, first_line
from zoo.system.files import sha256_file

LOGIN = "run `hf auth login`, or set HF_TOKEN, with a token that may write"
GIT = ".gitattributes"  # the Hub's own, which says what is stored as LFS


@dataclass(frozen=True)
class Held:
    """What a repository holds: its head commit, and for every file its SHA-256, or git's id where it is small."""

    revision: str
    private: bool
    files: Mapping[str, str]

    def changes(self, wanted: Mapping[str, Path]) -> tuple[list[str], list[str]]:
        """The files to write and those to delete, so that it holds ``wanted`` alone, besides the Hub's own file."""
        changed = [name for name, path in wanted.items() if self.files.get(name) not in _ids(path)]
        return changed, [name for name in self.files if name not in wanted and name != GIT]


def check_token() -> None:
    """Ask the Hub whether there is a token that it takes, and that may write.

    Raises:
        Unreachable: there is none, it is refused or read-only, or the Hub cannot be reached.
    """
    from huggingface_hub import HfApi, constants, get_token

    if constants.HF_HUB_OFFLINE:
        raise Unreachable("a push needs the Hub, and HF_HUB_OFFLINE is set: unset it")
    if get_token() is None:
        raise Unreachable(f"the Hub takes no push without a token: {LOGIN}")
    with _asking("the account"):
        access = HfApi().whoami().get("auth", {}).get("accessToken", {})
    if access.get("role") == "read":
        raise Unreachable(f"the Hub's token is for reading alone: {LOGIN}")


def look(repo_id: str, revision: str | None = None) -> Held | None:
    """What ``repo_id`` holds at ``revision``, by default its head; None where there is no such repository.

    Raises:
        Unreachable: the Hub refuses it or cannot be reached.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    with _asking(f"'{repo_id}'"):
        try:
            found = HfApi().model_info(repo_id, revision=revision, files_metadata=True)
        except GatedRepoError:
            raise
        except RepositoryNotFoundError:
            return None
    files = {one.rfilename: one.lfs.sha256 if one.lfs else one.blob_id or "" for one in found.siblings or ()}
    assert found.sha is not None
    return Held(found.sha, bool(found.private), files)


def check_may_write(repo_id: str) -> None:
    """Raise Unreachable unless the token may write to the repository ``repo_id``, which exists."""
    from huggingface_hub import HfApi

    with _asking(f"'{repo_id}'"):
        HfApi().auth_check(repo_id, write=True)


def create(repo_id: str, *, private: bool) -> Held:
    """Make the repository; without ``private`` it is what the organisation makes of new ones.

    Raises:
        Unreachable: the Hub refuses it or cannot be reached.
    """
    from huggingface_hub import HfApi

    with _asking(f"'{repo_id}'"):
        HfApi().create_repo(repo_id, private=private or None)
    held = look(repo_id)
    if held is None:
        raise Unreachable(f"the Hub made '{repo_id}' and does not show it: try again")
    return held


def commit(repo_id: str, held: Held, wanted: Mapping[str, Path], message: str) -> str:
    """Make ``wanted`` the content of the repository by one commit on top of ``held``; returns the new commit.

    Raises:
        IntegrityError: it has changed since ``held``, and was left as it is; or it does not hold ``wanted`` now.
        Unreachable: the Hub refuses the commit or cannot be reached.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationCopy, CommitOperationDelete, HfApi

    changed, gone = held.changes(wanted)
    operations: list[CommitOperationAdd | CommitOperationCopy | CommitOperationDelete] = [
        *(CommitOperationAdd(name, str(wanted[name])) for name in changed),
        *(CommitOperationDelete(name, is_folder=False) for name in gone),
    ]
    with _asking(f"'{repo_id}'"):
        made = HfApi().create_commit(repo_id, operations, commit_message=message, parent_commit=held.revision)
    there = look(repo_id, made.oid)
    if there is None or any(there.changes(wanted)):
        raise IntegrityError(f"'{repo_id}' does not hold at {made.oid} what was sent: the registry was not changed")
    return made.oid


def collect(title: str, namespace: str, repo_ids: Collection[str], *, private: bool) -> str:
    """Put repositories into the collection called ``title``, which is made if it is missing; returns its address.

    Raises:
        Unreachable: the Hub refuses it or cannot be reached.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    with _asking(f"the collection '{title}'"):
        made = api.create_collection(title, namespace=namespace, private=private, exists_ok=True)
        for repo_id in repo_ids:
            api.add_collection_item(made.slug, repo_id, "model", exists_ok=True)
    return made.url


def _ids(path: Path) -> tuple[str, str]:
    return sha256_file(path), git_hash(path.read_bytes())


@contextmanager
def _asking(what: str) -> Iterator[None]:
    """Turn the client's errors into one sentence about ``what``."""
    from huggingface_hub import errors

    try:
        yield
    except errors.HfHubHTTPError as error:
        status, said = error.response.status_code, without_token(error.server_message or first_line(error)).rstrip(".")
        if status == 412:
            raise IntegrityError(
                f"{what} has a commit that was not there before, and nothing was written: look at it, and push again"
            ) from None
        if status == 401:
            raise Unreachable(f"the Hub does not take the token for {what} ({said}): {LOGIN}") from None
        if status == 403:
            raise Unreachable(f"the Hub does not let this token write to {what} ({said})") from None
        again = "try again: what is there already is not sent twice" if status == 429 or status >= 500 else "see there"
        raise Unreachable(f"the Hub refuses {what} with {status} ({said}): {again}") from None
    except ValueError as error:  # the client's own checks, and the Hub's of the card's metadata
        raise UsageError(f"the client of the Hub refuses {what}: {without_token(first_line(error))}") from None
    except (OSError, errors.HTTPError) as error:
        raise Unreachable(f"the Hub could not be reached for {what} ({type(error).__name__}): try again") from None
