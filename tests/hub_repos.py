"""What a Hub on loopback holds: repositories with their history, users with their tokens, collections."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

LARGE = (".safetensors", ".onnx", ".parquet", ".npz", ".npy", ".bin", ".pt", ".pkl")  # stored as LFS, like at the Hub
COMMIT = re.compile(r"[0-9a-f]{40}")


class Refused(Exception):
    """The Hub's answer to a request that it does not grant."""

    def __init__(self, status: int, message: str, code: str = "", **more: Any) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.more = status, message, code, more


@dataclass(frozen=True)
class User:
    """The owner of a token: what it may write to, and the gated repositories that it has been granted."""

    name: str
    orgs: tuple[str, ...] = ()
    may_write: bool = True
    granted: tuple[str, ...] = ()


@dataclass(frozen=True)
class Blob:
    """The content of a file, and how the Hub stores it."""

    content: bytes
    large: bool

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def oid(self) -> str:
        """Git's hash: of the content, or of the LFS pointer to it."""
        stored = self.content
        if self.large:
            text = f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {len(stored)}\n"
            stored = text.encode()
        return hashlib.sha1(b"blob %d\0" % len(stored) + stored).hexdigest()

    @property
    def etag(self) -> str:
        return self.sha256 if self.large else self.oid

    def facts(self) -> dict[str, Any]:
        lfs = {"oid": self.sha256, "sha256": self.sha256, "size": len(self.content), "pointerSize": 134}
        return {"size": len(self.content), "oid": self.oid, "blobId": self.oid, **({"lfs": lfs} if self.large else {})}


@dataclass(frozen=True)
class Commit:
    sha: str
    parent: str | None
    title: str
    message: str
    author: str
    date: str
    files: Mapping[str, Blob]


@dataclass
class Repo:
    """A repository: commits by hash, and the head of each branch."""

    kind: str  # model or dataset
    id: str
    private: bool = False
    gated: bool = False
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)

    def at(self, revision: str) -> Commit:
        sha = self.branches.get(revision, revision)
        if sha not in self.commits:
            raise Refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return self.commits[sha]

    def commit(
        self,
        files: Mapping[str, Blob],
        *,
        title: str = "Upload",
        message: str = "",
        author: str = "somebody",
        branch: str = "main",
    ) -> Commit:
        """A new commit whose whole content is ``files``; it becomes the head of ``branch``."""
        parent = self.branches.get(branch)
        told = f"{self.kind} {self.id} {parent} {title} {sorted((path, blob.oid) for path, blob in files.items())}"
        commit = Commit(
            hashlib.sha1(told.encode()).hexdigest(), parent, title, message, author, now(), dict(sorted(files.items()))
        )
        self.commits[commit.sha] = commit
        self.branches[branch] = commit.sha
        return commit

    def history(self, revision: str) -> list[Commit]:
        """The commits up to ``revision``, the newest first."""
        found = [self.at(revision)]
        while found[-1].parent:
            found.append(self.commits[found[-1].parent])
        return found


