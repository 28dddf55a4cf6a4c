"""How many sequences a request starts: each is a row of the engine's batch, with a grammar of its own."""

from typing import Any

from .fields import MAX_SEQUENCES

_FIELDS = ("n", "best_of")


def sequences_of(fields: dict[str, Any]) -> int:
    """Return prompts times `n`; of a count over MAX_SEQUENCES only that it is one over."""
    prompt = fields.get("prompt")
    sequences = 1
    if isinstance(prompt, list) and not set(map(type, prompt)) <= {int}:
        sequences = len(prompt)
    for name in _FIELDS:
        count = fields.get(name)
        if isinstance(count, (int, float)) and count > 1:
            sequences *= int(min(count, MAX_SEQUENCES + 1))
    return sequences
