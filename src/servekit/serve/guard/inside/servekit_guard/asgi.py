"""The types of the ASGI interface, the scope's keys of the guard, and small JSON answers."""

import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
Header = tuple[bytes, bytes]

CHECKED_BODY = "servekit.body"
"""The scope's key for the parsed body: vLLM gets the object that was checked, not what another parser would read."""
REQUEST_ID = "servekit.request_id"
"""The scope's key for the request's id."""


def json_headers(body: bytes, *more: Header) -> list[Header]:
    """Return the headers of an answer with this JSON body."""
    return [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body)), *more]


async def answer(send: Send, status: int, headers: list[Header], body: bytes, *, more_body: bool = False) -> None:
    """Send an answer; `more_body`: the caller will end it."""
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": more_body})


async def answer_json(send: Send, document: object) -> None:
    """Answer 200 with a JSON document."""
    body = json.dumps(document).encode()
    await answer(send, 200, json_headers(body), body)
