"""Request ids, with hand-made scopes."""

import asyncio
import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from servekit.serve.guard.inside.servekit_guard.asgi import Message
from servekit.serve.guard.inside.servekit_guard.gate import Gate
from servekit.serve.guard.inside.servekit_guard.request_ids import HEADER, name_request
from servekit.serve.guard.inside.servekit_guard.vllm_patches import name_responses, wrap
from tests.guard.test_gate import BODY, Upstream, make_gate, make_scope, run

MADE = re.compile(rb"[0-9a-f]{32}")


@pytest.fixture
def upstream() -> Upstream:
    return Upstream()


@pytest.fixture
def gate(upstream: Upstream, key_file: Path) -> Gate:
    return make_gate(upstream, key_file)


def vllm_id(upstream: Upstream) -> bytes:
    """Return the one id that vLLM got last."""
    (value,) = [value for name, value in upstream.seen[-1]["headers"] if name == HEADER]
    assert isinstance(value, bytes)
    return value


def test_a_request_without_an_id_gets_one(gate: Gate, upstream: Upstream) -> None:
    """The answer's id is the one that vLLM got, and a new one each time."""
    ids = []
    for _ in range(2):
        _, headers, _ = run(gate, make_scope(), BODY)
        assert MADE.fullmatch(headers[HEADER])
        assert vllm_id(upstream) == headers[HEADER]
        ids.append(headers[HEADER])
    assert ids[0] != ids[1]


@pytest.mark.parametrize("own", [b"abc", b"a", b"0af7651916cd43dd-1.2_3", b"x" * 64])
def test_a_plain_id_of_the_clients_is_kept(gate: Gate, upstream: Upstream, own: bytes) -> None:
    """It is returned unchanged; vLLM gets it with a unique suffix, so that two clients' ids cannot collide."""
    ids = set()
    for _ in range(2):
        assert run(gate, make_scope(headers=[(HEADER, own)]), BODY)[1][HEADER] == own
        start, _, end = vllm_id(upstream).rpartition(b"-")
        assert start == own
        assert MADE.fullmatch(end)
        ids.add(end)
    assert len(ids) == 2


@pytest.mark.parametrize(
    "sent",
    [[b""], [b"x" * 65], [b"a b"], [b"a\nb"], [b"a/b"], [b"\xff"], [b"a", b"b"], [b"a\n"], [b"%n"], [b"{}"]],
)
def test_another_id_is_replaced(gate: Gate, upstream: Upstream, sent: list[bytes]) -> None:
    """A long, unusual or repeated id reaches neither the answer nor vLLM."""
    _, headers, _ = run(gate, make_scope(headers=[(HEADER, value) for value in sent]), BODY)
    assert MADE.fullmatch(headers[HEADER])
    assert vllm_id(upstream) == headers[HEADER]


@pytest.mark.parametrize(
    ("scope", "status"),
    [
        (make_scope(key=None, headers=[(HEADER, b"mine")]), 401),
        (make_scope("/nowhere", headers=[(HEADER, b"mine")]), 404),
        (make_scope(headers=[(HEADER, b"mine"), (b"content-length", b"1001")]), 413),
        (make_scope(headers=[(HEADER, b"mine")]), 400),
        (make_scope("/v1/messages", headers=[(HEADER, b"mine")]), 400),
    ],
)
def test_a_refusal_carries_the_id(gate: Gate, scope: dict[str, Any], status: int) -> None:
    """The id is in the headers and in the body, also where Anthropic's clients read it."""
    answered, headers, body = run(gate, scope, b"no json")
    document = json.loads(body)
    assert (answered, headers[HEADER], document["error"]["request_id"]) == (status, b"mine", "mine")
    assert document.get("request_id") == ("mine" if scope["path"] == "/v1/messages" else None)


def test_vllms_own_header_gives_way(key_file: Path) -> None:
    """When vLLM answers with its own id (`--enable-request-id-headers`), there is still only one header."""

    async def answers(_scope: Any, _receive: Any, send: Any) -> None:
        headers = [(HEADER, b"vllms"), (b"content-type", b"text/plain")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b""})

    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> Message:
        return {"type": "http.request", "body": BODY, "more_body": False}

    asyncio.run(make_gate(answers, key_file)(make_scope(headers=[(HEADER, b"mine")]), receive, send))
    assert sent[0]["headers"][:2] == [(b"content-type", b"text/plain"), (HEADER, b"mine")]
    assert HEADER not in dict(sent[0]["headers"][2:])


def test_the_servers_own_headers_stay() -> None:
    """The server's list of headers is not changed: it belongs to the connection."""
    headers = [(b"host", b"x"), (HEADER, b"a")]
    scope = {"headers": headers}
    name_request(scope)
    assert headers == [(b"host", b"x"), (HEADER, b"a")]
    assert scope["headers"] is not headers


def test_a_response_is_named_by_the_header_and_not_by_its_body() -> None:
    """vLLM takes the id of `/v1/responses` from the body, where two clients can choose the same."""
    seen: list[str] = []

    async def create_responses(request: Any, _raw_request: Any = None) -> str:
        seen.append(request.request_id)
        return "answer"

    serving = SimpleNamespace(create_responses=create_responses)
    wrap(serving, "create_responses", name_responses)
    wrap(None, "create_responses", name_responses)
    raw = SimpleNamespace(headers={"x-request-id": "mine-1"})
    assert asyncio.run(serving.create_responses(SimpleNamespace(request_id="theirs"), raw)) == "answer"
    assert asyncio.run(serving.create_responses(SimpleNamespace(request_id="inner"))) == "answer"
    assert seen == ["resp_mine-1", "inner"]
