"""The shipped Caddyfile, run by the real Caddy in front of a test server."""

import http.server
import os
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
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


def shakes_hands(port: int, authority: Path) -> bool:
    """Whether a TLS connection can be made: Caddy listens before it has a certificate for the name."""
    context = ssl.create_default_context(cafile=authority)
    try:
        with socket.create_connection(("localhost", port)) as plain:
            context.wrap_socket(plain, server_hostname="localhost").close()
    except OSError:  # ssl.SSLError is one
        return False
    return True


@pytest.fixture(scope="module")
def caddy(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """Run Caddy with the shipped file on loopback; yields its address and its authority's certificate."""
    program = shutil.which("caddy")
    if program is None:
        pytest.skip("needs caddy: apt-get install caddy")
    folder = tmp_path_factory.mktemp("caddy")
    log = folder / "log"
    port = find_free_port()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Upstream) as upstream:
        threading.Thread(target=upstream.serve_forever, args=(0.05,), daemon=True).start()
        own = {
            "SERVEKIT_DOMAIN": f"localhost:{port}",
            "SERVEKIT_UPSTREAM": f"127.0.0.1:{upstream.server_port}",
            "XDG_DATA_HOME": str(folder),
            "XDG_CONFIG_HOME": str(folder),
            "HOME": str(folder),
        }
        config = root / "deploy" / "caddy" / "Caddyfile"
        with (
            log.open("wb") as output,
            subprocess.Popen(
                [program, "run", "--config", str(config), "--adapter", "caddyfile"],
                env=os.environ | own,
                stdout=output,
                stderr=subprocess.STDOUT,
            ) as process,
        ):
            authority = folder / "caddy" / "pki" / "authorities" / "local" / "root.crt"
            wait_until(authority.exists, what="Caddy's authority")
            wait_until(lambda: b"serving initial configuration" in log.read_bytes(), what="Caddy")
            wait_until(lambda: shakes_hands(port, authority), what="its certificate for localhost")
            yield f"https://localhost:{port}", authority
            process.terminate()
        upstream.shutdown()


@pytest.fixture
def client(caddy: tuple[str, Path]) -> Iterator[httpx.Client]:
    """A client that trusts Caddy's own authority."""
    address, authority = caddy
    with httpx.Client(base_url=address, verify=ssl.create_default_context(cafile=str(authority))) as client:
        yield client


def test_stream_is_not_held_back(client: httpx.Client) -> None:
    """Caddy forwards each part of a streamed answer when it arrives, not at the end."""
    times: list[float] = []
    with client.stream("POST", "/v1/chat/completions", content=b"{}") as answer:
        assert answer.status_code == 200
        assert "strict-transport-security" in answer.headers
        times.extend(time.monotonic() for _ in answer.iter_raw())
    assert len(times) == CHUNKS
    assert times[-1] - times[0] > (CHUNKS - 2) * CHUNK_EVERY_S


def test_private_token_is_taken_away(client: httpx.Client) -> None:
    """Caddy removes the header that only servekit may send, and forwards the client's key."""
    headers = {"X-Servekit-Token": "stolen", "Authorization": "Bearer sk-1"}
    assert client.post("/v1/completions", content=b"{}", headers=headers).status_code == 200
    sent = {name.lower(): value for name, value in Upstream.seen.items()}
    assert "x-servekit-token" not in sent
    assert sent["authorization"] == "Bearer sk-1"


def test_large_body_is_refused(client: httpx.Client) -> None:
    """A body far above the guard's limit does not reach the engine."""
    assert client.post("/v1/completions", content=b"x" * (42 * 1024 * 1024)).status_code in {413, 502}


def test_http2_is_spoken(caddy: tuple[str, Path]) -> None:
    """Clients that support HTTP/2 use it."""
    address, authority = caddy
    command = ["curl", "-s", "-o", "/dev/null", "-w", "%{http_version}", "--cacert", str(authority), "-d", "{}"]
    made = subprocess.run([*command, f"{address}/v1/completions"], capture_output=True, text=True, check=True)
    assert made.stdout == "2"


def test_log_holds_no_key(client: httpx.Client, caddy: tuple[str, Path]) -> None:
    """The access log contains the request but not the key."""
    log = caddy[1].parents[4] / "log"
    client.post("/v1/responses", content=b"{}", headers={"Authorization": "Bearer sk-very-secret"})
    wait_until(lambda: b"/v1/responses" in log.read_bytes(), what="the log line")
    assert b"sk-very-secret" not in log.read_bytes()
