"""Streams pass unchanged, and clients that disconnect leave nothing behind."""

import json
import re
import socket
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from tests.guard.conftest import GuardedEngine

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

PATHS = ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages")


def streaming(path: str, requests: SimpleNamespace, tokens: int) -> Any:
    """A greedy streaming request for a route."""
    chat = requests.chat(max_tokens=tokens, temperature=0, stream=True, ignore_eos=True)
    return {
        "/v1/chat/completions": chat,
        "/v1/completions": requests.completion(max_tokens=tokens, temperature=0, stream=True, ignore_eos=True),
        "/v1/responses": {
            "model": "demo",
            "input": "hello",
            "max_output_tokens": tokens,
            "temperature": 0,
            "stream": True,
        },
        "/v1/messages": {
            "model": "demo",
            "max_tokens": tokens,
            "temperature": 0,
            "stream": True,
            "messages": [{"role": "user", "content": "hello"}],
        },
    }[path]


def without_identity(stream: bytes) -> bytes:
    """Return a stream without what differs between runs: ids and times."""
    stream = re.sub(rb'"(id|item_id|response_id|request_id)":\s*"[^"]*"', b'"id":""', stream)
    return re.sub(rb'"(created|created_at)":\s*[0-9.]+', b'"created":0', stream)


@pytest.mark.parametrize("path", PATHS)
def test_a_stream_is_what_vllm_sends(engine: GuardedEngine, requests: SimpleNamespace, path: str) -> None:
    """A client's stream equals, byte for byte, that of a request that the guard does not check (servekit's own)."""
    body = streaming(path, requests, 24)
    for _ in range(20):  # vLLM joins tokens that are ready at the same moment, so two streams are not always alike
        guarded = engine.request("POST", path, body)
        bare = engine.request("POST", path, body, key=False, headers=engine.guard.headers)
        assert guarded.status == bare.status == 200
        assert guarded.headers["content-type"] == bare.headers["content-type"] == "text/event-stream; charset=utf-8"
        if without_identity(guarded.data) == without_identity(bare.data):
            break
    else:
        assert without_identity(guarded.data) == without_identity(bare.data)
    assert guarded.data.count(b"data: ") > 3


def test_hanging_up_frees_the_slot(
    engine: GuardedEngine, requests: SimpleNamespace, eventually: Callable[..., None]
) -> None:
    """Clients that disconnect before, within or after the body or the stream leave no slot and no bytes taken."""
    body = json.dumps(streaming("/v1/chat/completions", requests, 2000)).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {engine.key}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    ).encode()
    for sent in (head, head + body[:10], head + body):
        connections = []
        for _ in range(8):
            connection = socket.create_connection(("127.0.0.1", engine.port))
            connection.sendall(sent)
            connections.append(connection)
        eventually(lambda: engine.counters()["in_flight"] >= 8, what="eight in flight")
        if sent.endswith(body):
            assert connections[0].recv(65536).startswith(b"HTTP/1.1 200 ")
        for connection in connections:
            connection.close()
        eventually(lambda: engine.counters()["in_flight"] == 0, what="every slot free")
        assert engine.counters()["buffered_bytes"] == 0
    eventually(lambda: running(engine) == 0, what="vLLM's own requests ended")


def running(engine: GuardedEngine) -> float:
    """Return how many requests are running or waiting according to vLLM."""
    text = engine.request("GET", "/metrics", key=False, headers=engine.guard.headers).data.decode()
    values = re.findall(r"^vllm:num_requests_(?:running|waiting)\{.*\} (\S+)$", text, re.MULTILINE)
    assert values
    return sum(float(value) for value in values)
