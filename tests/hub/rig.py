"""A small server that speaks the Hugging Face hub's protocol, with the faults of the real one and of the way to it.

One port is the hub (`/api/models/...`, `/NAME/resolve/...`), another the store that large files are redirected to, a
third a forward proxy. What it answers was compared with what huggingface_hub 1.14 expects (`hf_raise_for_status`,
`get_hf_file_metadata`).
"""

import contextlib
import hashlib
import http.client
import json
import re
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

CHUNK = 16 * 1024


@dataclass
class Repository:
    """One model: its files in a folder, and who may read it."""

    folder: Path
    commit: str
    token: str = ""
    """Readers must show it; empty: the model is public."""
    gated: bool = False
    """Anyone may list the files, and only an account that has `accepted` the terms may read them."""
    accepted: str = ""
    """The token of such an account."""
    lfs: str = "*.safetensors"
    bare: bool = False
    """The listing has only names, as of a mirror that does not know `blobs=true`."""

    def files(self) -> dict[str, Path]:
        """Return the files by their paths in the repository."""
        found = sorted(path for path in self.folder.rglob("*") if path.is_file())
        return {path.relative_to(self.folder).as_posix(): path for path in found}


@dataclass
class Faults:
    """What goes wrong, changed by a test while the server runs."""

    statuses: list[int] = field(default_factory=list)
    """The next answers of the hub, one each: 429, 500, 503..."""
    bytes_per_s: float = 0.0
    """Rate of the store; 0: as fast as it can."""
    break_after: list[int] = field(default_factory=list)
    """The next downloads of large files break after so many bytes each."""
    stall_after: int | None = None
    """Every download of a large file stands still after so many bytes, until `released`."""
    released: threading.Event = field(default_factory=threading.Event)
    proxy_status: int = 0
    """The proxy answers everything with this status; 0: it forwards http."""
    corrupt: bool = False
    """The store flips one bit of every large file."""


class Hub:
    """The servers, on loopback; `requests` counts them by server and method."""

    def __init__(self, repositories: Mapping[str, Repository]) -> None:
        self.repositories = dict(repositories)
        self.faults = Faults()
        self.requests: Counter[str] = Counter()
        self.sent = 0
        """Bytes of large files."""
        self.tokens_at_store: set[str] = set()
        """Tokens that the client has shown to the second host; must stay empty."""
        self._servers = [_server(self, handler) for handler in (_HubHandler, _StoreHandler, _ProxyHandler)]
        self.url, self.store_url, self.proxy_url = (
            f"http://127.0.0.1:{server.server_address[1]}" for server in self._servers
        )

    def close(self) -> None:
        """End the servers."""
        self.faults.released.set()
        for server in self._servers:
            server.shutdown()
            server.server_close()


@contextlib.contextmanager
def hub(**repositories: Repository) -> Iterator[Hub]:
    """Run a hub; the names of the models are the keywords with `__` for the slash."""
    running = Hub({name.replace("__", "/"): repository for name, repository in repositories.items()})
    try:
        yield running
    finally:
        running.close()


