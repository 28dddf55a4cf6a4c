"""Fields of a request body that vLLM 0.20.2 accepts and that harm the engine or everybody else in it.

Each rule was seen on a running vLLM 0.20.2: one request with such a field ended the engine or held it up.
The body is parsed with the parser FastAPI uses, so an escaped or doubled key is seen as vLLM sees it.
"""

import json
from typing import Any

from .body.structured import check_structured
from .refusals import Refusal, harmful

REFUSED_FIELDS = ("mm_processor_kwargs", "media_io_kwargs", "truncate_prompt_tokens")
"""The first two reach into the image processor: `{"do_resize": false}` alone ends EngineCore. The third cuts an
image's place out of the prompt, which vLLM answers with a failed assertion."""
PROMPT_FIELD = "prompt"
SEQUENCE_FIELDS = ("n", "best_of")
TOKEN_FIELD = "stop_token_ids"  # noqa: S105 # a field's name
"""An id outside the vocabulary ends EngineCore when `min_tokens` is set: it indexes the logits."""

SMALL_BODY_BYTES = 65_536
"""Parsing up to this costs less than 0.1 ms; a larger body is an image, and is searched first."""
MANY_STRINGS = 2_000
"""A body with more strings than this is not searched but parsed: then parsing is what costs less."""

GRAMMAR_FIELDS = ("structured_outputs", "response_format", "text", "tools")
"""Where a grammar comes in: see body/structured.py."""

_NAMES = frozenset(
    name.encode() for name in (*REFUSED_FIELDS, *SEQUENCE_FIELDS, *GRAMMAR_FIELDS, TOKEN_FIELD, PROMPT_FIELD)
)
_LONGEST_NAME = max(map(len, _NAMES))


def objection(
    body: bytes, vocabulary_size: int | None, max_sequences: int, structured: frozenset[str] = frozenset()
) -> Refusal | None:
    """Return why this body must not reach the engine, or None.

    vocabulary_size: of the model; None when unknown, then no stop token id is let through.
    max_sequences: how many sequences one request may start: prompts times `n`.
    structured: the kinds of structured output that the operator has opened.
    """
    if len(body) > SMALL_BODY_BYTES and not _may_name_a_field(body):
        return None
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError):
        return harmful(None, "The request body is not valid JSON.")
    if not isinstance(fields, dict):
        return harmful(None, "The request body must be a JSON object.")  # vLLM 0.20.2 answers 500
    return (
        _refused_objection(fields)
        or _sequences_objection(fields, max_sequences)
        or _token_objection(fields, vocabulary_size)
        or _number_objection(fields)
        or _structured_objection(fields, structured)
    )


def _may_name_a_field(body: bytes) -> bool:
    """Tell whether a large body must be parsed: looking for quoted names takes a tenth of the time of parsing, or less.

    A name could also be written with escapes, or in UTF-16 or UTF-32, which Python's json accepts.
    """
    return (
        not body.lstrip(b" \t\r\n").startswith(b"{")
        or b"\0" in body
        or (b"\\" in body and b"\\u" in body)
        or _quotes_a_name(body)
    )


def _quotes_a_name(body: bytes) -> bool:
    """Tell whether a name stands between two quotes, or there are too many quotes to look between all of them.

    `find` goes through an image at the speed of C's memchr, `split` and `count` byte by byte.
    """
    opening = body.find(b'"')
    for _ in range(MANY_STRINGS):
        closing = body.find(b'"', opening + 1)
        if opening < 0 or closing < 0:
            return False
        if closing - opening <= _LONGEST_NAME + 1 and body[opening + 1 : closing] in _NAMES:
            return True
        opening = closing
    return True


def _refused_objection(fields: dict[str, Any]) -> Refusal | None:
    for name in REFUSED_FIELDS:
        if fields.get(name) not in (None, {}):
            return harmful(name, f"{name} is not accepted by this server.")
    return None


def _sequences_objection(fields: dict[str, Any], max_sequences: int) -> Refusal | None:
    prompt = fields.get(PROMPT_FIELD)
    sequences = 1
    if isinstance(prompt, list) and not all(isinstance(item, int) for item in prompt):
        sequences = len(prompt)
    for name in SEQUENCE_FIELDS:
        count = fields.get(name)
        if isinstance(count, str):  # pydantic turns "5" into 5
            return harmful(name, f"{name} must be a number.")
        if isinstance(count, (int, float)) and count > 1:
            sequences *= int(min(count, max_sequences + 1))
    if sequences > max_sequences:
        message = f"The request asks for more than {max_sequences} sequences (prompts times n)."
        return harmful("n", message)
    return None


def _token_objection(fields: dict[str, Any], vocabulary_size: int | None) -> Refusal | None:
    token_ids = fields.get(TOKEN_FIELD)
    if not token_ids:
        return None
    known = vocabulary_size or 0
    if isinstance(token_ids, list) and all(type(token) is int and 0 <= token < known for token in token_ids):
        return None
    return harmful(TOKEN_FIELD, f"{TOKEN_FIELD} must be a list of token ids from 0 to {known - 1}.")


def _structured_objection(fields: dict[str, Any], structured: frozenset[str]) -> Refusal | None:
    problem = check_structured(fields, structured)
    return harmful(*problem) if problem else None


def _number_objection(fields: dict[str, Any]) -> Refusal | None:
    """Refuse what the way to EngineCore (MessagePack) cannot carry; vLLM 0.20.2 answers 500 to `top_k: 2**70`."""
    for name, value in fields.items():
        if isinstance(value, int) and not -(2**63) <= value < 2**63:
            return harmful(name, f"{name} does not fit 64 bits.")
    return None
