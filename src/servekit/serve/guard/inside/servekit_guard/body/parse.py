"""Bytes to a JSON object, within a size of structure that no parser or validator of vLLM's takes long over.

vLLM 0.20.2 parses and validates a body on its server's event loop. What costs there is not the number of bytes, which
an image needs, but the number of values: 32 MiB of `{"a":[]}` keep it busy for ten seconds.
"""

import json
import re
from typing import Any

from .problem import Problem

MAX_CONTAINERS = 20_000
"""Objects and lists in a body. A conversation of 2,000 messages with tool calls has half of them."""
MAX_VALUES = 400_000
"""Values in a body: twenty prompts of 20,000 token ids. Parsing and validating them takes some 30 ms."""
MAX_COUNTED_BYTES = 4 * 1024**2
"""Text that is full of brackets or commas is counted exactly up to this size, which takes up to 60 ms."""
RARE = 256
"""A sign that is not in a body more often than this is looked for from one to the next."""

_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)
_NOT_JSON = Problem(None, "The request body is not valid JSON.")
_NO_OBJECT = Problem(None, "The request body must be a JSON object.")
_HALF_SIGN = Problem(None, "The request body has half a surrogate pair in a text: an emoji that was cut in two.")
_TOO_DEEP = Problem(None, "The request body is nested too deeply.")
_TOO_MUCH = Problem(
    None, f"The request body has more than {MAX_CONTAINERS:,} objects and lists, or {MAX_VALUES:,} values."
)


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


_DECODER = json.JSONDecoder(parse_constant=_refuse_constant)
"""Python's own reads NaN and Infinity, which vLLM passes on to the engine."""


def parse(body: bytes) -> dict[str, Any] | Problem:
    """Return the body's JSON object, or why there is none."""
    if _has_too_many_values(body):
        return _TOO_MUCH
    try:
        text = body.decode(json.detect_encoding(body))
        fields = _DECODER.decode(text.removeprefix("\ufeff"))
        if _has_half_a_sign(text, fields):
            return _HALF_SIGN
    except RecursionError:
        return _TOO_DEEP
    except ValueError:
        return _NOT_JSON
    return fields if isinstance(fields, dict) else _NO_OBJECT


def _has_half_a_sign(text: str, fields: Any) -> bool:
    """Tell whether a string cannot be written as UTF-8.

    vLLM 0.20.2 tokenizes the prompts of 2 ms in one call (`utils/async_utils.py`), which such a string makes fail: all
    the other clients' requests in it are answered with its 400.
    """
    if not _escapes_half_a_sign(text):
        return False
    try:
        json.dumps(fields, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return True
    return False


def _escapes_half_a_sign(text: str) -> bool:
    """Tell whether an escape of either half is in a text: from one backslash to the next, as `_count` does."""
    position = -1
    for _ in range(RARE):
        position = text.find("\\", position + 1)
        if position < 0:
            return False
        if text[position + 1 : position + 3] in {"ud", "uD"}:
            return True
    return "\\ud" in text or "\\uD" in text


def _has_too_many_values(body: bytes) -> bool:
    if len(body) <= MAX_CONTAINERS or not _exceeds(body):
        return False
    return len(body) > MAX_COUNTED_BYTES or _exceeds(_STRING.sub(b'""', body))


def _exceeds(body: bytes) -> bool:
    return _count(body, b"{") + _count(body, b"[") > MAX_CONTAINERS or _count(body, b",") > MAX_VALUES


def _count(body: bytes, sign: bytes) -> int:
    """Count a sign: by `find` while it is rare, as in an image, which is ten times as fast as `count`."""
    position = -1
    for found in range(RARE):
        position = body.find(sign, position + 1)
        if position < 0:
            return found
    return body.count(sign)
