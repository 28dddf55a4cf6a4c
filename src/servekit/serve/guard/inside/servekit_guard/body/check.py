"""Decides whether a request body may reach vLLM: its structure, its fields, and what they request together."""

import math
from collections.abc import Collection
from typing import Any

from .bounds import BodyError
from .fields import MAX_SEQUENCES, REFUSED_IN_PARTS, ROUTES
from .parse import parse
from .structured import check_structured, sequences_of

CHAT, RESPONSES, MESSAGES = "/v1/chat/completions", "/v1/responses", "/v1/messages"
MAX_DEPTH = 64
"""Levels of nesting in the whole body. vLLM's validators, its chat template and pickle walk the body recursively."""
PARTS = frozenset({"content", "output"})
"""Names of the lists whose objects are content parts."""
ROLES = ("user", "assistant", "system", "developer")
"""Of a message. `/v1/responses` has no others; the template decides about those of a chat."""
JSON_TEXT = "arguments"
"""The member of a tool call that is JSON within a string. The text may hold source code with any brackets."""
OPAQUE = frozenset({"arguments", "metadata", "parameters", "input_schema", "schema", "json", "json_schema"})
"""Members that belong to the client's own tools and schemas: the names inside them have no meaning to vLLM."""


def check_body(fields: dict[str, Any], path: str, vocabulary_size: int, opened: Collection[str] = ()) -> int:
    """Check a body for the route `path`; raises BodyError when it must not reach the engine.

    vocabulary_size: number of token ids of the running model. At 0, for unknown, every token id is refused.
    opened: the kinds of structured output that the operator accepts besides JSON and choices.
    Returns the weight of the body's structured output (`check_structured`).
    """
    rules = ROUTES[path]
    for name, value in fields.items():
        rule = rules.get(name)
        if rule is not None and value is not None and (problem := rule.problem(value, vocabulary_size)):
            raise BodyError(f"{name} {problem}.", name)
    if sequences_of(fields) > MAX_SEQUENCES:
        raise BodyError(f"The request starts more than {MAX_SEQUENCES} sequences (prompts times n).", "n")
    _check_structure(fields)
    _check_shapes(fields, path)
    return check_structured(fields, opened)


def _check_shapes(fields: dict[str, Any], path: str) -> None:
    """Check what vLLM 0.20.2 reads before or without validating it: it would answer 500, or with a Python error.

    In `check_tool_usage` of each request model, `_postprocess_messages` (`entrypoints/chat_utils.py`), the template.
    """
    _check_calls("tools", fields.get("tools"), "function" if path == CHAT else None)
    name = "input" if path == RESPONSES else "messages"
    items = fields.get(name)
    messages = [each for each in items if isinstance(each, dict)] if isinstance(items, list) else []
    for number, message in enumerate(messages):
        role, where = message.get("role"), f"{name}[{number}]"
        is_known = role in ROLES if path == RESPONSES else isinstance(role, str)
        if not is_known and (path != RESPONSES or message.get("type", "message") == "message"):
            raise BodyError(f"{where}.role must be one of {', '.join(ROLES)}.", f"{where}.role")
        _check_calls(f"{where}.tool_calls", message.get("tool_calls"), "function")
        if path == RESPONSES:
            _join_texts(message)
    if path.startswith(MESSAGES) and messages and all(message.get("content") == [] for message in messages):
        raise BodyError("messages: at least one must have content.", "messages")


def _join_texts(message: dict[str, Any]) -> None:
    """Make one text of an earlier answer's parts, as clients send it back.

    OpenAI needs no more of a part than its text. vLLM 0.20.2 requires an id, a status and annotations, and then reads
    the first part only (`entrypoints/openai/responses/utils.py`); beside an id it takes a text for a list of letters.
    """
    parts = message.get("content")
    if message.get("role") != "assistant" or message.get("status", "completed") != "completed":
        return
    if isinstance(parts, list):
        texts = [part.get("text") for part in parts if isinstance(part, dict) and part.get("type") == "output_text"]
        known = [text for text in texts if isinstance(text, str)]
        if len(known) == len(parts):
            message["content"] = "".join(known)
    if isinstance(message.get("content"), str):
        message.pop("id", None)


def _check_calls(where: str, items: Any, member: str | None) -> None:
    """Check that this is a list of objects, which have this member, an object too; or nothing."""
    if items is None:
        return
    if not isinstance(items, list):
        raise BodyError(f"{where} must be a list.", where)
    for number, item in enumerate(items):
        name = f"{where}[{number}]"
        if not isinstance(item, dict):
            raise BodyError(f"{name} must be an object.", name)
        if member and not isinstance(item.get(member), dict):
            raise BodyError(f"{name}.{member} must be an object: this server calls functions only.", f"{name}.{member}")


def _check_structure(fields: dict[str, Any]) -> None:
    """Walk all objects and lists, without recursion."""
    pending: list[tuple[Any, int, str, bool]] = [(fields, 1, "", False)]
    while pending:
        value, depth, name, own_names = pending.pop()
        if depth > MAX_DEPTH:
            raise BodyError(f"The request body is nested more than {MAX_DEPTH} levels deep.")
        is_object = type(value) is dict
        if is_object and name in PARTS and not own_names:
            _check_part(value, name)
        for key, item in value.items() if is_object else ((name, item) for item in value):
            kind = type(item)
            if kind is dict or (kind is list and not _has_only_integers(item)):
                owned = is_object and kind is dict and (key in OPAQUE or (key == "input" and depth > 1))
                pending.append((item, depth + 1, key, own_names or owned))
            elif kind is float and not math.isfinite(item):
                raise BodyError("A number in the request body is not finite.", key or None)
            elif key == JSON_TEXT and kind is str and not own_names:
                _check_json_text(item)


def _check_json_text(text: str) -> None:
    """Limit JSON within a string, which vLLM parses once more."""
    if text.count("[") + text.count("{") <= MAX_DEPTH:
        return
    try:
        _check_structure(parse(b'{"":' + text.encode("utf-8", "surrogatepass") + b"}"))
    except BodyError as error:
        message = error.message.replace("The request body", "The JSON text of arguments")
        raise BodyError(message, JSON_TEXT) from None


def _has_only_integers(values: list[Any]) -> bool:
    """Return whether a list holds only whole numbers: the token ids of a prompt need no further walk."""
    return bool(values) and type(values[0]) is int and set(map(type, values)) == {int}


def _check_part(part: dict[str, Any], name: str) -> None:
    if part.get("type") == "input_image":
        part.setdefault("detail", "auto")  # OpenAI's default; vLLM 0.20.2 requires it and ignores its value
    for refused, why in REFUSED_IN_PARTS.items():
        if part.get(refused) is not None or part.get("type") == refused:
            raise BodyError(f"{refused} is not accepted in a content part: {why}.", name)
