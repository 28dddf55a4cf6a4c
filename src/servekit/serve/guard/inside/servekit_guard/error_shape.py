"""One shape for every error that leaves the server: OpenAI's, and on `/v1/messages` Anthropic's.

vLLM 0.20.2 answers in four: its own `ErrorInfo` with a number for `code`, the same on `/v1/messages` when a field is
wrong, Anthropic's without Anthropic's types, and FastAPI's `{"detail": ...}` for JSON nested too deep. Its words for
a wrong field (`validation_exception_handler`, `entrypoints/openai/server_utils.py`) repeat the field's value twice
and name paths of this host.
"""

import json
import re
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from .request_ids import HEADER

MESSAGES_PATH = "/v1/messages"
LONGEST_MESSAGE = 2_000
"""Characters of vLLM's words that are passed on: some repeat a value that was sent."""

_OPENAI_TYPES = {429: "rate_limit_error"}
_ANTHROPIC_TYPES = {
    401: "authentication_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}
_ANY_SERVER_ERROR = 500

_INTERNALS = re.compile(
    r"(list|tuple|string|pop) .*(out of range|empty)|invalid literal for|could not convert|unhashable type"
    r"|'[^']*'$|.*object (has no|is not|does not)|.*not supported between|unsupported operand|.*TextInputSequence"
    r"|argument (of type|')|maximum recursion",
    re.DOTALL,
)
"""What Python says of a value that vLLM did not expect: no words for who sent it."""

_Message = MutableMapping[str, Any]
_Send = Callable[[_Message], Awaitable[None]]


def error_body(path: str, status: int, message: str, param: str | None, code: str | None, request_id: bytes) -> bytes:
    """Return an error as the clients of this path expect it."""
    named = request_id.decode()
    family = _ANTHROPIC_TYPES if path == MESSAGES_PATH else _OPENAI_TYPES
    server_error = "api_error" if path == MESSAGES_PATH else "server_error"
    kind = family.get(status, "invalid_request_error" if status < _ANY_SERVER_ERROR else server_error)
    error = {"message": message, "type": kind, "param": param, "code": code, "request_id": named}
    if path == MESSAGES_PATH:
        return json.dumps({"type": "error", "error": error, "request_id": named}).encode()
    return json.dumps({"error": error}).encode()


def passed_on(send: _Send, path: str, request_id: bytes) -> _Send:
    """Return a `send` for vLLM: its answers get the request's id, its errors the shape; nothing else is touched."""
    held: list[_Message] = []

    def send_on(message: _Message) -> Awaitable[None]:
        if message["type"] == "http.response.start":
            others = [header for header in message["headers"] if header[0] != HEADER]
            message = {**message, "headers": [*others, (HEADER, request_id)]}
            if message["status"] < 400 or not path.startswith("/v1/"):  # noqa: PLR2004 # /health has no body
                return send(message)
        elif not held:
            return send(message)
        held.append(message)
        return _answer_error(send, path, request_id, held)

    return send_on


async def _answer_error(send: _Send, path: str, request_id: bytes, held: list[_Message]) -> None:
    """Send an error of vLLM's once it is whole."""
    start, *parts = held
    if not parts or parts[-1].get("more_body", False):
        return
    status = start["status"]
    message, param = told(b"".join(part.get("body", b"") for part in parts))
    message = message[:LONGEST_MESSAGE]
    message = in_words(message) if status < _ANY_SERVER_ERROR else message or "Internal server error"
    code = "model_not_found" if (status, param) == (404, "model") else None
    body = error_body(path, status, message, param, code, request_id)
    others = [header for header in start["headers"] if header[0] not in (b"content-length", b"content-type")]
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body)), *others]
    await send({**start, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def told(body: bytes) -> tuple[str, str | None]:
    """Return the message and the field of an error of vLLM's or FastAPI's, in whatever shape it is."""
    try:
        document = json.loads(body)
    except ValueError:
        return body.decode(errors="replace"), None
    error = document.get("error", document) if isinstance(document, dict) else document
    if not isinstance(error, dict):
        return str(error), None
    param = error.get("param")
    return str(error.get("message") or error.get("detail") or ""), param if isinstance(param, str) else None


def in_words(message: str) -> str:
    """Return a message that says what to do, where it is one of Python's own."""
    if message and not _INTERNALS.match(message):
        return message
    said = f" ({message})" if message else ""
    return f"The request could not be processed{said}: check its fields' types, and that no list is empty."


def wrong_fields(errors: list[Any], body: Any) -> tuple[str, str | None]:
    """Return what pydantic has against a body, and the field it means: the first of its errors and their number."""
    first = errors[0] if errors else "The request body is not valid."
    if not isinstance(first, dict):  # vLLM's own, about the media type
        return str(first), None
    field = _field(first.get("loc", ()), first.get("type"), body)
    message = str(first.get("msg", "")).removeprefix("Value error, ")
    cause = first.get("ctx", {}).get("error")
    param = getattr(cause, "parameter", None) or field or None
    more = f" (and {len(errors) - 1} more errors)" if len(errors) > 1 else ""
    return (message if message.startswith(field) else f"{field}: {message}") + more, param


def _field(location: tuple[str | int, ...], kind: str | None, body: Any) -> str:
    """Return a field's name as `messages[0].content`: pydantic's location without the names of unions' members."""
    name, last = "", len(location) - 1
    for number, step in enumerate(location[1:], start=1):
        if isinstance(body, dict) and step in body:
            name, body = f"{name}.{step}" if name else str(step), body[step]
        elif isinstance(body, list) and isinstance(step, int) and step < len(body):
            name, body = f"{name}[{step}]", body[step]
        elif number == last and kind == "missing":
            name = f"{name}.{step}" if name else str(step)
    return name
