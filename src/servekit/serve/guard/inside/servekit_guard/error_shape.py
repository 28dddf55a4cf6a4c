"""One format for every error that leaves the server: OpenAI's, and on `/v1/messages` Anthropic's.

vLLM 0.20.2 uses four: its own `ErrorInfo` with a number for `code`, the same on `/v1/messages` when a field is wrong,
Anthropic's without Anthropic's types, and FastAPI's `{"detail": ...}` for JSON that is nested too deeply. Its message
for a wrong field (`validation_exception_handler`, `entrypoints/openai/server_utils.py`) repeats the field's value twice
and contains paths of this host.
"""

import json
from collections.abc import Awaitable, Callable

from .asgi import Message, Send, answer, json_headers
from .request_ids import HEADER
from .wrong_fields import explain

MESSAGES_PATH = "/v1/messages"
AT_ONCE = b"x-accel-buffering", b"no"
"""Makes nginx forward each part of an answer when it arrives."""
LONGEST_MESSAGE = 2_000
"""Characters of vLLM's message that are passed on: some messages repeat a value from the request."""

_OPENAI_TYPES = {429: "rate_limit_error"}
_ANTHROPIC_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}
_ANY_SERVER_ERROR = 500


def error_body(path: str, status: int, message: str, param: str | None, code: str | None, request_id: bytes) -> bytes:
    """Return an error in the format that clients of this path expect."""
    named, is_anthropic = request_id.decode(), path.startswith(MESSAGES_PATH)
    server_error = "api_error" if is_anthropic else "server_error"
    other = "invalid_request_error" if status < _ANY_SERVER_ERROR else server_error
    kind = (_ANTHROPIC_TYPES if is_anthropic else _OPENAI_TYPES).get(status, other)
    error = {"message": message, "type": kind, "param": param, "code": code, "request_id": named}
    around = {"type": "error", "error": error, "request_id": named} if is_anthropic else {"error": error}
    return json.dumps(around).encode()


def reshape_errors(
    send: Send, path: str, request_id: bytes, on_status: Callable[[int], object] = lambda _: None
) -> Send:
    """Return a `send` for vLLM: it reformats errors, and adds the request's id and `AT_ONCE` to the rest.

    on_status: gets the status when the answer begins.
    """
    held: list[Message] = []

    def send_on(message: Message) -> Awaitable[None]:
        if message["type"] == "http.response.start":
            on_status(message["status"])
            others = [header for header in message["headers"] if header[0] != HEADER]
            message = {**message, "headers": [*others, (HEADER, request_id), AT_ONCE]}
            if message["status"] < 400 or not path.startswith("/v1/"):  # noqa: PLR2004 # /health has no body
                return send(message)
        elif not held:
            return send(message)
        held.append(message)
        return _send_error(send, path, request_id, held)

    return send_on


async def _send_error(send: Send, path: str, request_id: bytes, held: list[Message]) -> None:
    """Send an error of vLLM's once it is complete."""
    start, *parts = held
    if not parts or parts[-1].get("more_body", False):
        return
    status = start["status"]
    message, param = read_error(b"".join(part.get("body", b"") for part in parts))
    message = message[:LONGEST_MESSAGE]
    message = explain(message) if status < _ANY_SERVER_ERROR else message or "Internal server error"
    code = "model_not_found" if (status, param) == (404, "model") else None
    body = error_body(path, status, message, param, code, request_id)
    others = [header for header in start["headers"] if header[0] not in (b"content-length", b"content-type")]
    await answer(send, status, json_headers(body, *others), body)


def read_error(body: bytes) -> tuple[str, str | None]:
    """Return the message and the field of an error of vLLM or FastAPI, whatever its format."""
    try:
        document = json.loads(body)
    except ValueError:
        return body.decode(errors="replace"), None
    error = document.get("error", document) if isinstance(document, dict) else document
    if not isinstance(error, dict):
        return str(error), None
    param = error.get("param")
    return str(error.get("message") or error.get("detail") or ""), param if isinstance(param, str) else None
