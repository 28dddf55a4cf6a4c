"""Random requests from the guard's table of fields: with sensible values, hostile values, and mixtures of them."""

import json
import random
from typing import Any

from servekit.serve.guard.inside.servekit_guard.body.fields import ROUTES
from tests.engine.killers.case import CHAT, MAKERS, MESSAGES, Case, Target
from tests.engine.killers.content import picture, png
from tests.engine.killers.values import HOSTILE, sensible

ANSWERED = frozenset({200, 400, 404, 413, 429})
LIMITS = ("max_tokens", "max_completion_tokens", "max_output_tokens")
"""Kept at a small value, because otherwise the engine would generate for minutes."""
MOST_TOKENS = 4


def draw(seed: int, number: int, target: Target) -> Case:
    """Return request `number` of this seed's sequence; the same arguments always give the same request."""
    chaos = random.Random(f"{seed}:{number}")
    path = chaos.choice(list(ROUTES))
    fields = MAKERS[path](_content(path, chaos), model=target.model)
    if chaos.random() < 0.5:
        fields |= {"temperature": 0}
    for name in chaos.sample(list(ROUTES[path]), chaos.choice((0, 1, 1, 2, 2, 3, 5))):
        value = chaos.choice(HOSTILE)
        if chaos.random() < 0.6:
            value = sensible(name, ROUTES[path][name], chaos, target)
        if name not in LIMITS or (type(value) is int and value <= MOST_TOKENS):
            fields[name] = value
    if chaos.random() < 0.25:
        fields = json.loads(json.dumps(fields))  # a copy: all requests share the values
        _change_within(fields, chaos)
    limits = [name for name in LIMITS if name in ROUTES[path]]
    if limits and not any(type(fields.get(name)) is int and fields[name] <= MOST_TOKENS for name in limits):
        fields[limits[-1]] = MOST_TOKENS
    body = json.dumps(fields).encode()
    if chaos.random() < 0.03:
        body = _broken(body, chaos)
    return Case(f"{seed}:{number}", lambda _target: body, path, ANSWERED)


def _content(path: str, chaos: random.Random) -> Any:
    if path not in {CHAT, MESSAGES} or chaos.random() < 0.7:
        return chaos.choice(("Hello", "The sea", "word " * 50, "x", "\N{GRINNING FACE}", "<|image|>", "a\n" * 20))
    if path == MESSAGES:
        return [{"type": "text", "text": "x"}] * chaos.randint(0, 3)
    image = picture(f"data:image/png;base64,{png(chaos.choice((1, 16, 64)), chaos.randrange(256))}")
    return [{"type": "text", "text": "x"}, *[image] * chaos.randint(0, 4)]


def _change_within(fields: dict[str, Any], chaos: random.Random) -> None:
    """Change, add or delete something at a deeper level."""
    place: Any = fields
    while inner := [each for each in _members(place) if isinstance(each, (dict, list)) and each]:
        place = chaos.choice(inner)
        if chaos.random() < 0.4:
            break
    if place is fields:
        return
    if isinstance(place, list):
        place[chaos.randrange(len(place))] = chaos.choice(HOSTILE)
    elif chaos.random() < 0.3:
        del place[chaos.choice(list(place))]
    else:
        place[chaos.choice([*place, "uuid", "type", "content", "x"])] = chaos.choice(HOSTILE)


def _members(place: Any) -> list[Any]:
    return list(place.values()) if isinstance(place, dict) else place


def _broken(body: bytes, chaos: random.Random) -> bytes:
    """Return invalid JSON, or JSON that still has a small token limit; otherwise the body unchanged."""
    changed = bytearray(body)
    for _ in range(chaos.choice((1, 3))):
        changed[chaos.randrange(len(changed))] = chaos.choice(b'{}[]",:\\\0\xff0u')
    try:
        fields = json.loads(changed)
    except (ValueError, RecursionError):
        return bytes(changed)
    return (
        bytes(changed) if isinstance(fields, dict) and any(fields.get(name) == MOST_TOKENS for name in LIMITS) else body
    )
