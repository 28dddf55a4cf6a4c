"""The guard's own answers to requests that it does not pass on to vLLM: errors in the format of `error_shape.py`."""

import asyncio
import contextlib
from dataclasses import dataclass

from .asgi import Header, Receive, Scope, Send, answer, json_headers
from .error_shape import error_body
from .request_ids import HEADER, new_id

LINGER_S = 5.0
LINGER_BYTES = 64 * 1024**2
"""How long, and for how many bytes, a refused client may continue to send before its connection is closed."""


@dataclass(frozen=True)
class Refusal:
    """An answer of the guard in place of vLLM's."""

    status: int
    outcome: str
    """The name it is counted under."""
    code: str
    message: str
    param: str | None = None
    headers: tuple[Header, ...] = ()

    def answer(self, path: str, request_id: bytes) -> tuple[list[Header], bytes]:
        """Return the answer's headers and its body, for a request to this path."""
        body = error_body(path, self.status, self.message, self.param, self.code, request_id)
        return json_headers(body, (HEADER, request_id), *self.headers), body


class RefusedError(Exception):
    """Carries a refusal to the place where it is answered. Each one is raised once, or tracebacks would pile up."""

    def __init__(self, refusal: Refusal, *, unread: bool = False) -> None:
        """Refuse; `unread`: the client may still be sending its body."""
        super().__init__(refusal.outcome)
        self.refusal = refusal
        self.unread = unread


UNAUTHORIZED = Refusal(
    401,
    "unauthorized",
    "invalid_api_key",
    "A valid API key is required in the header 'Authorization: Bearer KEY' (or 'X-Api-Key: KEY').",
    headers=((b"www-authenticate", b"Bearer"),),
)
EXPIRED = Refusal(
    401, "expired_key", "invalid_api_key", "This API key has expired.", headers=((b"www-authenticate", b"Bearer"),)
)
FORBIDDEN = Refusal(403, "forbidden", "route_not_allowed", "This API key may not use this route.")
NOT_FOUND = Refusal(404, "not_found", "unknown_url", "Unknown request URL or method.")
MALFORMED = Refusal(400, "malformed", "malformed_request", "The request is not valid HTTP/1.1.")
WRONG_HOST = Refusal(
    400, "wrong_host", "invalid_host", "The request must have one Host header: a host name and optionally a port."
)
HEAD_TOO_LARGE = Refusal(
    431, "head_too_large", "headers_too_large", "The request line and headers exceed this server's limit."
)


def too_slow(limit_s: float) -> Refusal:
    """Refuse a body that does not arrive in time."""
    return Refusal(408, "too_slow", "request_timeout", f"The request body did not arrive within {limit_s:g} s.")


def too_large(limit_bytes: int) -> Refusal:
    """Refuse a body over the limit."""
    return Refusal(
        413,
        "too_large",
        "request_too_large",
        f"The request body is larger than this server's limit of {limit_bytes} bytes.",
    )


def too_busy(retry_after_s: int) -> Refusal:
    """Refuse a request because too many are in flight."""
    return Refusal(
        429,
        "too_busy",
        "rate_limit_exceeded",
        f"The server has reached its limit of requests in flight; retry in {retry_after_s} s.",
        headers=((b"retry-after", b"%d" % retry_after_s),),
    )


def key_busy(retry_after_s: int) -> Refusal:
    """Refuse a request because too many of this key's name are in flight."""
    return Refusal(
        429,
        "key_busy",
        "rate_limit_exceeded",
        f"This API key has reached its limit of requests in flight; retry in {retry_after_s} s.",
        headers=((b"retry-after", b"%d" % retry_after_s),),
    )


def draining(retry_after_s: int) -> Refusal:
    """Refuse a request because the server is about to stop."""
    return Refusal(
        503,
        "draining",
        "server_draining",
        f"The server is draining: it finishes running requests and then stops; retry in {retry_after_s} s.",
        # The connection is closed, so that the next attempt reaches another server, or a closed port.
        headers=((b"retry-after", b"%d" % retry_after_s), (b"connection", b"close")),
    )


async def refuse(scope: Scope, send: Send, refusal: Refusal, request_id: bytes, unread: Receive | None = None) -> None:
    """Send a refusal to an HTTP client; a HEAD request gets the headers only.

    unread: reads what the client still sends. It is discarded for a while: a connection that is closed while data
    arrives is reset, and the client loses the answer with it.
    """
    headers, body = refusal.answer(scope["path"], request_id)
    await answer(
        send, refusal.status, headers, b"" if scope["method"] == "HEAD" else body, more_body=unread is not None
    )
    if unread is not None:
        await _discard(unread)
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _discard(receive: Receive) -> None:
    left_bytes = LINGER_BYTES
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(LINGER_S):
            while left_bytes > 0:
                message = await receive()
                left_bytes -= len(message.get("body", b""))
                if message["type"] == "http.disconnect" or not message.get("more_body", False):
                    break


async def refuse_websocket(scope: Scope, send: Send) -> None:
    """Refuse a websocket before it is accepted: with a 404 if the server supports it, otherwise with its own 403."""
    if "websocket.http.response" not in scope.get("extensions", {}):
        await send({"type": "websocket.close", "code": 1008})
        return
    headers, body = NOT_FOUND.answer(scope["path"], new_id())
    await send({"type": "websocket.http.response.start", "status": NOT_FOUND.status, "headers": headers})
    await send({"type": "websocket.http.response.body", "body": body})