def _server(owner: Hub, handler: type[BaseHTTPRequestHandler]) -> ThreadingHTTPServer:
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    server.owner = owner  # type: ignore[attr-defined]
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    return server


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    name = ""

    @property
    def hub(self) -> Hub:
        owner: Hub = self.server.owner  # type: ignore[attr-defined]
        return owner

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        self.hub.requests[f"{self.name} {self.command}"] += 1
        with contextlib.suppress(ConnectionError):
            self.answer()

    def answer(self) -> None:
        """Answer one request."""
        raise NotImplementedError

    def log_message(self, *_arguments: Any) -> None:
        """Print nothing."""

    def send(self, status: int, body: bytes = b"", /, **headers: str) -> None:
        """Send a whole answer; underscores in names of headers become dashes."""
        self.send_response(status)
        for name, value in {"Content_Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def refuse(self, status: int, code: str, message: str) -> None:
        """Send an error as the hub does: the reason is in headers."""
        self.send(status, json.dumps({"error": message}).encode(), X_Error_Code=code, X_Error_Message=message)


class _HubHandler(_Handler):
    name = "hub"

    def answer(self) -> None:
        if self.hub.faults.statuses:
            self.send(self.hub.faults.statuses.pop(0), b"{}", Retry_After="1")
            return
        path = unquote(urlsplit(self.path).path)
        if match := re.fullmatch(r"/api/models/(.+?)(?:/revision/([^/]+))?", path):
            name, revision, file = match[1], match[2] or "main", ""
        elif match := re.fullmatch(r"/(.+?)/resolve/([^/]+)/(.+)", path):
            name, revision, file = match[1], match[2], match[3]
        else:
            self.refuse(404, "NotFound", "no such page")
            return
        repository = self.hub.repositories.get(name)
        shown = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if repository is None or (repository.token and not shown):
            self.refuse(401, "RepoNotFound", "Repository not found")
        elif repository.token and shown != repository.token:
            self.refuse(401, "", "Invalid credentials in Authorization header")
        elif file and repository.gated and shown != (repository.accepted or None):
            self.refuse(403 if shown else 401, "GatedRepo", "Access to this model is restricted")
        elif revision not in {"main", repository.commit}:
            self.refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        elif file:
            self._resolve(name, repository, file)
        else:
            self.send(200, json.dumps(_model_info(name, repository)).encode(), Content_Type="application/json")

    def _resolve(self, name: str, repository: Repository, file: str) -> None:
        path = repository.files().get(file)
        commit = {"X_Repo_Commit": repository.commit}
        if path is None:
            self.send(404, b"{}", X_Error_Code="EntryNotFound", X_Error_Message="Entry not found", **commit)
        elif path.match(repository.lfs):
            linked = {"X_Linked_Etag": f'"{_sha256(path)}"', "X_Linked_Size": str(path.stat().st_size)}
            self.send(302, **{"Location": f"{self.hub.store_url}/{name}/{file}"} | linked | commit)
        else:
            body = path.read_bytes()
            self.send(200, body, ETag=f'"{_git_sha1(body)}"', **commit)


class _StoreHandler(_Handler):
    name = "store"

    def answer(self) -> None:
        faults = self.hub.faults
        if token := self.headers.get("Authorization"):
            self.hub.tokens_at_store.add(token)
        name, file = re.fullmatch(r"/([^/]+/[^/]+)/(.+)", unquote(urlsplit(self.path).path)).groups()  # type: ignore[union-attr]
        data = bytearray(self.hub.repositories[name].files()[file].read_bytes())
        if faults.corrupt:
            data[-1] ^= 1
        begin = int((re.match(r"bytes=(\d+)-", self.headers.get("Range", "")) or ["", "0"])[1])
        self.send_response(206 if begin else 200)
        self.send_header("Content-Length", str(len(data) - begin))
        if begin:
            self.send_header("Content-Range", f"bytes {begin}-{len(data) - 1}/{len(data)}")
        self.end_headers()
        if self.command == "HEAD":
            return
        breaks_at = faults.break_after.pop(0) if faults.break_after else None
        for at in range(begin, len(data), CHUNK):
            sent = at - begin
            if faults.stall_after is not None and sent >= faults.stall_after:
                faults.released.wait()
            if breaks_at is not None and sent >= breaks_at:
                self.connection.shutdown(socket.SHUT_RDWR)
                return
            self.wfile.write(data[at : at + CHUNK])
            self.hub.sent += len(data[at : at + CHUNK])
            if faults.bytes_per_s:
                time.sleep(CHUNK / faults.bytes_per_s)


class _ProxyHandler(_Handler):
    name = "proxy"

    def do_CONNECT(self) -> None:
        """Refuse the tunnel that a client wants for https: the hub here speaks http only."""
        self.hub.requests["proxy CONNECT"] += 1
        self.send(self.hub.faults.proxy_status or 502)

    def answer(self) -> None:
        url = urlsplit(self.path)
        if self.hub.faults.proxy_status or not url.hostname:
            self.send(self.hub.faults.proxy_status or 400)
            return
        upstream = http.client.HTTPConnection(url.hostname, url.port, timeout=30)
        headers = {key: value for key, value in self.headers.items() if not key.lower().startswith("proxy")}
        upstream.request(self.command, url._replace(scheme="", netloc="").geturl(), headers=headers)
        answer = upstream.getresponse()
        self.send_response(answer.status)
        for key, value in answer.getheaders():
            if key.lower() not in {"server", "date"}:
                self.send_header(key, value)
        self.end_headers()
        while chunk := answer.read(CHUNK):
            self.wfile.write(chunk)
        upstream.close()


def _model_info(name: str, repository: Repository) -> dict[str, Any]:
    siblings = []
    for file, path in repository.files().items():
        entry: dict[str, Any] = {"rfilename": file}
        if not repository.bare:
            entry |= {"size": path.stat().st_size, "blobId": "0" * 40}
        if path.match(repository.lfs) and not repository.bare:
            entry["lfs"] = {"sha256": _sha256(path), "size": path.stat().st_size, "pointerSize": 134}
        siblings.append(entry)
    return {
        "id": name,
        "modelId": name,
        "sha": repository.commit,
        "private": bool(repository.token),
        "gated": "manual" if repository.gated else False,
        "disabled": False,
        "tags": [],
        "siblings": siblings,
    }


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _git_sha1(body: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(body) + body, usedforsecurity=False).hexdigest()
