"""Turns bytes into a JSON object, and limits its structure so that no parser or validator of vLLM takes long over it.

vLLM 0.20.2 parses and validates a body on its server's event loop. The cost there grows with the number of values, not
with the number of bytes, which an image needs: 32 MiB of `{"a":[]}` keep the loop busy for ten seconds.
"""

import json
import re
from typing import Any

from .bounds import BodyError

MAX_CONTAINERS = 20_000
"""Objects and lists in a body. A conversation of 2,000 messages with tool calls has half of them."""
MAX_VALUES = 400_000
"""Values in a body: twenty prompts of 20,000 token ids. Parsing and validating them takes some 30 ms."""
MAX_COUNTED_BYTES = 4 * 1024**2
"""Text that is full of brackets or commas is counted exactly up to this size, which takes up to 60 ms."""
RARE = 256
"""A character that occurs no more often than this is searched for from one occurrence to the next."""

_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)


def _reject_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


_DECODER = json.JSONDecoder(parse_constant=_reject_constant)
"""Python's default decoder accepts NaN and Infinity, which vLLM passes on to the engine."""


def parse(body: bytes) -> dict[str, Any]:
    """Return the body's JSON object; raises BodyError when there is none, or when it is too large."""
    if _has_too_many_values(body):
        raise BodyError(
            f"The request body has more than {MAX_CONTAINERS:,} objects and lists, or more than {MAX_VALUES:,} values."
        )
    try:
        text = body.decode(json.detect_encoding(body))
        fields = _DECODER.decode(text.removeprefix("\ufeff"))
        has_lone_surrogate = _has_lone_surrogate(text, fields)
    except RecursionError:
        raise BodyError("The request body is nested too deeply.") from None
    except ValueError:
        raise BodyError("The request body is not valid JSON.") from None
    if has_lone_surrogate:
        raise BodyError("The request body has half a surrogate pair in a text: an emoji that was cut in two.")
    if not isinstance(fields, dict):
        raise BodyError("The request body must be a JSON object.")
    return fields


def _has_lone_surrogate(text: str, fields: Any) -> bool:
    """Return whether a string cannot be encoded as UTF-8.

    vLLM 0.20.2 tokenizes the prompts of 2 ms in one call (`utils/async_utils.py`). Such a string makes the call fail,
    and every other client whose request is in it gets the 400.
    """
    if not _escapes_surrogate(text):
        return False
    try:
        json.dumps(fields, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return True
    return False


def _escapes_surrogate(text: str) -> bool:
    """Return whether a text escapes half of a surrogate pair: searched from backslash to backslash, as in `_count`."""
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
    """Count a character: with `find` while it is rare, as in an image, which is ten times as fast as `count`."""
    position = -1
    for found in range(RARE):
        position = body.find(sign, position + 1)
        if position < 0:
            return found
    return body.count(sign)
