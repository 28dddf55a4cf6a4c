"""What a client gets from the real engine on the wire: ids, errors, upgrades, and requests of real libraries."""

import json
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest

from tests.guard.conftest import GuardedEngine, chat, completion
from tests.guard.test_streams import PATHS, running, streaming

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

CHAT = "/v1/chat/completions"
SMALL = {
    CHAT: chat(),
    "/v1/completions": completion(),
    "/v1/responses": {"model": "demo", "input": "hello", "max_output_tokens": 4},
    "/v1/messages": {"model": "demo", "max_tokens": 4, "messages": [{"role": "user", "content": "hello"}]},
}
BODY = json.dumps(chat(max_tokens=2)).encode()
LENGTH = f"Content-Length: {len(BODY)}\r\n".encode()
JSON = b"Content-Type: application/json\r\n"


def id_of(data: bytes) -> str:
    """The id that vLLM gave an answer or the first event of a stream."""
    lines = (line.partition(b"data: ")[2] for line in data.splitlines() if line.startswith(b"data: "))
    document = json.loads(data if data.startswith(b"{") else next(lines))
    document = document.get("response", document.get("message", document))
    return str(document["id"])


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_carries_its_id(engine: GuardedEngine, requests: SimpleNamespace, path: str, *, stream: bool) -> None:
    """vLLM's own id contains the header's id in each answer, streams included; the body's `request_id` is unused."""
    body = streaming(path, requests, 4) if stream else SMALL[path]
    made = engine.request("POST", path, body | {"request_id": "theirs"})
    assert made.status == 200
    assert made.headers["x-request-id"] in id_of(made.data)
    own = engine.request("POST", path, body, headers={"x-request-id": "my.own_id-1"})
    assert own.headers.getlist("x-request-id") == ["my.own_id-1"]
    assert "my.own_id-1-" in id_of(own.data)


@pytest.mark.parametrize("path", PATHS)
def test_one_id_for_many_requests_harms_none(engine: GuardedEngine, path: str) -> None:
    """Concurrent requests with the same id, in header and body, all get their own answers."""
    with ThreadPoolExecutor(16) as pool:
        answers = list(
            pool.map(
                lambda _: engine.request(
                    "POST", path, SMALL[path] | {"request_id": "same"}, headers={"x-request-id": "same"}
                ),
                range(32),
            )
        )
    assert {answer.status for answer in answers} == {200}
    assert len({id_of(answer.data) for answer in answers}) == len(answers)


WRONG: dict[str, tuple[str, Any, str | None]] = {
    "an unknown model": (CHAT, SMALL[CHAT] | {"model": "nope"}, "model"),
    "a missing field": ("/v1/responses", {"model": "demo"}, "input"),
    "a wrong type": (CHAT, SMALL[CHAT] | {"temperature": "hot"}, "temperature"),
    "a wrong value": ("/v1/completions", SMALL["/v1/completions"] | {"temperature": -1}, "temperature"),
    "a message without a role": (CHAT, SMALL[CHAT] | {"messages": [{}]}, "messages[0].role"),
    "no messages": ("/v1/messages", {"model": "demo", "max_tokens": 4}, "messages"),
    "a wrong number": ("/v1/messages", SMALL["/v1/messages"] | {"max_tokens": -1}, "max_tokens"),
    "an unknown model for messages": ("/v1/messages", SMALL["/v1/messages"] | {"model": "nope"}, None),
    "an unknown format": ("/v1/completions", completion(response_format={"type": "nope"}), "response_format"),
    "deep JSON": (CHAT, b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}", None),
    "deep JSON for messages": ("/v1/messages", b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}", None),
    "less deep JSON": (CHAT, b'{"a":' + b"[" * 900 + b"]" * 900 + b"}", None),
    "too long a prompt": (CHAT, chat({"type": "text", "text": "hi " * 9000}), "input_tokens"),
}


@pytest.mark.parametrize(("path", "body", "param"), WRONG.values(), ids=WRONG.keys())
def test_an_error_has_the_shape_its_client_knows(
    engine: GuardedEngine, path: str, body: Any, param: str | None
) -> None:
    """Each of vLLM's refusals has the one format, the field's name, and no path or address of this host."""
    response = engine.request("POST", path, body)
    document = response.json()
    error = document["error"]
    assert response.status in (400, 404), response.data
    assert set(error) == {"message", "type", "param", "code", "request_id"}
    assert error["request_id"] == response.headers["x-request-id"]
    assert error["param"] == param
    assert len(response.data) < 3000
    assert not [leak for leak in (b".py", b"site-packages", b" 0x", b"Traceback") if leak in response.data]
    if path == "/v1/messages":
        assert document["type"] == "error"
        assert error["type"] == ("not_found_error" if response.status == 404 else "invalid_request_error")
    else:
        assert set(document) == {"error"}
        assert error["type"] == "invalid_request_error"


def test_models_contain_no_path(engine: GuardedEngine) -> None:
    """`root` is the served name; the fields that clients read are present."""
    response = engine.request("GET", "/v1/models")
    (model,) = response.json()["data"]
    assert (model["id"], model["root"], model["max_model_len"]) == ("demo", "demo", 4096)
    assert len(model["permission"]) == 1
    assert b"/" not in response.data
    assert response.headers["x-request-id"]


