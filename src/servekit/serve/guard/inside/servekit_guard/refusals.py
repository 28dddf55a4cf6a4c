"""What the guard answers itself: errors in the one shape of `errors.py`, and small JSON documents."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any

from .error_shape import error_body
from .request_ids import HEADER, new_id

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
    code: str
    message: str
    param: str | None = None
    headers: tuple[tuple[bytes, bytes], ...] = ()

    def answer(self, path: str, request_id: bytes) -> tuple[Headers, bytes]:
        """Return the answer's headers and its body, for a request to this path."""
        body = error_body(path, self.status, self.message, self.param, self.code, request_id)
        own = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body)), (HEADER, request_id)]
        return [*own, *self.headers], body


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
    "invalid_api_key",
    "A valid API key is required, as the header 'Authorization: Bearer KEY'.",
    headers=((b"www-authenticate", b"Bearer"),),
)
NOT_FOUND = Refusal(404, "not_found", "unknown_url", "Unknown request URL or method.")
MALFORMED = Refusal(400, "malformed", "malformed_request", "The request is not valid HTTP/1.1.")
WRONG_HOST = Refusal(
    400, "wrong_host", "invalid_host", "The request must have one Host header, with a host name and maybe a port."
)
HEAD_TOO_LARGE = Refusal(
    431, "head_too_large", "headers_too_large", "The request line and headers are larger than this server's limit."
)


def too_slow(limit_s: float) -> Refusal:
    """Refuse a body that does not arrive."""
    message = f"The request body did not arrive within {limit_s:g} s."
    return Refusal(408, "too_slow", "request_timeout", message)


def too_large(limit_bytes: int) -> Refusal:
    """Refuse a body over the limit."""
    message = f"The request body is larger than this server's limit of {limit_bytes} bytes."
    return Refusal(413, "too_large", "request_too_large", message)


def too_busy(retry_after_s: int) -> Refusal:
    """Refuse a request because too many are in flight."""
    message = f"The server has as many requests as it takes; try again in {retry_after_s} s."
    headers = ((b"retry-after", str(retry_after_s).encode()),)
    return Refusal(429, "too_busy", "rate_limit_exceeded", message, headers=headers)


def draining(retry_after_s: int) -> Refusal:
    """Refuse a request because the server is about to stop."""
    message = f"The server is draining: it finishes what runs and then stops; try again in {retry_after_s} s."
    # Closed, so that the next attempt finds another server, or a closed port.
    headers = ((b"retry-after", str(retry_after_s).encode()), (b"connection", b"close"))
    return Refusal(503, "draining", "server_draining", message, headers=headers)


def harmful(param: str | None, message: str) -> Refusal:
    """Refuse a field that vLLM would let harm the engine."""
    return Refusal(400, "harmful", "invalid_value", message, param)


async def answer(scope: Scope, send: Send, status: int, body: bytes, headers: Headers) -> None:
    """Send a whole JSON answer; one to HEAD has the headers only."""
    start_headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        *headers,
    ]
    await send({"type": "http.response.start", "status": status, "headers": start_headers})
    await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})


async def refuse(scope: Scope, send: Send, refusal: Refusal, request_id: bytes) -> None:
    """Send a refusal to an HTTP client."""
    headers, body = refusal.answer(scope["path"], request_id)
    await send({"type": "http.response.start", "status": refusal.status, "headers": headers})
    await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})


async def refuse_and_linger(scope: Scope, receive: Receive, send: Send, refusal: Refusal, request_id: bytes) -> None:
    """Send a refusal at once, then throw away what the client still sends, for a while.

    A connection that is closed while data arrives is reset, and the client loses the answer with it.
    """
    headers, body = refusal.answer(scope["path"], request_id)
    await send({"type": "http.response.start", "status": refusal.status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": True})
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
    headers, body = NOT_FOUND.answer(scope["path"], new_id())
    await send({"type": "websocket.http.response.start", "status": NOT_FOUND.status, "headers": headers})
    await send({"type": "websocket.http.response.body", "body": body})
