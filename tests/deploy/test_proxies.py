"""The shipped configurations of Caddy and nginx, run by the real programs in front of a test server."""

import contextlib
import http.server
import os
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from tests.conftest import find_free_port, wait_until

CHUNKS = 4
CHUNK_EVERY_S = 0.3


class Upstream(http.server.BaseHTTPRequestHandler):
    """Streams an answer in parts, and stores the headers of the last request."""

    protocol_version = "HTTP/1.1"
    seen: dict[str, str] = {}  # noqa: RUF012 - shared on purpose

    def do_POST(self) -> None:
        """Read the whole body, then send one part at a time."""
        Upstream.seen = dict(self.headers.items())
        self.rfile.read(int(self.headers.get("content-length", 0)))
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for number in range(CHUNKS):
            part = f"data: {number}\n\n".encode()
            self.wfile.write(f"{len(part):x}\r\n".encode() + part + b"\r\n")
            self.wfile.flush()
            time.sleep(CHUNK_EVERY_S)
        self.wfile.write(b"0\r\n\r\n")

    def log_message(self, *_: object) -> None:
        """Log nothing."""


@dataclass(frozen=True)
class Proxy:
    """A running proxy."""

    url: str
    authority: Path
    """The certificate to trust."""
    log: Path


def shakes_hands(port: int, authority: Path) -> bool:
    """Whether a TLS connection can be made: Caddy listens before it has a certificate for the name."""
    context = ssl.create_default_context(cafile=authority)
    try:
        with socket.create_connection(("localhost", port)) as plain:
            context.wrap_socket(plain, server_hostname="localhost").close()
    except OSError:  # ssl.SSLError is one
        return False
    return True


@contextlib.contextmanager
def running(argv: list[str], log: Path, **environ: str) -> Iterator[None]:
    """Run a program on loopback."""
    with (
        log.open("ab") as output,
        subprocess.Popen(argv, env=os.environ | environ, stdout=output, stderr=subprocess.STDOUT) as process,
    ):
        try:
            yield
        finally:
            process.terminate()


@contextlib.contextmanager
def caddy(program: str, root: Path, folder: Path, upstream: int) -> Iterator[Proxy]:
    """Run Caddy with the shipped file."""
    log, port = folder / "log", find_free_port()
    own = {
        "SERVEKIT_DOMAIN": f"localhost:{port}",
        "SERVEKIT_UPSTREAM": f"127.0.0.1:{upstream}",
        "XDG_DATA_HOME": str(folder),
        "XDG_CONFIG_HOME": str(folder),
        "HOME": str(folder),
    }
    config = str(root / "deploy" / "caddy" / "Caddyfile")
    authority = folder / "caddy" / "pki" / "authorities" / "local" / "root.crt"
    with running([program, "run", "--config", config, "--adapter", "caddyfile"], log, **own):
        wait_until(authority.exists, what="Caddy's authority")
        wait_until(lambda: b"serving initial configuration" in log.read_bytes(), what="Caddy")
        wait_until(lambda: shakes_hands(port, authority), what="its certificate for localhost")
        yield Proxy(f"https://localhost:{port}", authority, log)


@contextlib.contextmanager
def nginx(program: str, root: Path, folder: Path, upstream: int) -> Iterator[Proxy]:
    """Run nginx with the shipped file, whose lines marked CHANGE are changed."""
    log, port, plain = folder / "log", find_free_port(), find_free_port()
    chain, key = folder / "chain.pem", folder / "key.pem"
    request = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    request += ["-addext", "subjectAltName=DNS:localhost", "-keyout", str(key), "-out", str(chain)]
    subprocess.run(request, check=True, capture_output=True)
    shipped = (root / "deploy" / "nginx" / "servekit.conf").read_text(encoding="utf-8")
    for theirs, ours in {
        "127.0.0.1:8000": f"127.0.0.1:{upstream}",
        "llm.example.org;": "localhost;",
        "/etc/letsencrypt/live/llm.example.org/fullchain.pem": str(chain),
        "/etc/letsencrypt/live/llm.example.org/privkey.pem": str(key),
        "listen 80;": f"listen 127.0.0.1:{plain};",
        "listen 443 ssl": f"listen 127.0.0.1:{port} ssl",
        "\tlisten [::]:80;\n": "",
        "\tlisten [::]:443 ssl http2;\n": "",
    }.items():
        assert theirs in shipped
        shipped = shipped.replace(theirs, ours)
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    paths = "".join(f"{kind}_temp_path {folder / kind};\n" for kind in kinds)
    config = folder / "nginx.conf"
    config.write_text(
        f"daemon off;\npid {folder / 'pid'};\nerror_log {log};\nevents {{}}\n"
        f"http {{\naccess_log {log};\n{paths}{shipped}}}\n",
        encoding="utf-8",
    )
    with running([program, "-e", str(log), "-c", str(config)], log):
        wait_until(lambda: shakes_hands(port, chain), what="nginx")
        yield Proxy(f"https://localhost:{port}", chain, log)


