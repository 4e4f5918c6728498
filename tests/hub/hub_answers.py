"""What the stand-in for the hub answers to each kind of request."""

import hashlib
import json
import re
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, unquote, urlsplit

from hub_repositories import Asked, Repository

if TYPE_CHECKING:
    from hub_server import Hub

__all__ = ["Handler"]

# What .gitattributes of the hub's repositories hand to LFS.
_LARGE = (".safetensors", ".bin", ".h5", ".msgpack", ".onnx", ".parquet")
_ACTIONS = "revision|tree|paths-info|refs|auth-check"
# "owner/name", or the "name" that old repositories had.
_NAME = rf"([^/]+(?:/(?!(?:{_ACTIONS}|resolve)(?:/|$))[^/]+)?)"


class _RefusedError(Exception):
    def __init__(self, status: int, code: str | None, message: str) -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message


class Handler(BaseHTTPRequestHandler):
    hub: "Hub"
    protocol_version = "HTTP/1.1"
    # The answer's head and its body are two writes; the second must not wait for an ACK.
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def log_message(self, *_: Any) -> None:
        pass

    # ------------------------------------------------------------------ answering

    def _answer(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        self.body = self.rfile.read(length)
        self.cut: int | None = None
        target = urlsplit(self.path)
        self.query = parse_qs(target.query)
        path = unquote(target.path)
        fault = self.hub.fault(f"{self.command} {path}")
        if fault is not None and fault.bytes_sent is None:
            if fault.status == 0:
                self._drop()
            else:
                self._send(fault.status, b"{}", {"Retry-After": "0"})
            return
        self.cut = None if fault is None else fault.bytes_sent
        try:
            self._route(path)
        except _RefusedError as refused:
            headers = {"X-Error-Message": refused.message}
            if refused.code is not None:
                headers["X-Error-Code"] = refused.code
            if refused.code in {"EntryNotFound"}:
                headers["X-Repo-Commit"] = self.sha
            self._json({"error": refused.message}, refused.status, headers)

    def _drop(self) -> None:
        self._logged(0)
        self.close_connection = True

    def _logged(self, status: int) -> None:
        asked = Asked(
            self.command,
            self.path,
            status,
            "Authorization" in self.headers,
            self.headers.get("Host", ""),
            self.headers.get("Range"),
        )
        with self.hub.lock:
            self.hub.log.append(asked)

    def _send(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        cut = self.cut
        # Logged before the client can act on the answer: what it asks next comes after it.
        self._logged(status if cut is None else 0)
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("X-Request-Id", "Root=1-0")
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body if cut is None else body[:cut])
        if cut is not None:
            self.close_connection = True

    def _json(self, value: Any, status: int = 200, headers: Mapping[str, str] = {}) -> None:
        kind = {"Content-Type": "application/json; charset=utf-8"}
        self._send(status, json.dumps(value).encode(), kind | dict(headers))

    # ------------------------------------------------------------------ routes

    def _route(self, path: str) -> None:
        if match := re.fullmatch(r"/files/(models|datasets)/([^/]+/[^/]+)/(\w+)/(.+)", path):
            self._large(*match.groups())
        elif match := re.fullmatch(
            r"/api/resolve-cache/(models|datasets)/([^/]+/[^/]+)/(\w+)/(.+)", path
        ):
            self._small(*match.groups())
        elif match := re.fullmatch(rf"/api/(models|datasets)/{_NAME}(/.*)?", path):
            self._api(path, *match.groups())
        elif match := re.fullmatch(rf"/(?:(datasets)/)?{_NAME}/resolve/([^/]+)/(.+)", path):
            self._resolve(path, match[1] or "models", match[2], match[3], match[4])
        elif path == "/api/agent-harnesses":
            # What programs the clients tell of in their user agent: they ask it once a day.
            self._json({"standardEnvVars": [], "harnesses": {}})
        else:
            raise _RefusedError(404, None, "Not Found")

    def _repository(self, kinds: str, name: str) -> Repository:
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token and token not in self.hub.tokens:
            raise _RefusedError(401, None, "Invalid credentials in Authorization header")
        self.rights = self.hub.tokens.get(token, set())
        self.known = bool(token)
        repository = self.hub.repositories.get((kinds.removesuffix("s"), name))
        if repository is None or (repository.private and name not in self.rights):
            # Who has not logged in is not told whether there is a private one of that name.
            if token:
                raise _RefusedError(404, "RepoNotFound", "Repository not found")
            raise _RefusedError(401, "RepoNotFound", "Invalid username or password.")
        return repository

    def _files(self, repository: Repository, revision: str) -> dict[str, bytes]:
        sha = repository.sha(revision)
        if sha is None:
            raise _RefusedError(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        self.sha = sha
        return repository.commits[sha]

    def _past_the_gate(self, repository: Repository) -> None:
        if repository.gated and repository.id not in self.rights:
            message = f"Access to {repository.kind} {repository.id} is restricted."
            raise _RefusedError(403 if self.known else 401, "GatedRepo", message)

    def _redirected(self, path: str, kinds: str, name: str) -> bool:
        new = self.hub.renamed.get((kinds.removesuffix("s"), name))
        if new is not None:
            query = urlsplit(self.path).query
            place = path.replace(f"/{name}", f"/{new}", 1) + (f"?{query}" if query else "")
            self._send(307, b"", {"Location": place})
        return new is not None

    def _api(self, path: str, kinds: str, name: str, rest: str | None) -> None:
        first, _, more = (rest or "").removeprefix("/").partition("/")
        if self._redirected(path, kinds, name):
            return
        repository = self._repository(kinds, name)
        match first:
            case "" | "revision":
                files = self._files(repository, more or "main")
                self._json(self._info(repository, files))
            case "tree":
                self._past_the_gate(repository)
                revision, _, folder = more.partition("/")
                self._json(self._tree(self._files(repository, revision), folder))
            case "paths-info":
                self._past_the_gate(repository)
                files = self._files(repository, more)
                wanted = self._wanted_paths()
                self._json([e for e in self._tree(files, "", deep=True) if e["path"] in wanted])
            case "refs":
                branches = [
                    {"name": name, "ref": f"refs/heads/{name}", "targetCommit": sha}
                    for name, sha in repository.branches.items()
                ]
                self._json({"branches": branches, "converts": [], "tags": []})
            case "auth-check":
                self._past_the_gate(repository)
                self._json({})
            case _:
                raise _RefusedError(404, None, "Not Found")

    def _wanted_paths(self) -> set[str]:
        if "json" in self.headers.get("Content-Type", ""):
            return set(json.loads(self.body)["paths"])
        return set(parse_qs(self.body.decode()).get("paths", []))

    def _info(self, repository: Repository, files: Mapping[str, bytes]) -> dict[str, Any]:
        return {
            "_id": "0" * 24,
            "id": repository.id,
            "author": repository.id.partition("/")[0],
            "sha": self.sha,
            "private": repository.private,
            "gated": "manual" if repository.gated else False,
            "disabled": False,
            "downloads": 0,
            "likes": 0,
            "tags": [],
            "lastModified": "2024-01-01T00:00:00.000Z",
            "createdAt": "2024-01-01T00:00:00.000Z",
            "siblings": [{"rfilename": path} for path in files],
        }

    def _tree(self, files: Mapping[str, bytes], folder: str, *, deep: bool = False) -> list[Any]:
        deep = deep or self.query.get("recursive") in (["true"], ["True"])
        prefix = f"{folder}/" if folder else ""
        inside = [path for path in files if path.startswith(prefix)]
        if not inside:
            raise _RefusedError(404, "EntryNotFound", f"{folder} does not exist")
        entries = []
        folders = {
            prefix + "/".join(path.removeprefix(prefix).split("/")[: n + 1])
            for path in inside
            for n in range(path.removeprefix(prefix).count("/"))
        }
        for path in sorted(folders):
            if deep or "/" not in path.removeprefix(prefix):
                oid = hashlib.sha1(path.encode()).hexdigest()
                entries.append({"type": "directory", "oid": oid, "size": 0, "path": path})
        for path in sorted(inside):
            if deep or "/" not in path.removeprefix(prefix):
                entries.append(self._entry(path, files[path]))
        return entries

    def _entry(self, path: str, content: bytes) -> dict[str, Any]:
        entry = {"type": "file", "oid": _git(content), "size": len(content), "path": path}
        if path.endswith(_LARGE):
            sha256 = hashlib.sha256(content).hexdigest()
            entry["lfs"] = {"oid": sha256, "size": len(content), "pointerSize": 134}
        return entry

    # ------------------------------------------------------------------ files

    def _resolve(self, path: str, kinds: str, name: str, revision: str, file: str) -> None:
        if self._redirected(path, kinds, name):
            return
        repository = self._repository(kinds, name)
        self._past_the_gate(repository)
        files = self._files(repository, revision)
        if file not in files:
            raise _RefusedError(404, "EntryNotFound", "Entry not found")
        content = files[file]
        headers = {"X-Repo-Commit": self.sha, "X-Linked-Size": str(len(content))}
        place = f"{kinds}/{name}/{self.sha}/{file}"
        if file.endswith(_LARGE):
            headers["X-Linked-ETag"] = f'"{hashlib.sha256(content).hexdigest()}"'
            self._send(302, b"", {**headers, "Location": f"{self.hub.files_url}/files/{place}"})
        else:
            headers["X-Linked-ETag"] = f'"{_git(content)}"'
            self._send(307, b"", {**headers, "Location": f"/api/resolve-cache/{place}"})

    def _small(self, kinds: str, name: str, sha: str, file: str) -> None:
        repository = self._repository(kinds, name)
        self._past_the_gate(repository)
        content = self._files(repository, sha)[file]
        self._content(content, {"ETag": f'"{_git(content)}"', "X-Repo-Commit": sha})

    def _large(self, kinds: str, name: str, sha: str, file: str) -> None:
        # What leads here is signed: no token is needed, nor wanted.
        content = self.hub.repositories[kinds.removesuffix("s"), name].commits[sha][file]
        self._content(content, {"ETag": f'"{hashlib.sha256(content).hexdigest()}"'})

    def _content(self, content: bytes, headers: Mapping[str, str]) -> None:
        match = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if match is None:
            self._send(200, content, headers)
            return
        start, end = int(match[1]), int(match[2] or len(content) - 1)
        if start >= len(content):
            self._send(416, b"", {"Content-Range": f"bytes */{len(content)}"})
            return
        part = content[start : end + 1]
        place = f"bytes {start}-{start + len(part) - 1}/{len(content)}"
        self._send(206, part, {**headers, "Content-Range": place})


def _git(content: bytes) -> str:
    """Return the id that git gives a file of this content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
