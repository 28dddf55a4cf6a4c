"""Decides whether a request body may reach vLLM: its structure, its fields, and what they request together."""

import math
from collections.abc import Collection
from typing import Any

from .bounds import BodyError
from .fields import MAX_SEQUENCES, REFUSED_IN_PARTS, ROUTES
from .parse import parse
from .shapes import check_shapes
from .structured import check_structured, sequences_of

MAX_DEPTH = 64
"""Levels of nesting in the whole body. vLLM's validators, its chat template and pickle walk the body recursively."""
PARTS = frozenset({"content", "output"})
"""Names of the lists whose objects are content parts."""
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
    check_shapes(fields, path)
    return check_structured(fields, opened)


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