PROXIES = {"caddy": caddy, "nginx": nginx}


@pytest.fixture(scope="module", params=PROXIES)
def proxy(request: pytest.FixtureRequest, root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    """Each proxy in front of the test server."""
    program = shutil.which(request.param, path=f"{os.environ['PATH']}:/usr/sbin")
    if program is None:
        pytest.skip(f"needs {request.param}: apt-get install {request.param}")
    folder = tmp_path_factory.mktemp(request.param)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Upstream) as upstream:
        threading.Thread(target=upstream.serve_forever, args=(0.05,), daemon=True).start()
        with PROXIES[request.param](program, root, folder, upstream.server_port) as running_proxy:
            yield running_proxy
        upstream.shutdown()


@pytest.fixture
def client(proxy: Proxy) -> Iterator[httpx.Client]:
    """A client that trusts the proxy's own certificate."""
    context = ssl.create_default_context(cafile=str(proxy.authority))
    with httpx.Client(base_url=proxy.url, verify=context) as client:
        yield client


def test_stream_is_not_held_back(client: httpx.Client) -> None:
    """Each part of a streamed answer is forwarded when it arrives, not at the end."""
    times: list[float] = []
    with client.stream("POST", "/v1/chat/completions", content=b"{}") as answer:
        assert answer.status_code == 200
        assert "strict-transport-security" in answer.headers
        times.extend(time.monotonic() for _ in answer.iter_raw())
    assert len(times) == CHUNKS
    assert times[-1] - times[0] > (CHUNKS - 2) * CHUNK_EVERY_S


def test_private_token_is_taken_away(client: httpx.Client) -> None:
    """The header that only servekit may send is removed, and the client's key is forwarded."""
    headers = {"X-Servekit-Token": "stolen", "Authorization": "Bearer sk-1"}
    assert client.post("/v1/completions", content=b"{}", headers=headers).status_code == 200
    sent = {name.lower(): value for name, value in Upstream.seen.items()}
    assert "x-servekit-token" not in sent
    assert sent["authorization"] == "Bearer sk-1"


def test_large_body_is_refused(client: httpx.Client) -> None:
    """A body far above the guard's limit does not reach the engine."""
    assert client.post("/v1/completions", content=b"x" * (42 * 1024 * 1024)).status_code in {413, 502}


def test_http2_is_spoken(proxy: Proxy) -> None:
    """Clients that support HTTP/2 use it."""
    command = ["curl", "-s", "-o", "/dev/null", "-w", "%{http_version}", "--cacert", str(proxy.authority), "-d", "{}"]
    made = subprocess.run([*command, f"{proxy.url}/v1/completions"], capture_output=True, text=True, check=True)
    assert made.stdout == "2"


def test_log_holds_no_key(client: httpx.Client, proxy: Proxy) -> None:
    """The access log contains the request but not the key, whichever header it comes in."""
    headers = {"Authorization": "Bearer sk-very-secret", "X-Api-Key": "sk-another-secret"}
    client.post("/v1/responses", content=b"{}", headers=headers)
    wait_until(lambda: b"/v1/responses" in proxy.log.read_bytes(), what="the log line")
    assert b"-secret" not in proxy.log.read_bytes()


def test_a_request_is_forwarded_as_it_arrives(client: httpx.Client) -> None:
    """The engine sees a request before its body is complete: it can refuse one, and no proxy writes one to a file."""
    Upstream.seen = {}
    headers = {"X-Request-Id": "in-pieces", "Content-Length": "200000"}

    def pieces() -> Iterator[bytes]:
        yield b"x" * 100_000
        wait_until(lambda: "in-pieces" in Upstream.seen.values(), what="the request at the engine")
        yield b"x" * 100_000

    assert client.post("/v1/completions", content=pieces(), headers=headers).status_code == 200
