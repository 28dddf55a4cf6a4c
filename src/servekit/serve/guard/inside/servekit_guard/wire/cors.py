"""Pages of other origins in a browser (CORS, the Fetch standard): the operator's list of origins, and nobody else.

The guard answers instead of Starlette's middleware in vLLM, because its own refusals need the headers too: without
them a browser hides a 401 or a 429 from the page. Cookies are never allowed; a page needs a key like every client.
"""

import re
from collections.abc import Awaitable, Collection
from typing import Any

from ..asgi import Header, Message, Scope, Send
from ..request_ids import HEADER

SECONDS = 600
"""How long a browser may remember the answer to a preflight."""
_VARY = b"vary", b"Origin"
_EXPOSED = b"access-control-expose-headers", HEADER + b", retry-after"
_ALLOWED = re.compile(
    rb"accept|authorization|content-type|idempotency-key|user-agent|x-api-key|x-request-id|traceparent|tracestate"
    rb"|(x-stainless|openai|anthropic)-[a-z0-9-]+"
)
"""The headers that a page may send: those of OpenAI's and Anthropic's clients, and of tracing (W3C)."""


def listed_origin(scope: Scope, origins: Collection[str]) -> bytes | None:
    """Return the origin of the page that sends this request, when the operator has listed it."""
    sent = _values(scope, b"origin")
    return sent[0] if len(sent) == 1 and sent[0].decode("latin-1") in origins else None


def share(send: Send, origin: bytes | None) -> Send:
    """Return a `send` whose answers the pages of this origin may read; None: those of no other origin."""
    added = [_VARY, (b"access-control-allow-origin", origin), _EXPOSED] if origin else [_VARY]

    def send_on(message: Message) -> Awaitable[None]:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message["headers"], *added]}
        return send(message)

    return send_on


def asked_method(scope: Scope) -> str | None:
    """Return the method that a preflight asks for; None when the request is not one."""
    sent = _values(scope, b"access-control-request-method")
    return sent[0].decode("latin-1") if scope["method"] == "OPTIONS" and len(sent) == 1 else None


def preflight_headers(scope: Scope, method: str) -> list[Header]:
    """Return the headers that allow a page this method, and those of the headers it asks for that are allowed."""
    names = b",".join(_values(scope, b"access-control-request-headers")).lower().split(b",")
    allowed = [name.strip() for name in names if _ALLOWED.fullmatch(name.strip())]
    return [
        (b"access-control-allow-methods", method.encode()),
        (b"access-control-allow-headers", b", ".join(allowed)),
        (b"access-control-max-age", b"%d" % SECONDS),
        (b"content-length", b"0"),
    ]


def _values(scope: Scope, name: bytes) -> list[Any]:
    return [value for each, value in scope["headers"] if each == name]
