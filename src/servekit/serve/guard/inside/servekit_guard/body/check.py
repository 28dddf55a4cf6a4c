"""Whether a request body may reach vLLM: its structure, its fields, and what they ask for together."""

import math
from collections.abc import Callable
from typing import Any

from .fields import MAX_SEQUENCES, REFUSED_IN_PARTS, ROUTES
from .parse import parse
from .problem import Problem
from .sequences import sequences_of
from .structured import check_structured

MAX_DEPTH = 64
"""Of the whole body. vLLM's validators, its template and pickle go through it by recursion."""
PARTS = frozenset({"content", "output"})
"""Names of the lists whose objects are content parts."""
JSON_TEXT = "arguments"
"""The member of a tool call that is JSON within a string; its text may hold program text, brackets and all."""
OPAQUE = frozenset({"arguments", "metadata", "parameters", "input_schema", "schema", "json", "json_schema"})
"""What belongs to the client's own tools and schemas: its names are nobody else's."""


def check(
    fields: dict[str, Any],
    path: str,
    vocabulary_size: int,
    opened: frozenset[str] = frozenset(),
    weigh: Callable[[int], object] = int,
) -> Problem | None:
    """Return why a body for the route `path` must not reach the engine, or None.

    vocabulary_size: token ids of the running model; 0 when unknown, then no token id is let through.
    opened: the kinds of structured output that the operator lets in besides JSON and choices.
    weigh: called with the weight of its structured output, if it has any.
    """
    rules = ROUTES[path]
    for name, value in fields.items():
        rule = rules.get(name)
        if rule is not None and value is not None and (said := rule.complaint(value, vocabulary_size)):
            return Problem(name, f"{name} {said}.")
    return _check_sequences(fields) or _check_structure(fields) or check_structured(fields, opened, weigh)


def _check_sequences(fields: dict[str, Any]) -> Problem | None:
    if sequences_of(fields) > MAX_SEQUENCES:
        return Problem("n", f"The request asks for more than {MAX_SEQUENCES} sequences (prompts times n).")
    return None


def _check_structure(fields: dict[str, Any]) -> Problem | None:
    """Go through all objects and lists, without recursion."""
    pending: list[tuple[Any, int, str, bool]] = [(fields, 1, "", False)]
    while pending:
        value, depth, name, own_names = pending.pop()
        if depth > MAX_DEPTH:
            return Problem(None, f"The request body is nested more than {MAX_DEPTH} levels deep.")
        is_object = type(value) is dict
        if is_object and name in PARTS and not own_names and (problem := _check_part(value, name)):
            return problem
        for key, item in value.items() if is_object else ((name, item) for item in value):
            kind = type(item)
            if kind is dict or (kind is list and not _has_ids_alone(item)):
                owned = is_object and kind is dict and (key in OPAQUE or (key == "input" and depth > 1))
                pending.append((item, depth + 1, key, own_names or owned))
            elif kind is float and not math.isfinite(item):
                return Problem(key or None, "A number in the request body is not finite.")
            elif key == JSON_TEXT and kind is str and not own_names and (problem := _check_json_text(item)):
                return problem
    return None


def _check_json_text(text: str) -> Problem | None:
    """Bound JSON within a string, which vLLM parses once more."""
    if text.count("[") + text.count("{") <= MAX_DEPTH:
        return None
    fields = parse(b'{"":' + text.encode("utf-8", "surrogatepass") + b"}")
    problem = _check_structure(fields) if isinstance(fields, dict) else fields
    return (
        Problem(JSON_TEXT, problem.message.replace("The request body", "The JSON text of arguments"))
        if problem
        else None
    )


def _has_ids_alone(values: list[Any]) -> bool:
    """Tell whether a list holds whole numbers and nothing else: a prompt's need no second look."""
    return bool(values) and type(values[0]) is int and set(map(type, values)) == {int}


def _check_part(part: dict[str, Any], name: str) -> Problem | None:
    for refused, why in REFUSED_IN_PARTS.items():
        if part.get(refused) is not None or part.get("type") == refused:
            return Problem(name, f"{refused} is not accepted in a content part: {why}.")
    return None