def head(engine: GuardedEngine, path: str = CHAT, key: str | None = None) -> bytes:
    """Return the start of a raw request that is the last one on its connection."""
    credential = f"Bearer {engine.key}" if key is None else key
    line = f"POST {path} HTTP/1.1\r\nHost: x\r\nAuthorization: {credential}\r\nConnection: close\r\n"
    return line.encode()


def test_an_upgrade_is_ignored(engine: GuardedEngine) -> None:
    """`curl --http2` and Java's HttpClient request h2c with their body: they are answered in HTTP/1.1."""
    upgrade = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA\r\n"
    request = head(engine).replace(b"Connection: close\r\n", upgrade)
    answer = engine.raw(request + JSON + LENGTH + b"\r\n" + BODY, timeout_s=2)
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert b'"object":"chat.completion"' in answer


OUTSIDE: dict[str, tuple[bytes, bytes, int]] = {
    "an expectation": (JSON + b"Expect: 100-continue\r\n" + LENGTH, BODY, 100),
    "a charset": (b"Content-Type: application/json; charset=UTF-8\r\n" + LENGTH, BODY, 200),
    "a form": (b"Content-Type: application/x-www-form-urlencoded\r\n" + LENGTH, BODY, 400),
    "chunks": (
        JSON + b"Transfer-Encoding: chunked\r\n",
        b"14\r\n" + BODY[:20] + b"\r\n%x\r\n" % len(BODY[20:]) + BODY[20:] + b"\r\n0\r\n\r\n",
        200,
    ),
    "a proxy's headers": (
        JSON + LENGTH + b"X-Forwarded-For: 203.0.113.5\r\nX-Request-Id: abc\r\nVia: 1.1 proxy\r\n"
        b"Accept-Encoding: gzip, br\r\ntraceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\r\n",
        BODY,
        200,
    ),
    "a byte order mark": (JSON + b"Content-Length: %d\r\n" % (len(BODY) + 3), b"\xef\xbb\xbf" + BODY, 200),
    "a trailing comma": (JSON + b"Content-Length: 14\r\n", b'{"model":"a",}', 400),
}


@pytest.mark.parametrize(("headers", "body", "status"), OUTSIDE.values(), ids=OUTSIDE.keys())
def test_a_request_of_the_outside_world_is_answered(
    engine: GuardedEngine, headers: bytes, body: bytes, status: int
) -> None:
    """Requests as libraries and proxies send them are served, or refused with a message."""
    answer = engine.raw(head(engine) + headers + b"\r\n" + body, timeout_s=10)
    assert answer.startswith(b"HTTP/1.1 %d " % status), answer
    if status == 100:
        assert b"HTTP/1.1 200 " in answer
    if b"X-Request-Id: abc" in headers:
        assert b"x-request-id: abc\r\n" in answer
    if b"urlencoded" in headers:
        assert b"Media Type" in answer
    if body.endswith(b",}"):
        assert b"not valid JSON" in answer


@pytest.mark.parametrize("credential", ["Bearer wrong-key-0000000000000", 'Bearer "{key}"', "{key}"])
def test_a_refused_client_is_not_asked_for_its_body(engine: GuardedEngine, credential: str) -> None:
    """A wrong key, one in quotes or without a scheme, is 401 immediately, without a 100 before it."""
    request = head(engine, key=credential.format(key=engine.key)) + JSON + b"Expect: 100-continue\r\n" + LENGTH
    assert engine.raw(request + b"\r\n").startswith(b"HTTP/1.1 401 ")


@pytest.mark.parametrize("path", [CHAT + "/", "/v1/v1/chat/completions", "/tokenize", "/ping"])
def test_a_wrong_address_is_not_found(engine: GuardedEngine, path: str) -> None:
    """There are no redirects, and no paths other than the routes."""
    response = engine.request("POST", path, SMALL[CHAT], headers={"x-request-id": "abc"})
    assert (response.status, response.headers["x-request-id"]) == (404, "abc")
    assert response.json()["error"]["code"] == "unknown_url"


def test_a_stream_that_nobody_reads_is_aborted(engine: GuardedEngine, eventually: Callable[..., None]) -> None:
    """Its slot is free, vLLM stops working on it, and a concurrent stream is complete."""
    fields = {"stream": True, "ignore_eos": True, "logprobs": True, "top_logprobs": 20, "n": 8, "max_tokens": 3000}
    body = json.dumps(chat(**fields)).encode()
    request = head(engine) + JSON + b"Content-Length: %d\r\n\r\n" % len(body) + body
    before = engine.count(CHAT, "unread")
    with socket.socket() as unread:
        unread.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        unread.connect(("127.0.0.1", engine.port))
        unread.sendall(request)
        eventually(lambda: engine.counters()["in_flight"] == 1, what="one in flight")
        beside = engine.request("POST", CHAT, chat(stream=True, max_tokens=200, ignore_eos=True))
        assert beside.data.endswith(b"data: [DONE]\n\n")
        eventually(lambda: engine.count(CHAT, "unread") == before + 1, within_s=60, what="the end of the stream")
        eventually(lambda: engine.counters()["in_flight"] == 0, what="the slot free")
        eventually(lambda: running(engine) == 0, what="vLLM at rest")
