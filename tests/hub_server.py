"""The Hub's HTTP protocol on loopback, as the unmodified client of huggingface_hub speaks it, with faults to order.

    with HubServer() as server:
        revision = server.hub.add("org/tiny", {"config.json": b"{}", "model.safetensors": weights})
        server.users["hf_writer"] = User("org")
        server.fault("GET /cdn/", flip=True)
        subprocess.run([...], env=server.environment(tmp_path))

Routes are those of huggingface.co: small files come from /api/resolve-cache, by a redirect on the same host; large ones
from another host, by a redirect to "localhost" instead of "127.0.0.1", where the token must not arrive.
"""

from __future__ import annotations

import base64
import json
import os
import re
import socket
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

from hub_repos import Blob, Hub, Refused, User, is_large

Answer = Callable[[], None]  # writes the response
PLURALS = {"models": "model", "datasets": "dataset"}


@dataclass
class Fault:
    """Something that goes wrong with the next ``times`` requests whose "METHOD /path" matches ``route``.

    Attributes:
        status: answer with this status and ``headers`` (such as Retry-After) instead.
        flip: change one byte in the middle of the body.
        short: leave out the second half of the body, and state the length of the first.
        cut: state the whole length, and close the connection after the first half.
        drop: close the connection without an answer.
        then: called before the answer, or with ``cut`` after the first half of the body.
    """

    route: str
    times: int = 1
    status: int = 0
    headers: Mapping[str, str] = field(default_factory=dict)
    flip: bool = False
    short: bool = False
    cut: bool = False
    drop: bool = False
    then: Callable[[], Any] = lambda: None


@dataclass(frozen=True)
class Request:
    """A request that arrived, and the bytes of the body that were sent in answer."""

    line: str  # METHOD /path
    token: str | None
    agent: str
    range: str | None = None


class HubServer:
    """A running server; ``hub`` is what it holds, ``requests`` what arrived. ``stop`` and ``start`` keep the port."""

    def __init__(self, hub: Hub | None = None) -> None:
        self.hub = hub or Hub()
        self.users = self.hub.users
        self.requests: list[Request] = []
        self.part_size: int | None = None  # of multipart uploads; None: in one part
        self.parts: dict[tuple[str, int], bytes] = {}
        self._faults: list[Fault] = []
        self._lock = threading.RLock()
        self._connections: set[socket.socket] = set()
        self._port = 0
        self._server: ThreadingHTTPServer | None = None

    def start(self) -> HubServer:
        server = ThreadingHTTPServer(("127.0.0.1", self._port), partial(_Handler, self))
        server.daemon_threads, server.block_on_close = True, False
        self._server, self._port = server, server.server_address[1]
        threading.Thread(target=partial(server.serve_forever, poll_interval=0.01), daemon=True).start()
        return self

    def stop(self) -> None:
        """Stop listening, and cut all connections, also in the middle of an answer."""
        server, self._server = self._server, None
        if server is None:
            return
        server.shutdown()
        server.server_close()
        for connection in list(self._connections):
            hang_up(connection)

    __enter__ = start

    def __exit__(self, *error: object) -> None:
        self.stop()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    @property
    def cdn(self) -> str:
        return f"http://localhost:{self._port}/cdn"

    def fault(self, route: str, **what: Any) -> Fault:
        fault = Fault(route, **what)
        self._faults.append(fault)
        return fault

    def asked(self, route: str = "") -> list[str]:
        """The requests so far that match ``route``."""
        return [request.line for request in self.requests if re.search(route, request.line)]

    def environment(self, home: Path, token: str | None = None) -> dict[str, str]:
        """The environment of a process whose Hub this is, with a home and a cache of its own in ``home``."""
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGINGFACE"))}
        kept |= {"HOME": str(home), "HF_HOME": str(home / "hf"), "HF_ENDPOINT": self.url, "HF_HUB_DISABLE_XET": "1"}
        kept |= {"NO_PROXY": "localhost,127.0.0.1", "ZOO_CACHE": str(home / "zoo")}
        return {**kept, **({"HF_TOKEN": token} if token else {})}

    def attach(self, monkeypatch: Any, home: Path, token: str | None = None) -> None:
        """Make this the Hub of huggingface_hub in this process, which has read its environment already."""
        from huggingface_hub import constants
        from huggingface_hub.utils import _http, close_session

        close_session()
        cache = str(home / "hf" / "hub")
        template = self.url + "/{repo_id}/resolve/{revision}/{filename}"
        for name, value in {
            "ENDPOINT": self.url,
            "HUGGINGFACE_CO_URL_TEMPLATE": template,
            "HF_HOME": str(home / "hf"),
            "HF_HUB_CACHE": cache,
            "HF_TOKEN_PATH": str(home / "hf" / "token"),
            "HF_HUB_DISABLE_XET": True,
            "HF_HUB_OFFLINE": False,
        }.items():
            monkeypatch.setattr(constants, name, value)
        monkeypatch.setattr(_http, "time", _Hurried())
        monkeypatch.setattr("huggingface_hub.file_download.time", _Hurried())
        for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
            monkeypatch.delenv(name, raising=False)
        if token:
            monkeypatch.setenv("HF_TOKEN", token)
        monkeypatch.setenv("ZOO_CACHE", str(home / "zoo"))
        monkeypatch.setenv("NO_PROXY", "localhost,127.0.0.1")

    def take_fault(self, line: str) -> Fault | None:
        with self._lock:
            for fault in self._faults:
                if fault.times and re.search(fault.route, line):
                    fault.times -= 1
                    return fault
        return None


