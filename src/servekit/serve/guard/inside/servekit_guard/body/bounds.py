"""The bounds of structured output: how much one request may make the backend compile."""

from types import MappingProxyType

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
