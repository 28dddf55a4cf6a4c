"""Thousands of malformed requests on the real engine: it survives, and no slot is lost.

Odd bodies are sent by tests/engine/killers/test_barrage.py.
"""

import random
import socket
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.guard.conftest import GuardedEngine, completion

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

RAW_REQUESTS = 5000
PATHS = ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages")


def test_malformed_http_does_no_harm(engine: GuardedEngine) -> None:
    """Broken request lines, headers, lengths and chunks, with and without the key: refused or dropped."""
    chaos = random.Random(1)
    requests = [malformed(chaos, engine.key) for _ in range(RAW_REQUESTS)]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda data: send_and_close(engine.port, data), requests))
    statuses = Counter(answer[9:12] for answer in answers)
    assert sum(statuses.values()) == RAW_REQUESTS
    assert not {status for status in statuses if status.startswith(b"5")}, statuses
    assert statuses[b"404"] > 100, statuses
    assert statuses[b"401"] > 5, statuses
    assert_unharmed(engine)


def assert_unharmed(engine: GuardedEngine) -> None:
    """Assert that the engine answers and that the guard holds nothing."""
    counters = engine.counters()
    assert (counters["in_flight"], counters["buffered_bytes"]) == (0, 0)
    assert engine.request("GET", "/health").status == 200
    assert engine.request("POST", "/v1/completions", completion()).status == 200


def malformed(chaos: random.Random, key: str) -> bytes:
    """Return a request that is broken, unusual, or ordinary with a byte or two changed."""
    method = chaos.choice(["GET", "POST", "HEAD", "OPTIONS", "PUT", "get", "BREW", "", "G\0T", "CONNECT", "PRI"])
    path = chaos.choice(
        [*PATHS, "/v1/models", "/health", "/metrics", "/invocations", "//", "*", "", "/%", "/\xff", "/" + "a" * 9000]
    )
    version = chaos.choice(["HTTP/1.1", "HTTP/1.0", "HTTP/2.0", "HTTP/9", "", "HTTP/1.1\r"])
    headers = chaos.sample(
        [
            "Host: x",
            f"Authorization: Bearer {key}",
            "Authorization: Bearer",
            "Authorization: Bearer " + "x" * 5000,
            "Content-Length: 10",
            "Content-Length: -1",
            "Content-Length: 99999999999999999999999",
            "Content-Length: 5, 5",
            "Transfer-Encoding: chunked",
            "Transfer-Encoding: chunked, identity",
            "Content-Type: application/json",
            "Expect: 100-continue",
            "Upgrade: websocket",
            "Connection: Upgrade",
            "Connection: close",
            "X-Servekit-Token: x",
            "X-Forwarded-For: 127.0.0.1",
            " folded: header",
            "no colon at all",
            "Bad\x00Name: x",
            ": empty",
        ],
        chaos.randint(0, 6),
    )
    bodies = ["", "{}", "5\r\nhello\r\n0\r\n\r\n", "ffffffffffffffff\r\nx", "zz\r\n", '{"n": 5', "\x00" * 20]
    head = "\r\n".join([f"{method} {path} {version}".strip(), *headers])
    data = bytearray((head + "\r\n\r\n" + chaos.choice(bodies)).encode("latin-1", "replace"))
    for _ in range(chaos.choice([0, 0, 1, 3])):
        data[chaos.randrange(len(data))] = chaos.randrange(256)
    return bytes(data)


def send_and_close(port: int, data: bytes) -> bytes:
    """Send bytes, end the sending side, and return what comes back."""
    answer = b""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
            while chunk := connection.recv(65536):
                answer += chunk
    except ConnectionError:
        pass
    return answer