class _Hurried:
    """The module ``time`` for a client that waits before it tries again."""

    def __getattr__(self, name: str) -> Any:
        return getattr(time, name)

    @staticmethod
    def sleep(seconds: float) -> None:
        time.sleep(min(seconds, 0.01))


def hang_up(connection: socket.socket) -> None:
    """Close a connection, whatever its state."""
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def __init__(self, server: HubServer, *args: Any) -> None:
        self.loopback, self.hub = server, server.hub
        super().__init__(*args)

    def setup(self) -> None:
        super().setup()
        self.loopback._connections.add(self.connection)

    def finish(self) -> None:
        self.loopback._connections.discard(self.connection)
        with suppress(OSError):
            super().finish()

    def log_message(self, *args: Any) -> None:
        pass

    def handle_one_request(self) -> None:
        try:
            super().handle_one_request()
        except OSError:  # the client has left, or the server was stopped
            self.close_connection = True

    def do(self) -> None:
        parts = urlsplit(self.path)
        self.query = {key: values[-1] for key, values in parse_qs(parts.query).items()}
        line = f"{self.command} {unquote(parts.path)}"
        content = self._received()
        bearer = self.headers.get("Authorization", "")
        self.token = bearer.removeprefix("Bearer ") if bearer.startswith("Bearer ") else None
        agent, ranged = self.headers.get("User-Agent", ""), self.headers.get("Range")
        self.loopback.requests.append(Request(line, self.token, agent, ranged))
        self.fault = self.loopback.take_fault(line) or Fault("", 0)
        if not self.fault.cut:
            self.fault.then()
        if self.fault.drop:
            self.close_connection = True
            return hang_up(self.connection)
        if self.fault.status:
            return self._json({"error": f"ordered: {self.fault.status}"}, self.fault.status, **self.fault.headers)
        try:
            with self.loopback._lock:
                answer = self._answer(parts.path, content)
        except Refused as error:
            told = {"X-Error-Message": error.message} | ({"X-Error-Code": error.code} if error.code else {})
            answer = partial(self._json, {"error": error.message, **error.more}, error.status, **told)
        answer()

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = do  # noqa: N815

    def _answer(self, path: str, content: bytes) -> Answer:
        for methods, pattern, method in ROUTES:
            match = re.fullmatch(pattern, path)
            if match and self.command in methods.split():
                values = {key: unquote(value) for key, value in match.groupdict().items() if value is not None}
                if "kind" in values:
                    values["kind"] = PLURALS[values["kind"]]
                return method(self, content, **values)
        raise Refused(404, f"Cannot {self.command} {path}")

    # -- files -------------------------------------------------------------------------------------------------------

    def resolve(self, content: bytes, repo_id: str, revision: str, path: str, kind: str = "model") -> Answer:
        repo = self.hub.readable(kind, repo_id, self.user)
        commit = repo.at(revision)
        headers = {"X-Repo-Commit": commit.sha, "Accept-Ranges": "bytes"}
        if path not in commit.files:
            told = {"X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found"}
            return partial(self._json, {"error": "Entry not found"}, 404, **headers, **told)
        blob = commit.files[path]
        if blob.large:
            headers |= {"X-Linked-Etag": f'"{blob.sha256}"', "X-Linked-Size": str(len(blob.content))}
            return partial(self._send, 302, b"", **headers, Location=f"{self.loopback.cdn}/{blob.sha256}")
        place = f"/api/resolve-cache/{kind}s/{quote(repo_id)}/{commit.sha}/{quote(path)}"
        return partial(self._send, 307, b"", **headers, ETag=f'"{blob.oid}"', Location=place)

    def small(self, content: bytes, kind: str, repo_id: str, revision: str, path: str) -> Answer:
        commit = self.hub.readable(kind, repo_id, self.user).at(revision)
        blob = commit.files[path]
        return partial(self._file, blob, {"X-Repo-Commit": commit.sha, "ETag": f'"{blob.oid}"'})

    def large(self, content: bytes, sha256: str) -> Answer:
        if self.token is not None:
            raise Refused(400, "Only one auth mechanism allowed: the token must not be sent to the storage")
        blob = Blob(self.hub.objects[sha256], True)
        return partial(self._file, blob, {"ETag": f'"{sha256}"'})

    def _file(self, blob: Blob, headers: dict[str, str]) -> None:
        content, asked = blob.content, re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if asked is None:
            return self._send(200, content, **headers)
        start = int(asked[1])
        if start >= len(content):
            return self._send(416, b"", **{"Content-Range": f"bytes */{len(content)}"})
        shown = f"bytes {start}-{len(content) - 1}/{len(content)}"
        self._send(206, content[start:], **headers, **{"Content-Range": shown})

    # -- facts -------------------------------------------------------------------------------------------------------

    def info(self, content: bytes, kind: str, repo_id: str, revision: str = "main") -> Answer:
        repo = self.hub.visible(kind, repo_id, self.user)
        commit = repo.at(revision)
        siblings = [
            {"rfilename": path, **(blob.facts() if "blobs" in self.query else {})}
            for path, blob in commit.files.items()
        ]
        facts = {"_id": "0" * 24, "id": repo_id, "sha": commit.sha, "private": repo.private, "disabled": False}
        facts |= {
            "gated": "manual" if repo.gated else False,
            "lastModified": commit.date,
            "author": repo_id.split("/")[0],
        }
        return partial(self._json, {**facts, "siblings": siblings, "tags": [], "downloads": 0, "likes": 0})

    def tree(self, content: bytes, kind: str, repo_id: str, revision: str, path: str = "") -> Answer:
        files = self.hub.readable(kind, repo_id, self.user).at(revision).files
        prefix = f"{path.strip('/')}/" if path.strip("/") else ""
        entries: dict[str, dict[str, Any]] = {}
        for name, blob in files.items():
            if not name.startswith(prefix):
                continue
            folders = name.removeprefix(prefix).split("/")[:-1]
            recursive = self.query.get("recursive", "").lower() in ("true", "1")
            for depth in range(1, len(folders) + 1 if recursive else min(2, len(folders) + 1)):
                folder = prefix + "/".join(folders[:depth])
                entries[folder] = {"type": "directory", "path": folder, "oid": "0" * 40, "size": 0}
            if recursive or not folders:
                entries[name] = {"type": "file", "path": name, **blob.facts()}
        if prefix and not entries:
            raise Refused(404, f"{path} does not exist", "EntryNotFound")
        return partial(self._json, list(entries.values()))

    def paths_info(self, content: bytes, kind: str, repo_id: str, revision: str) -> Answer:
        files = self.hub.readable(kind, repo_id, self.user).at(revision).files
        asked = parse_qs(content.decode()).get("paths", [])
        return partial(self._json, [{"type": "file", "path": p, **files[p].facts()} for p in asked if p in files])

    def refs(self, content: bytes, kind: str, repo_id: str) -> Answer:
        repo = self.hub.readable(kind, repo_id, self.user)
        heads = [{"name": b, "ref": f"refs/heads/{b}", "targetCommit": sha} for b, sha in repo.branches.items()]
        return partial(self._json, {"branches": heads, "converts": [], "tags": []})

    def commits(self, content: bytes, kind: str, repo_id: str, revision: str) -> Answer:
        repo = self.hub.readable(kind, repo_id, self.user)
        shown = [
            {
                "id": one.sha,
                "title": one.title,
                "message": one.message,
                "date": one.date,
                "authors": [{"user": one.author}],
            }
            for one in repo.history(revision)
        ]
        return partial(self._json, shown)

    def whoami(self, content: bytes) -> Answer:
        user = self.user
        if user is None:
            raise Refused(401, "Invalid username or password.")
        role = {"displayName": "test", "role": "write" if user.may_write else "read"}
        facts = {"type": "user", "id": "0" * 24, "name": user.name, "fullname": user.name, "isPro": False}
        orgs = [{"type": "org", "name": org, "fullname": org} for org in user.orgs]
        return partial(self._json, {**facts, "orgs": orgs, "auth": {"type": "access_token", "accessToken": role}})

    def auth_check(self, content: bytes, kind: str, repo_id: str, write: str = "") -> Answer:
        (self.hub.writable if write else self.hub.readable)(kind, repo_id, self.user)
        return partial(self._json, {})

    # -- changes -----------------------------------------------------------------------------------------------------

    def create(self, content: bytes) -> Answer:
        asked = json.loads(content)
        user = self.user
        owner = asked.get("organization") or (user.name if user else "")
        repo_id, kind = f"{owner}/{asked['name']}", asked.get("type") or "model"
        private = asked.get("visibility") == "private" or asked.get("private") is True
        self.hub.create(kind, repo_id, user, private=private)
        prefix = "" if kind == "model" else f"{kind}s/"
        return partial(self._json, {"url": f"{self.loopback.url}/{prefix}{repo_id}", "name": repo_id, "id": "0" * 24})

    def settings(self, content: bytes, kind: str, repo_id: str) -> Answer:
        repo, asked = self.hub.writable(kind, repo_id, self.user), json.loads(content)
        if "visibility" in asked or "private" in asked:
            repo.private = asked.get("visibility") == "private" or asked.get("private") is True
        if "gated" in asked:
            repo.gated = bool(asked["gated"])
        return partial(self._json, {"private": repo.private})

    def delete(self, content: bytes) -> Answer:
        asked, user = json.loads(content), self.user
        owner = asked.get("organization") or (user.name if user else "")
        kind, repo_id = asked.get("type") or "model", f"{owner}/{asked['name']}"
        self.hub.writable(kind, repo_id, user)
        del self.hub.repos[kind, repo_id]
        return partial(self._json, {})

    def validate_yaml(self, content: bytes) -> Answer:
        text = json.loads(content)["content"]
        errors = [] if text.startswith("---\n") else [{"message": "empty or missing yaml metadata in repo card"}]
        return partial(self._json, {"errors": [], "warnings": errors})

    def preupload(self, content: bytes, kind: str, repo_id: str, revision: str) -> Answer:
        commit = self.hub.writable(kind, repo_id, self.user).at(revision)
        files = []
        for file in json.loads(content)["files"]:
            large = is_large(file["path"], base64.b64decode(file["sample"])) or file["size"] > 10_000_000
            there = commit.files.get(file["path"])
            known = {"oid": there.etag} if there and there.large == large else {}
            files.append(
                {"path": file["path"], "uploadMode": "lfs" if large else "regular", "shouldIgnore": False, **known}
            )
        return partial(self._json, {"commitOid": commit.sha, "files": files})

    def batch(self, content: bytes, repo_id: str, kind: str = "model") -> Answer:
        self.hub.writable(kind, repo_id, self.user)
        asked = json.loads(content)
        size = self.loopback.part_size if "multipart" in asked["transfers"] else None
        objects = []
        for one in asked["objects"]:
            known = {"oid": one["oid"], "size": one["size"]}
            if one["oid"] in self.hub.objects:
                objects.append(known)
                continue
            place = f"{self.loopback.cdn}/{one['oid']}"
            upload: dict[str, Any] = {"href": place}
            if size is not None:
                n = -(-one["size"] // size)
                urls = {f"{part:05d}": f"{place}/{part}" for part in range(1, n + 1)}
                finish = f"{self.loopback.url}/api/complete_multipart/{one['oid']}"
                upload = {"href": finish, "header": {"chunk_size": str(size), **urls}}
            verify = {"href": f"{self.loopback.url}/{repo_id}.git/info/lfs/objects/verify"}
            objects.append({**known, "authenticated": True, "actions": {"upload": upload, "verify": verify}})
        return partial(self._json, {"transfer": "multipart" if size else "basic", "objects": objects})

    def upload(self, content: bytes, sha256: str, part: str = "") -> Answer:
        if part:
            self.loopback.parts[sha256, int(part)] = content
        else:
            self._store(sha256, content)
        return partial(self._send, 200, b"", ETag=f'"{sha256[:8]}-{part}"')

    def complete(self, content: bytes, sha256: str) -> Answer:
        numbers = [part["partNumber"] for part in json.loads(content)["parts"]]
        self._store(sha256, b"".join(self.loopback.parts.pop((sha256, number)) for number in numbers))
        return partial(self._json, {"success": True})

    def verify(self, content: bytes, repo_id: str, kind: str = "model") -> Answer:
        asked = json.loads(content)
        if len(self.hub.objects.get(asked["oid"], b"")) != asked["size"]:
            raise Refused(404, "LFS object not found or of another size")
        return partial(self._json, {})

    def _store(self, sha256: str, content: bytes) -> None:
        if Blob(content, True).sha256 != sha256:
            raise Refused(400, "BadDigest: the content does not have this SHA-256")
        self.hub.objects[sha256] = content

    def commit(self, content: bytes, kind: str, repo_id: str, revision: str) -> Answer:
        user = self.user
        repo = self.hub.writable(kind, repo_id, user)
        assert user is not None
        header, *operations = map(json.loads, content.splitlines())
        for operation in operations:
            if operation["key"] == "file":
                operation["value"]["decoded"] = base64.b64decode(operation["value"]["content"])
        made = self.hub.apply(repo, revision, header["value"], operations, user.name)
        url = f"{self.loopback.url}/{repo_id}/commit/{made.sha}"
        return partial(self._json, {"success": True, "commitOid": made.sha, "commitUrl": url, "hookOutput": ""})

    # -- collections -------------------------------------------------------------------------------------------------

    def collections(self, content: bytes) -> Answer:
        if self.command == "POST":
            asked = json.loads(content)
            facts = {key: asked[key] for key in ("private", "description") if key in asked}
            return partial(self._json, self.hub.collect(asked["title"], asked["namespace"], self.user, **facts))
        owner = self.query.get("owner")
        found = [dict(one) for one in self.hub.collections.values() if owner in (None, one["owner"]["name"])]
        for one in found:  # a list shows four items of each, and no position
            one["items"] = one["items"][:4]
            del one["position"]
        return partial(self._json, found)

    def collection(self, content: bytes, slug: str) -> Answer:
        return partial(self._json, self.hub.collection(slug))

    def items(self, content: bytes, slug: str) -> Answer:
        asked = json.loads(content)
        return partial(self._json, self.hub.put_into(slug, asked["item"], asked.get("note"), self.user))

    # -- HTTP --------------------------------------------------------------------------------------------------------

    @property
    def user(self) -> User | None:
        return self.hub.user(self.token)

    def _received(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        chunks = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def _json(self, data: Any, status: int = 200, **headers: str) -> None:
        self._send(status, json.dumps(data).encode(), **{"Content-Type": "application/json", **headers})

    def _send(self, status: int, body: bytes, **headers: str) -> None:
        fault, half = self.fault, len(body) // 2
        if fault.flip and body:
            body = body[:half] + bytes([body[half] ^ 1]) + body[half + 1 :]
        if fault.short:
            body = body[:half]
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if not fault.cut:
            self.wfile.write(body)
            return
        self.wfile.write(body[:half])
        fault.then()
        self.close_connection = True
        hang_up(self.connection)


_REPO = r"(?P<repo_id>[^/]+/[^/]+)"
_API = rf"/api/(?P<kind>models|datasets)/{_REPO}"
_GIT = rf"(?:/(?P<kind>datasets))?/{_REPO}\.git/info/lfs/objects"
ROUTES: tuple[tuple[str, str, Callable[..., Answer]], ...] = (
    ("GET", "/api/whoami-v2", _Handler.whoami),
    ("POST", "/api/repos/create", _Handler.create),
    ("DELETE", "/api/repos/delete", _Handler.delete),
    ("POST", "/api/validate-yaml", _Handler.validate_yaml),
    ("GET POST", "/api/collections", _Handler.collections),
    ("GET", r"/api/collections/(?P<slug>[^/]+/[^/]+)", _Handler.collection),
    ("POST", r"/api/collections/(?P<slug>[^/]+/[^/]+)/items", _Handler.items),
    ("POST", r"/api/complete_multipart/(?P<sha256>\w+)", _Handler.complete),
    ("GET HEAD", rf"/api/resolve-cache/(?P<kind>\w+)/{_REPO}/(?P<revision>[^/]+)/(?P<path>.+)", _Handler.small),
    ("GET", _API, _Handler.info),
    ("GET", rf"{_API}/revision/(?P<revision>[^/]+)", _Handler.info),
    ("GET", rf"{_API}/tree/(?P<revision>[^/]+)(?P<path>/.*)?", _Handler.tree),
    ("POST", rf"{_API}/paths-info/(?P<revision>[^/]+)", _Handler.paths_info),
    ("GET", rf"{_API}/refs", _Handler.refs),
    ("GET", rf"{_API}/commits/(?P<revision>[^/]+)", _Handler.commits),
    ("GET", rf"{_API}/auth-check(?P<write>/write)?", _Handler.auth_check),
    ("PUT", rf"{_API}/settings", _Handler.settings),
    ("POST", rf"{_API}/preupload/(?P<revision>[^/]+)", _Handler.preupload),
    ("POST", rf"{_API}/commit/(?P<revision>[^/]+)", _Handler.commit),
    ("POST", rf"{_GIT}/batch", _Handler.batch),
    ("POST", rf"{_GIT}/verify", _Handler.verify),
    ("GET HEAD", r"/cdn/(?P<sha256>\w+)", _Handler.large),
    ("PUT", r"/cdn/(?P<sha256>\w+)(?:/(?P<part>\d+))?", _Handler.upload),
    ("GET HEAD", rf"(?:/(?P<kind>datasets))?/{_REPO}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", _Handler.resolve),
)
