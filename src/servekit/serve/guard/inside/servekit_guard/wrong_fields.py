"""What is wrong with a body that vLLM refuses: one line that names the field, whatever exception says so.

pydantic tries every member of a union and reports all of them: an image without `detail` on `/v1/responses` gave 215
errors, none of which was the first. Parts of a chat message are validated late, one by one, and their errors begin at
the part. Here the errors of members that the item's own `type` or `role` rules out are dropped, and the one that leads
deepest into the body is the answer.
"""

import re
from collections.abc import Iterator
from json import JSONDecodeError
from typing import Any

KINDS = ("type", "role")
"""The members of an item that say what it is."""
_EXPECTED = "Input should be "
_INTERNALS = re.compile(
    r"(list|tuple|string|pop) .*(out of range|empty)|invalid literal for|could not convert|unhashable type"
    r"|'[^']*'$|.*object (has no|is not|does not)|.*not supported between|unsupported operand|.*TextInputSequence"
    r"|argument (of type|')|maximum recursion|object of type|(string|list|tuple) indices must",
    re.DOTALL,
)
"""Python's own messages about a value that vLLM did not expect: they do not tell a client what to do."""

_WORDS = {
    " or object to extract fields from": "",
    "dictionary": "object",
    "should be iterable": "should be a valid list",
}
"""Words of pydantic that mean something else in JSON."""

Steps = tuple[Any, ...]
"""Names of members, and places in lists."""


def describe_mistake(error: Exception, body: Any) -> tuple[str, str | None]:
    """Return what a mistake of the client is and the field at fault. `body`: the request's, as it was parsed."""
    if hasattr(error, "errors"):  # pydantic's
        return describe_wrong_field(error.errors(), body)
    if isinstance(error, JSONDecodeError):
        field = _name(next((path for path, value in _walk(body) if value == error.doc), ()))
        return f"{field or 'arguments of a tool call'}: not valid JSON: {error}.", field or None
    param = getattr(error, "parameter", None)
    return str(error.args[0] if param else error), param


def explain(message: str) -> str:
    """Return a message that says what to do when it is one of Python's own; other messages stay as they are."""
    if message and not _INTERNALS.match(message):
        return message
    quoted = f" ({message})" if message else ""
    return f"The request could not be processed{quoted}: check the types of its fields, and that no list is empty."


def describe_wrong_field(errors: list[Any], body: Any) -> tuple[str, str | None]:
    """Return what pydantic reports about a body, and the field at fault."""
    first = errors[0] if errors else "The request body is not valid."
    if not isinstance(first, dict):  # vLLM's own, about the media type
        return str(first), None
    root, start = _root(first, body)
    found = [(root + _steps(each, start), each) for each in errors]
    ruled_out = {each["loc"][:-1] for _, each in found if _says_kind(each)}
    fitting = [(path, each) for path, each in found if _says_kind(each) or not _is_below(each["loc"], ruled_out)]
    deepest, best = max(fitting, key=lambda each: (len(each[0]), _weight(each[1])))  # the first of equal ones
    field = _name(deepest)
    message = _join([_message(each) for path, each in fitting if path == deepest])
    others = sorted({str(path[0]) for path, _ in fitting if path} - set(map(str, deepest[:1])))
    cause = best.get("ctx", {}).get("error")
    param = getattr(cause, "parameter", None) or field or None
    also = f" (also wrong: {', '.join(others)})" if others else ""
    return (message if message.startswith(field) else f"{field}: {message}") + also, param


def _says_kind(error: dict[str, Any]) -> bool:
    """Return whether an error is that an item is not of the kind that this member of a union is."""
    return error["loc"][-1:] != () and error["loc"][-1] in KINDS and error["type"] in ("literal_error", "missing")


def _weight(error: dict[str, Any]) -> int:
    """Order errors at the same depth: those of the item's own kind, of an unknown kind, of a missing one."""
    return 2 if not _says_kind(error) else int(error["type"] == "literal_error")


def _is_below(location: Steps, places: set[Steps]) -> bool:
    return any(location[:length] in places for length in range(len(location)))


def _root(error: dict[str, Any], body: Any) -> tuple[Steps, Any]:
    """Return where in the body an error's location begins: at the top, or at the list that vLLM validates late."""
    for path, value in _walk(body):
        if not isinstance(value, str) and _reach(error["loc"], value)[1] is error.get("input", error):
            return path, value
    return (), body


def _steps(error: dict[str, Any], value: Any) -> Steps:
    """Return the steps of an error's location that exist in the body, and the member that is missing."""
    location = error["loc"]
    steps, _ = _reach(location, value)
    return (*steps, location[-1]) if error["type"] == "missing" and location else steps


def _reach(location: Steps, value: Any) -> tuple[Steps, Any]:
    """Follow a location, without FastAPI's `body` and the names of unions' members; return the steps and the value."""
    steps: Steps = ()
    for step in location[1:] if location[:1] == ("body",) else location:
        if (isinstance(value, dict) and step in value) or (
            isinstance(value, list) and isinstance(step, int) and step < len(value)
        ):
            steps, value = (*steps, step), value[step]
    return steps, value


def _walk(body: Any) -> Iterator[tuple[Steps, Any]]:
    """Yield every object, list and text of a body with its path, the whole body first."""
    pending: list[tuple[Steps, Any]] = [((), body)]
    for path, value in pending:
        yield path, value
        if not isinstance(value, str):
            members = value.items() if isinstance(value, dict) else enumerate(value)
            pending += [((*path, step), each) for step, each in members if isinstance(each, (dict, list, str))]


def _name(path: Steps) -> str:
    """Return a path as a client writes it: `messages[0].content`."""
    return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path).removeprefix(".")


def _message(error: dict[str, Any]) -> str:
    cause = error.get("ctx", {}).get("error")
    if hasattr(cause, "parameter"):  # vLLM's own, which appends the parameter to its text
        return str(cause.args[0])
    message = str(error.get("msg", "")).removeprefix("Value error, ")
    for pydantics, jsons in _WORDS.items():
        message = message.replace(pydantics, jsons)
    return message


def _join(messages: list[str]) -> str:
    """Return one message for all alternatives of a value."""
    kinds = [each.removeprefix(_EXPECTED) for each in dict.fromkeys(messages) if each.startswith(_EXPECTED)]
    return _EXPECTED + " or ".join(kinds) if messages[0].startswith(_EXPECTED) else messages[0]
