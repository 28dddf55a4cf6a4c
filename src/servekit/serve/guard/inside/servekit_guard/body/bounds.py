"""Why a request body is refused, and the bounds of structured output: how much one request may make vLLM compile."""

from types import MappingProxyType


class BodyError(Exception):
    """The guard refuses a body: the client gets 400 with this message."""

    def __init__(self, message: str, param: str | None = None) -> None:
        """`param`: the field at fault, as the client wrote it; None when the whole body is meant."""
        super().__init__(message)
        self.message = message
        self.param = param


BOUNDS = MappingProxyType(
    {
        "bytes": 131_072,
        "levels of nesting": 64,
        "objects": 1_000,
        "list entries": 2_000,
        "characters in one name or value": 1_000,
        "characters in one pattern": 512,
        "atoms in all patterns": 4_096,
        "patterns, formats and numeric ranges": 128,
        "optional properties in one object": 450,
        "pattern properties": 16,
        "items counted by minItems and maxItems": 2_000,
        "minLength or maxLength": 100_000,
        "minProperties or maxProperties": 1_000,
        "least common multiple of multipleOf": 500,
        "alternatives multiplied by allOf and siblings": 64,
        "schemas that lead into each other": 240,
        "units of weight": 2_000,
    }
)
"""The maximum of each over all schemas of one request, with the repetitions in patterns written out."""


def check_bound(name: str, number: float, message: str | None = None) -> None:
    """Raise BodyError when `number` exceeds a bound; `message` for a bound whose name does not say enough."""
    if number > BOUNDS[name]:
        raise BodyError(message or f"the schema is too large: at most {BOUNDS[name]:,} {name}.")
