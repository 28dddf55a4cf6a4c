"""The one format of errors, from errors that vLLM really returned."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from servekit.serve.guard.inside.servekit_guard.asgi import Message, Scope
from servekit.serve.guard.inside.servekit_guard.error_shape import LONGEST_MESSAGE
from tests.guard.test_gate import BODY, make_gate, make_scope

VLLM = {"error": {"message": "temperature must be non-negative", "type": "BadRequestError", "param": "t", "code": 400}}
ANTHROPIC = {"type": "error", "error": {"type": "BadRequestError", "message": "no"}}


def answer_of(key_file: Path, path: str, status: int, *pieces: bytes) -> list[Message]:
    """Return what a client gets for an answer of vLLM."""

    async def vllm(_scope: Scope, _receive: Any, send: Any) -> None:
        headers = [(b"content-length", b"%d" % sum(map(len, pieces))), (b"x-more", b"1")]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        for number, piece in enumerate(pieces, start=1):
            await send({"type": "http.response.body", "body": piece, "more_body": number < len(pieces)})

    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> Message:
        return {"type": "http.request", "body": BODY, "more_body": False}

    method = "POST" if path.startswith("/v1/") else "GET"
    asyncio.run(make_gate(vllm, key_file)(make_scope(path, method), receive, send))
    return sent


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (400, json.dumps(VLLM).encode(), ("temperature must be non-negative", "t", "invalid_request_error", None)),
        (400, b'{"detail":"There was an error"}', ("There was an error", None, "invalid_request_error", None)),
        (400, json.dumps(ANTHROPIC).encode(), ("no", None, "invalid_request_error", None)),
        (400, b'{"object":"error","message":"no","code":4}', ("no", None, "invalid_request_error", None)),
        (401, b'{"error":"Unauthorized"}', ("Unauthorized", None, "invalid_request_error", None)),
        (
            404,
            b'{"error":{"message":"no","param":"model"}}',
            ("no", "model", "invalid_request_error", "model_not_found"),
        ),
        (429, b"[1]", ("[1]", None, "rate_limit_error", None)),
        (500, b"Internal Server Error", ("Internal Server Error", None, "server_error", None)),
        (500, b'{"error":{"message":"","param":3}}', ("Internal server error", None, "server_error", None)),
        (503, b"", ("Internal server error", None, "server_error", None)),
    ],
)
def test_every_error_has_the_shape(key_file: Path, status: int, body: bytes, expected: tuple[Any, ...]) -> None:
    """An error of vLLM in any format, in one piece or two, reaches the client in OpenAI's."""
    for pieces in ([body], [body[:3], body[3:]]):
        start, part = answer_of(key_file, "/v1/completions", status, *pieces)
        error = json.loads(part["body"])["error"]
        assert (error["message"], error["param"], error["type"], error["code"]) == expected
        headers = dict(start["headers"])
        assert start["status"] == status
        assert headers[b"content-length"] == b"%d" % len(part["body"])
        assert (headers[b"content-type"], headers[b"x-more"]) == (b"application/json", b"1")
        assert headers[b"x-request-id"].decode() == error["request_id"]


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, "invalid_request_error"),
        (401, "authentication_error"),
        (404, "not_found_error"),
        (413, "request_too_large"),
        (429, "rate_limit_error"),
        (500, "api_error"),
        (503, "overloaded_error"),
    ],
)
def test_messages_are_answered_as_anthropics(key_file: Path, status: int, kind: str) -> None:
    """On /v1/messages the envelope and the types are Anthropic's."""
    _, part = answer_of(key_file, "/v1/messages", status, json.dumps(VLLM).encode())
    document = json.loads(part["body"])
    assert (document["type"], document["error"]["type"]) == ("error", kind)


def test_other_answers_pass_in_their_pieces(key_file: Path) -> None:
    """An answer, and the empty 503 of /health, are neither delayed nor changed."""
    assert [part["body"] for part in answer_of(key_file, "/v1/completions", 200, b"a", b"b")[1:]] == [b"a", b"b"]
    assert [part["body"] for part in answer_of(key_file, "/health", 503, b"")[1:]] == [b""]


def test_a_message_has_an_end(key_file: Path) -> None:
    """vLLM repeats rejected values; a client gets the beginning only."""
    _, part = answer_of(key_file, "/v1/completions", 400, json.dumps({"error": {"message": "x" * 10**6}}).encode())
    assert len(json.loads(part["body"])["error"]["message"]) == LONGEST_MESSAGE
