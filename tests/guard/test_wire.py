"""HTTP on the wire of a real uvicorn behind the guard: framing, heads, upgrades, and clients that do not read."""

import contextlib
import hashlib
import json
import os
import socket
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from servekit.serve.guard import COUNTERS_PATH, INSIDE
from servekit.serve.guard.inside.servekit_guard.guard_config import Rules
from tests.conftest import KEY, ROOT

pytestmark = pytest.mark.engine

TOKEN = "a-private-token"
MAX_WRITE_S = 2.0
KEYED = f"Host: x\r\nAuthorization: Bearer {KEY}\r\n".encode()
BODY = b'{"model": "demo", "prompt": "hello"}'
LENGTH = b"Content-Length: %d\r\n" % len(BODY)
CHUNKS = b"%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY)
CHUNKED = b"Transfer-Encoding: chunked\r\n"
POST = b"POST /v1/completions HTTP/1.1\r\n"
STREAM = b"POST /v1/chat/completions HTTP/1.1\r\n" + KEYED + LENGTH + b"\r\n" + BODY


@dataclass
class Wire:
    """A running server, with requests as raw bytes."""

    port: int
    pid: int
    context: ssl.SSLContext | None = None

    def connect(self, *, receive_bytes: int | None = None) -> socket.socket:
        """Return a new connection, with TLS if the server uses it."""
        connection = socket.socket()
        if receive_bytes is not None:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        connection.settimeout(10)
        connection.connect(("127.0.0.1", self.port))
        return self.context.wrap_socket(connection) if self.context else connection

    def raw(self, data: bytes, timeout_s: float = 0.5) -> bytes:
        """Send bytes and return what comes back until the end or the timeout."""
        received = b""
        with self.connect() as connection, contextlib.suppress(OSError):
            connection.sendall(data)
            connection.settimeout(timeout_s)
            while chunk := connection.recv(65536):
                received += chunk
        return received

    def counters(self) -> Any:
        """Return the guard's counters."""
        head = f"GET {COUNTERS_PATH} HTTP/1.1\r\nHost: x\r\nX-Servekit-Token: {TOKEN}\r\nConnection: close\r\n\r\n"
        return given(self.raw(head.encode(), timeout_s=10))

    def count(self, outcome: str) -> int:
        """Return how many requests had this outcome."""
        return sum(row["count"] for row in self.counters()["requests"] if row["outcome"] == outcome)

    def resident_bytes(self) -> int:
        """Return the server's memory."""
        return int(Path(f"/proc/{self.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@contextlib.contextmanager
def serving(folder: Path, *certificate: str, **limits: Any) -> Iterator[Wire]:
    """Run the server; `limits` are the guard's."""
    keys = folder / "keys"
    keys.touch(mode=0o600)
    keys.write_text(f"{KEY}\n")
    token = hashlib.sha256(TOKEN.encode()).hexdigest()
    rules = Rules(
        token_sha256=token,
        api_keys_file=str(keys),
        max_body_bytes=1 << 20,
        max_in_flight=64,
        max_buffered_bytes=1 << 24,
        max_head_s=2,
        max_write_s=MAX_WRITE_S,
        **limits,
    )
    (folder / "guard.json").write_text(rules.to_json())
    python = ROOT / ".venv-engine" / "bin" / "python"
    program = Path(__file__).with_name("wire_server.py")
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(
            [str(python), str(program), str(folder / "guard.json"), *certificate],
            env={"PATH": os.environ["PATH"], "PYTHONPATH": str(INSIDE)},
            stdout=subprocess.PIPE,
            stderr=log,
        )
    try:
        assert server.stdout is not None
        port = server.stdout.readline()
        assert port, (folder / "log").read_text()
        yield Wire(int(port), server.pid)
    finally:
        server.kill()
        server.communicate()


@pytest.fixture(scope="module")
def wire(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Wire]:
    """A server without TLS."""
    with serving(tmp_path_factory.mktemp("wire")) as running:
        yield running


def statuses(answer: bytes) -> list[int]:
    """Return the status of each answer on a connection."""
    return [int(part[:3]) for part in answer.split(b"HTTP/1.1 ")[1:]]


def given(answer: bytes) -> Any:
    """Return what vLLM would have received."""
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 "), answer
    return json.loads(body)


REFUSED = {
    "a length and chunks": LENGTH + CHUNKED + b"\r\n" + CHUNKS,
    "chunks and a length": CHUNKED + b"Content-Length: 4\r\n\r\n" + CHUNKS,
    "two lengths": LENGTH + b"Content-Length: 3\r\n\r\n" + BODY,
    "the same length twice": LENGTH + LENGTH + b"\r\n" + BODY,
    "a list of lengths": b"Content-Length: %d, %d\r\n\r\n" % (len(BODY), len(BODY)) + BODY,
    "a signed length": b"Content-Length: +%d\r\n\r\n" % len(BODY) + BODY,
    "a negative length": b"Content-Length: -1\r\n\r\n" + BODY,
    "a hexadecimal length": b"Content-Length: 0x10\r\n\r\n" + BODY,
    "an empty length": b"Content-Length:\r\n\r\n" + BODY,
    "a length in two words": b"Content-Length: 1 0\r\n\r\n" + BODY,
    "a length beyond 64 bits": b"Content-Length: 99999999999999999999999\r\n\r\n" + BODY,
    "a space before the colon": b"Content-Length : %d\r\n\r\n" % len(BODY) + BODY,
    "a folded header": LENGTH + b"X: a\r\n b\r\n\r\n" + BODY,
    "a folded coding": b"Transfer-Encoding:\r\n chunked\r\n\r\n" + CHUNKS,
    "a bare line feed": LENGTH + b"X: a\nY: b\r\n\r\n" + BODY,
    "a bare carriage return": LENGTH + b"X: a\rY: b\r\n\r\n" + BODY,
    "an empty name": LENGTH + b": a\r\n\r\n" + BODY,
    "a null in a name": LENGTH + b"X\0: a\r\n\r\n" + BODY,
    "no coding that is known": b"Transfer-Encoding: xchunked\r\n\r\n" + CHUNKS,
    "chunks that are not last": b"Transfer-Encoding: chunked, identity\r\n\r\n" + CHUNKS,
    "chunks twice": CHUNKED + CHUNKED + b"\r\n" + CHUNKS,
    "chunks, then none": CHUNKED + b"Transfer-Encoding: identity\r\n\r\n" + CHUNKS,
    "a vertical tab in the coding": b"Transfer-Encoding: \x0bchunked\r\n\r\n" + CHUNKS,
    "a null in the coding": b"Transfer-Encoding: chunked\0\r\n\r\n" + CHUNKS,
    "a line feed after a chunk's size": CHUNKED + b"\r\n" + CHUNKS.replace(b"\r\n", b"\n"),
    "a line feed in an extension": CHUNKED + b"\r\n%x;a\n%s\r\n0\r\n\r\n" % (len(BODY), BODY),
    "a size with 0x": CHUNKED + b"\r\n0x" + CHUNKS,
    "a space after a size": CHUNKED + b"\r\n" + CHUNKS.replace(b"\r\n", b" \r\n", 1),
    "a negative size": CHUNKED + b"\r\n-1\r\n" + BODY + b"\r\n0\r\n\r\n",
    "a chunk longer than its size": CHUNKED + b"\r\n" + CHUNKS.replace(BODY, BODY + b"XX"),
    "a size beyond 64 bits": CHUNKED + b"\r\n1" + b"0" * 16 + b"\r\n" + BODY,
    "two hosts": b"Host: y\r\n" + LENGTH + b"\r\n" + BODY,
    "a host that is none": b"Host: x/?a=\r\n" + LENGTH + b"\r\n" + BODY,
}


@pytest.mark.parametrize("rest", REFUSED.values(), ids=REFUSED.keys())
def test_a_doubtful_request_is_refused_and_the_connection_closed(wire: Wire, rest: bytes) -> None:
    """A request that two servers could read differently is 400, and the rest of the connection is not read."""
    answer = wire.raw(POST + KEYED + rest + POST + KEYED + LENGTH + b"\r\n" + BODY)
    assert statuses(answer) == [400]
    assert b"connection: close" in answer.lower()
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    "head", [POST + KEYED[len(b"Host: x\r\n") :], POST + KEYED.replace(b"Host: x", b"Host: x/?a=")]
)
def test_a_request_has_one_host(wire: Wire, head: bytes) -> None:
    """HTTP/1.1 without a Host, or with one that would change the URL, is 400 (RFC 9112, 3.2)."""
    assert statuses(wire.raw(head + LENGTH + b"\r\n" + BODY)) == [400]


@pytest.mark.parametrize("host", [b"", b"localhost", b"my_service:8000", b"[::1]:8000", b"10.0.0.1"])
def test_a_host_of_any_kind_is_accepted(wire: Wire, host: bytes) -> None:
    """Names, addresses and ports are accepted, and so is an empty Host."""
    head = POST + KEYED.replace(b"Host: x", b"Host: " + host)
    assert given(wire.raw(head + LENGTH + b"\r\n" + BODY))["body"] == BODY.decode()


@pytest.mark.parametrize(
    "rest",
    [
        LENGTH + b"\r\n" + BODY,
        CHUNKED + b"\r\n" + CHUNKS,
        CHUNKED + b"\r\n" + CHUNKS.replace(b"\r\n", b";a=b\r\n", 1),
        b"Expect: 100-continue\r\n" + LENGTH + b"\r\n" + BODY,
    ],
)
def test_a_body_arrives_however_it_is_framed(wire: Wire, rest: bytes) -> None:
    """A length, chunks, extensions and an expectation are handled as the RFC says."""
    answer = wire.raw(POST + KEYED + rest).removeprefix(b"HTTP/1.1 100 Continue\r\n\r\n")
    assert given(answer)["body"] == BODY.decode()


@pytest.mark.parametrize("more", [b"", b"Connection: keep-alive\r\n", b"Connection: Upgrade\r\nUpgrade: h2c\r\n"])
def test_a_stream_in_http_1_0_ends_with_its_connection(wire: Wire, more: bytes) -> None:
    """Its client gets the pieces without chunk sizes, and the close tells it the end; in HTTP/1.1 there are chunks."""
    rest = KEYED + more + LENGTH + b"\r\n" + BODY
    head, _, body = wire.raw(b"POST /v1/responses HTTP/1.0\r\n" + rest, 5).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 ")
    assert b"connection: close" in head
    assert b"transfer-encoding" not in head
    assert body.split(b"\n\n") == [b"data: " + b"x" * 4000] * 3 + [b""]
    head, _, body = wire.raw(b"POST /v1/responses HTTP/1.1\r\n" + rest).partition(b"\r\n\r\n")
    assert b"transfer-encoding: chunked" in head
    assert body.endswith(b"\r\n0\r\n\r\n")


def test_http_1_0_has_lengths_and_heads(wire: Wire) -> None:
    """An answer with a length keeps it, and HEAD has no body in both versions."""
    answer = wire.raw(b"POST /v1/completions HTTP/1.0\r\n" + KEYED + LENGTH + b"\r\n" + BODY, 5)
    assert given(answer)["body"] == BODY.decode()
    for version in (b"1.0", b"1.1"):
        answer = wire.raw(b"HEAD /v1/models HTTP/" + version + b"\r\n" + KEYED + b"\r\n")
        head, _, body = answer.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 ")
        assert (b"content-length: " in head, body) == (True, b"")


def test_http_1_0_needs_no_host_and_is_closed(wire: Wire) -> None:
    """An old client is answered and its connection closed."""
    answer = wire.raw(b"POST /v1/completions HTTP/1.0\r\n" + KEYED[len(b"Host: x\r\n") :] + LENGTH + b"\r\n" + BODY, 5)
    assert given(answer)["body"] == BODY.decode()


UPGRADES = {
    "h2c": b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n",
    "websocket": b"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n",
    "TLS": b"Connection: upgrade\r\nUPGRADE: TLS/1.0\r\n",
    "two": b"Connection: Upgrade\r\nUpgrade: h2c\r\nUpgrade: websocket\r\n",
}


@pytest.mark.parametrize("upgrade", UPGRADES.values(), ids=UPGRADES.keys())
@pytest.mark.parametrize("rest", [LENGTH + b"\r\n" + BODY, CHUNKED + b"\r\n" + CHUNKS], ids=["length", "chunks"])
def test_an_upgrade_is_ignored_and_the_body_read(wire: Wire, upgrade: bytes, rest: bytes) -> None:
    """The request is answered as if it requested no upgrade, in any pieces, and so is the next."""
    request = POST + KEYED + upgrade + rest
    assert statuses(wire.raw(request * 3 + b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")) == [200] * 4
    seen = given(wire.raw(request))
    assert seen["body"] == BODY.decode()
    assert "upgrade" not in dict(seen["headers"])
    with wire.connect() as connection:
        for byte in request:
            connection.sendall(bytes([byte]))
        assert given(connection.recv(65536))["body"] == BODY.decode()


@pytest.mark.parametrize("name", ["a length and chunks", "two lengths", "two hosts", "chunks twice"])
def test_an_upgrade_does_not_open_a_way_round(wire: Wire, name: str) -> None:
    """An ambiguous request is refused with an upgrade too."""
    answer = wire.raw(POST + KEYED + UPGRADES["h2c"] + REFUSED[name] + b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
    assert statuses(answer) == [400]


def test_an_upgrade_needs_the_key(wire: Wire) -> None:
    """An upgrade needs the key as well, and there is no websocket."""
    head = b"GET %s HTTP/1.1\r\nHost: x\r\n" + UPGRADES["websocket"] + b"\r\n"
    assert statuses(wire.raw(head % b"/v1/models")) == [401]
    assert statuses(wire.raw(head % b"/v1/realtime")) == [404]


@pytest.mark.parametrize("target", [b"/", b"x:1", b"/v1/completions"])
def test_no_tunnel_is_made(wire: Wire, target: bytes) -> None:
    """CONNECT is 400, and the rest of the connection is not read."""
    follower = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"
    assert statuses(wire.raw(b"CONNECT " + target + b" HTTP/1.1\r\nHost: x:1\r\n\r\n" + follower)) == [400]


def test_thousands_of_upgrades_at_once_are_answered(wire: Wire) -> None:
    """A pipeline of upgrades costs as much as any pipeline: no recursion, and the server survives."""
    head = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n"
    assert statuses(wire.raw(head * 3000, 3)).count(404) == 3000


@pytest.mark.parametrize("pieces", [1, 2, 40])
@pytest.mark.parametrize("kind", ["one header", "many headers", "the path"])
def test_a_head_over_the_limit_is_refused(wire: Wire, kind: str, pieces: int) -> None:
    """More than 64 KiB are 431, in one read or in many, and 60 kB are not."""

    def request(size: int) -> bytes:
        filler = {
            "one header": b"GET /health HTTP/1.1\r\nHost: x\r\nX: " + b"a" * size,
            "many headers": b"GET /health HTTP/1.1\r\nHost: x\r\n" + b"\r\n".join([b"X: 34567890"] * (size // 13)),
            "the path": b"GET /health?" + b"a" * size + b" HTTP/1.1\r\nHost: x",
        }
        return filler[kind] + b"\r\n\r\n"

    for size, expected in ((60_000, 200), (66_000, 431), (90_000, 431)):
        data = request(size)
        step = -(-len(data) // pieces)
        with wire.connect() as connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with contextlib.suppress(OSError):
                for start in range(0, len(data), step):
                    connection.sendall(data[start : start + step])
            assert connection.recv(65536).startswith(b"HTTP/1.1 %d " % expected), size


def test_a_large_body_behind_a_head_is_not_counted(wire: Wire) -> None:
    """A body of 200 kB in one read with its head passes, and so does the next request in the same read."""
    body = BODY.ljust(200_000)
    request = POST + KEYED + b"Content-Length: %d\r\n\r\n" % len(body) + body
    assert statuses(wire.raw(request + POST + KEYED + LENGTH + b"\r\n" + BODY, 2)) == [200, 200]


@pytest.mark.parametrize("rest", [b"0\r\nX: " + b"a" * 65536, b"1;" + b"a" * 65536], ids=["trailers", "extensions"])
def test_what_is_around_chunks_has_an_end(wire: Wire, rest: bytes) -> None:
    """Trailers and extensions over 64 KiB, which need no key, end the connection, and the server frees their memory."""
    before = wire.resident_bytes()
    more = (b"\r\nX: " if rest.startswith(b"0") else b"") + b"a" * 65536
    with wire.connect() as connection, pytest.raises(OSError, match=r"reset|Broken pipe"):
        connection.sendall(b"POST / HTTP/1.1\r\nHost: x\r\n" + CHUNKED + b"\r\n" + rest + more * 1000)
    assert wire.resident_bytes() - before < 16 * 1024**2


def test_a_trailer_is_not_a_header(wire: Wire) -> None:
    """A key in a trailer gives no access (RFC 9110, 6.5.1)."""
    chunks = CHUNKS.removesuffix(b"\r\n") + KEYED[len(b"Host: x\r\n") :] + b"\r\n"
    assert statuses(wire.raw(POST + b"Host: x\r\n" + CHUNKED + b"\r\n" + chunks)) == [401]


def test_a_slow_head_is_given_up(wire: Wire) -> None:
    """A connection whose head is not complete in time is closed, also after an upgrade."""
    for before in (b"", b"GET / HTTP/1.1\r\nHost: x\r\n" + UPGRADES["h2c"] + b"\r\n"):
        began = time.monotonic()
        wire.raw(before + b"GET / HTTP/1.1\r\nHost: x\r\nX: ", timeout_s=120)
        assert 1.5 < time.monotonic() - began < 100


def test_a_refusal_is_not_written_into_another_answer(wire: Wire) -> None:
    """Bytes that are not HTTP, after a request that is being answered, end the connection silently."""
    with wire.connect() as connection:
        connection.sendall(STREAM)
        answer = connection.recv(1000)
        connection.sendall(b"NONSENSE\r\n\r\n")
        with contextlib.suppress(ConnectionError):
            while piece := connection.recv(1 << 20):
                answer += piece
    assert statuses(answer) == [200]


@pytest.mark.timeout(60)
def test_an_answer_that_nobody_reads_is_ended(wire: Wire, eventually: Callable[..., None]) -> None:
    """A stream whose client reads nothing is reset and its slot freed; one that is read slowly continues."""
    check_unread(wire, eventually)


@pytest.mark.timeout(60)
def test_an_answer_that_nobody_reads_is_ended_with_tls(tmp_path: Path, eventually: Callable[..., None]) -> None:
    """The same through the server's own TLS."""
    certificate, key = str(tmp_path / "cert.pem"), str(tmp_path / "key.pem")
    subject = ("-subj", "/CN=localhost", "-keyout", key, "-out", certificate)
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", *subject]
    subprocess.run(command, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with serving(tmp_path, certificate, key) as wire:
        wire.context = context
        check_unread(wire, eventually)


def check_unread(wire: Wire, eventually: Callable[..., None]) -> None:
    """Open a stream that is never read and one that is read slowly; then close the second."""
    ended = wire.count("unread")
    with wire.connect(receive_bytes=4096) as unread, wire.connect(receive_bytes=4096) as slow:
        unread.sendall(STREAM)
        slow.sendall(STREAM)
        eventually(lambda: wire.counters()["in_flight"] == 2, what="two streams")
        until = time.monotonic() + 3 * MAX_WRITE_S
        while time.monotonic() < until:
            assert slow.recv(4096)
            time.sleep(0.1)
        eventually(lambda: wire.counters()["in_flight"] == 1, what="one slot free")
        assert wire.count("unread") == ended + 1
        with contextlib.suppress(ConnectionResetError):  # end of stream, reported by TLS
            all(iter(lambda: unread.recv(1 << 20), b""))
        assert slow.recv(4096)
    eventually(lambda: wire.counters()["in_flight"] == 0, what="every slot free")