@dataclass
class Hub:
    """All repositories, users by token, LFS objects by SHA-256, and collections by slug."""

    repos: dict[tuple[str, str], Repo] = field(default_factory=dict)
    users: dict[str, User] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    collections: dict[str, dict[str, Any]] = field(default_factory=dict)

    def add(
        self, repo_id: str, files: Mapping[str, bytes], *, kind: str = "model", private: bool = False, **options: Any
    ) -> str:
        """Commit ``files`` as the whole content of a repository, which is made if it is missing; returns the commit.

        Options: ``gated``, and those of :meth:`Repo.commit`.
        """
        repo = self.repos.setdefault((kind, repo_id), Repo(kind, repo_id, private, options.pop("gated", False)))
        blobs = {path: Blob(content, is_large(path, content)) for path, content in files.items()}
        self.objects |= {blob.sha256: blob.content for blob in blobs.values() if blob.large}
        return repo.commit(blobs, **options).sha

    def user(self, token: str | None) -> User | None:
        if token is None:
            return None
        if token not in self.users:
            raise Refused(401, "Invalid credentials in Authorization header")
        return self.users[token]

    def visible(self, kind: str, repo_id: str, user: User | None) -> Repo:
        """The repository, if ``user`` may know that it exists."""
        repo = self.repos.get((kind, repo_id))
        if repo is None or (repo.private and not owns(user, repo_id)):
            raise Refused(404 if user else 401, "Repository not found", "RepoNotFound")
        return repo

    def readable(self, kind: str, repo_id: str, user: User | None) -> Repo:
        """The repository, if ``user`` may read its files."""
        repo = self.visible(kind, repo_id, user)
        if repo.gated and not owns(user, repo_id) and repo_id not in (user.granted if user else ()):
            why = "" if user is None else " and you are not in the authorized list"
            raise Refused(403 if user else 401, f"Access to {kind} {repo_id} is restricted{why}.", "GatedRepo")
        return repo

    def writable(self, kind: str, repo_id: str, user: User | None) -> Repo:
        repo = self.visible(kind, repo_id, user)
        check_owner(user, repo_id)
        return repo

    def create(self, kind: str, repo_id: str, user: User | None, *, private: bool) -> Repo:
        check_owner(user, repo_id)
        if (kind, repo_id) in self.repos:
            raise Refused(409, f"You already created this {kind} repo: {repo_id}", url=f"/{repo_id}")
        repo = self.repos[kind, repo_id] = Repo(kind, repo_id, private)
        repo.commit({".gitattributes": Blob(b"*.safetensors filter=lfs\n", False)}, title="initial commit")
        return repo

    def apply(
        self, repo: Repo, branch: str, header: Mapping[str, Any], operations: Iterable[Mapping[str, Any]], author: str
    ) -> Commit:
        """The commit that a client asks for; nothing changes if a part of it is refused."""
        head = repo.at(branch)
        if header.get("parentCommit") not in (None, head.sha):
            raise Refused(412, "A commit has happened since. Please refresh and try again.")
        files = dict(head.files)
        for operation in operations:
            kind, value = operation["key"], operation["value"]
            path = value["path"]
            if kind == "file":
                files[path] = Blob(value["decoded"], False)
            elif kind == "lfsFile":
                if value["oid"] not in self.objects:
                    raise Refused(400, f"Your push was rejected because an LFS object does not exist: {value['oid']}")
                files[path] = Blob(self.objects[value["oid"]], True)
            elif kind == "deletedFile":
                if path not in files:
                    raise Refused(404, f"A file with this name doesn't exist: {path}", "EntryNotFound")
                del files[path]
            elif kind == "deletedFolder":
                files = {name: blob for name, blob in files.items() if not name.startswith(path.rstrip("/") + "/")}
            else:
                raise Refused(400, f"unknown operation {kind}")
        title, message = header["summary"], header.get("description", "")
        return repo.commit(files, title=title, message=message, author=author, branch=branch)

    def collect(self, title: str, namespace: str, user: User | None, **facts: Any) -> dict[str, Any]:
        """A new collection."""
        check_owner(user, f"{namespace}/collection")
        words = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")
        slug = f"{namespace}/{words}-{hashlib.sha1(title.encode()).hexdigest()[:24]}"
        if slug in self.collections:
            raise Refused(409, "This collection already exists", slug=slug)
        owner = {"name": namespace, "type": "org", "fullname": namespace}
        shown = {"slug": slug, "title": title, "owner": owner, "items": [], "lastUpdated": now(), "position": 0}
        self.collections[slug] = {**shown, "private": False, "theme": "green", "upvotes": 0, **facts}
        return self.collections[slug]

    def put_into(self, slug: str, item: Mapping[str, str], note: str | None, user: User | None) -> dict[str, Any]:
        """Add a repository to a collection."""
        collection = self.collection(slug)
        check_owner(user, slug)
        self.visible(item["type"], item["id"], user)
        items = collection["items"]
        if any((one["type"], one["id"]) == (item["type"], item["id"]) for one in items):
            raise Refused(409, "Item already in the collection")
        text = {"note": {"text": note, "html": note}} if note else {}
        items.append({"_id": f"{len(items):024x}", **item, "position": len(items), **text})
        return collection

    def collection(self, slug: str) -> dict[str, Any]:
        if slug not in self.collections:
            raise Refused(404, "Collection not found", "RepoNotFound")
        return self.collections[slug]


def now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z")


def is_large(path: str, content: bytes) -> bool:
    return path.endswith(LARGE) or b"\0" in content[:512] or len(content) > 10_000_000


def owns(user: User | None, repo_id: str) -> bool:
    return user is not None and repo_id.partition("/")[0] in (user.name, *user.orgs)


def check_owner(user: User | None, repo_id: str) -> None:
    if user is None:
        raise Refused(401, "Invalid username or password.")
    if not owns(user, repo_id):
        raise Refused(403, f"You don't have the rights to write to the namespace '{repo_id.partition('/')[0]}'")
    if not user.may_write:
        raise Refused(403, "You must use a write token to do this")
