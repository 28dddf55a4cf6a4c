"""What the guard answers itself: OpenAI-shaped JSON errors, made once, and small JSON documents."""

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]

LINGER_S = 5.0
LINGER_BYTES = 64 * 1024**2
"""How long, and for how many bytes, a refused client may go on sending before its connection is closed."""


@dataclass(frozen=True)
class Refusal:
    """An answer of the guard's own that keeps a request from vLLM."""

    status: int
    outcome: str
    """The name it is counted under."""
    kind: str
    code: str
    message: str
    param: str | None = None
    headers: tuple[tuple[bytes, bytes], ...] = ()

    @property
    def body(self) -> bytes:
        """The error as OpenAI's clients expect it."""
        error = {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}
        return json.dumps({"error": error}).encode()


class RefusedError(Exception):
    """Carries a refusal up to where it is answered; a fresh one each time, or tracebacks would pile up."""

    def __init__(self, refusal: Refusal, *, unread: bool = False) -> None:
        """Refuse; `unread`: the client may still be sending its body."""
        super().__init__(refusal.outcome)
        self.refusal = refusal
        self.unread = unread


UNAUTHORIZED = Refusal(
    401,
    "unauthorized",
    "invalid_request_error",
    "invalid_api_key",
    "A valid API key is required, as the header 'Authorization: Bearer KEY'.",
    headers=((b"www-authenticate", b"Bearer"),),
)
NOT_FOUND = Refusal(404, "not_found", "invalid_request_error", "unknown_url", "Unknown request URL or method.")


def too_slow(limit_s: float) -> Refusal:
    """Refuse a body that does not arrive."""
    message = f"The request body did not arrive within {limit_s:g} s."
    return Refusal(408, "too_slow", "invalid_request_error", "request_timeout", message)


def too_large(limit_bytes: int) -> Refusal:
    """Refuse a body over the limit."""
    message = f"The request body is larger than this server's limit of {limit_bytes} bytes."
    return Refusal(413, "too_large", "invalid_request_error", "request_too_large", message)


def too_busy(retry_after_s: int) -> Refusal:
    """Refuse a request because too many are in flight."""
    message = f"The server has as many requests as it takes; try again in {retry_after_s} s."
    headers = ((b"retry-after", str(retry_after_s).encode()),)
    return Refusal(429, "too_busy", "rate_limit_error", "rate_limit_exceeded", message, headers=headers)


def draining(retry_after_s: int) -> Refusal:
    """Refuse a request because the server is about to stop."""
    message = f"The server is draining: it finishes what runs and then stops; try again in {retry_after_s} s."
    # Closed, so that the next attempt finds another server, or a closed port.
    headers = ((b"retry-after", str(retry_after_s).encode()), (b"connection", b"close"))
    return Refusal(503, "draining", "server_error", "server_draining", message, headers=headers)


def harmful(param: str | None, message: str) -> Refusal:
    """Refuse a field that vLLM would let harm the engine."""
    return Refusal(400, "harmful", "invalid_request_error", "invalid_value", message, param)


async def answer(scope: Scope, send: Send, status: int, body: bytes, headers: Headers) -> None:
    """Send a whole JSON answer; one to HEAD has the headers only."""
    start_headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        *headers,
    ]
    await send({"type": "http.response.start", "status": status, "headers": start_headers})
    await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})


async def refuse(scope: Scope, send: Send, refusal: Refusal) -> None:
    """Send a refusal to an HTTP client."""
    await answer(scope, send, refusal.status, refusal.body, list(refusal.headers))


async def refuse_and_linger(receive: Receive, send: Send, refusal: Refusal) -> None:
    """Send a refusal at once, then throw away what the client still sends, for a while.

    A connection that is closed while data arrives is reset, and the client loses the answer with it.
    """
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(refusal.body)).encode())]
    await send({"type": "http.response.start", "status": refusal.status, "headers": [*headers, *refusal.headers]})
    await send({"type": "http.response.body", "body": refusal.body, "more_body": True})
    left_bytes = LINGER_BYTES
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(LINGER_S):
            while left_bytes > 0:
                message = await receive()
                left_bytes -= len(message.get("body", b""))
                if message["type"] == "http.disconnect" or not message.get("more_body", False):
                    break
    await send({"type": "http.response.body", "body": b"", "more_body": False})


async def refuse_websocket(scope: Scope, send: Send) -> None:
    """Refuse a websocket before it is accepted: with a 404 where the server can, else with its 403."""
    if "websocket.http.response" not in scope.get("extensions", {}):
        await send({"type": "websocket.close", "code": 1008})
        return
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(NOT_FOUND.body))]
    await send({"type": "websocket.http.response.start", "status": NOT_FOUND.status, "headers": headers})
    await send({"type": "websocket.http.response.body", "body": NOT_FOUND.body})
