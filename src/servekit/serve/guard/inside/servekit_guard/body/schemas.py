"""The bounds of a JSON schema that the structured output backend compiles (llguidance 1.3.0, vLLM's `guidance`).

llguidance counts its own work and gives up in an error state, but not everywhere: a chain of 2,500 references
overflows its stack, `multipleOf: 99999989` takes all memory, ten `allOf` of two `anyOf` each hold the engine for a
third of a second at one token. Each bound is what keeps one of these far away; docs/security.md has the figures.
"""

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from .bounds import BOUNDS
from .graph import SchemaGraph, list_of
from .patterns import pattern_size
from .problem import Problem

_MAPS = frozenset({"properties", "patternProperties", "$defs", "definitions"})
_NOTES = frozenset({"title", "description", "$comment", "default", "examples"})
_RANGES = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
_REFERENCE = re.compile("#(/[^/]+)*")
_INT64 = 2**63


@dataclass
class SchemaMeter:
    """Adds up what all schemas of one request hold."""

    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(BOUNDS, 0))
    multiple: Decimal | None = None

    @property
    def weight(self) -> int:
        """What vLLM's server takes to check the schemas, in units of about 0.05 ms; EngineCore takes twice as long."""
        counts = self.counts
        searched = 10 * counts["patterns, formats and numeric ranges"]
        listed = counts["list entries"] // 2 + counts["items counted by minItems and maxItems"] // 5
        return 1 + counts["objects"] + searched + listed + counts["units of weight"]

    def check(self, schema: dict[str, Any], where: str) -> Problem | None:
        """Return why `schema`, with all before it, is more than the backend is given, or None."""
        for name, message in self._walk(schema):
            return Problem(where, f"{where}: {message or self._too_many(name)}")
        try:
            self.add("bytes", len(json.dumps(schema, ensure_ascii=False).encode()))
        except UnicodeEncodeError:
            return Problem(where, f"{where}: the schema has half of a surrogate pair in it.")
        graph = SchemaGraph(schema)
        problem = self._over("bytes") or graph.problem()
        self.add("units of weight", graph.weight)
        if not problem and self.weight > BOUNDS["units of weight"]:
            problem = (
                f"the schema takes too long to compile (weight {self.weight:,}, at most {BOUNDS['units of weight']:,})."
            )
        return Problem(where, f"{where}: {problem}") if problem else None

    def add(self, name: str, number: int) -> None:
        """Count `number` more of `name`."""
        self.counts[name] += number

    def _over(self, name: str) -> str | None:
        return self._too_many(name) if self.counts[name] > BOUNDS[name] else None

    def _too_many(self, name: str) -> str:
        return f"the schema is too large: at most {BOUNDS[name]:,} {name}."

    def _walk(self, schema: dict[str, Any]) -> Iterator[tuple[str, str | None]]:
        """Yield each broken bound, and a message where the bound's name does not say it."""
        todo: list[tuple[Any, int, str, bool]] = [(schema, 1, "", False)]
        while todo:
            value, level, key, literal = todo.pop()
            if level > BOUNDS["levels of nesting"]:
                yield "levels of nesting", None
            literal = literal or key in ("enum", "const")
            if isinstance(value, dict):
                self.add("objects", key not in _MAPS or literal)
                yield from self._broken("objects")
                yield from self._names(value)
                # In data and in maps of names too: a $ref may point at them, and makes schemas of them.
                yield from self._keywords(value)
                if (
                    level > 1
                    and key not in _NOTES
                    and not literal
                    and isinstance(value.get("$id", value.get("id")), str)
                ):
                    yield "", "$id is accepted at the top of a schema only: it changes what a $ref means."
                inside_map = key in _MAPS and not literal
                todo += [(each, level + 1, "" if inside_map else name, literal) for name, each in value.items()]
            elif isinstance(value, list):
                self.add("list entries", len(value))
                yield from self._broken("list entries")
                todo += [(each, level + 1, "", literal) for each in value]
            elif isinstance(value, str):
                if len(value) > BOUNDS["characters in one name or value"] and (literal or key not in _NOTES):
                    yield "characters in one name or value", None
            elif isinstance(value, float) and not math.isfinite(value):
                yield "", "a number in the schema is not finite."
            elif isinstance(value, int) and not -_INT64 <= value < _INT64:
                yield "", "a number in the schema does not fit 64 bits."

    def _broken(self, name: str) -> Iterator[tuple[str, None]]:
        if self.counts[name] > BOUNDS[name]:
            yield name, None

    def _names(self, schema: dict[str, Any]) -> Iterator[tuple[str, None]]:
        if any(len(name) > BOUNDS["characters in one name or value"] for name in schema):
            yield "characters in one name or value", None

    def _keywords(self, schema: dict[str, Any]) -> Iterator[tuple[str, str | None]]:
        if "x-guidance" in schema:
            yield "", "x-guidance is not accepted by this server."
        reference = schema.get("$ref")
        if isinstance(reference, str) and not _REFERENCE.fullmatch(reference):
            yield "", "a $ref must point into the same schema, as in '#/$defs/NAME'."
        patterns = schema.get("patternProperties")
        names = list(patterns) if isinstance(patterns, dict) else []
        self.add("pattern properties", len(names))
        yield from self._broken("pattern properties")
        if isinstance(schema.get("pattern"), str):
            names.append(schema["pattern"])
        ranges = any(isinstance(schema.get(name), (int, float)) for name in _RANGES)
        self.add("patterns, formats and numeric ranges", len(names) + isinstance(schema.get("format"), str) + ranges)
        yield from self._broken("patterns, formats and numeric ranges")
        properties = schema.get("properties")
        required = {name for name in list_of(schema, "required") if isinstance(name, str)}
        if (
            isinstance(properties, dict)
            and len(properties.keys() - required) > BOUNDS["optional properties in one object"]
        ):
            yield "optional properties in one object", None
        for pattern in names:
            yield from self.pattern(pattern)
        for name, keys in (
            ("minLength or maxLength", ("minLength", "maxLength")),
            ("minProperties or maxProperties", ("minProperties", "maxProperties")),
        ):
            if _largest(schema, keys) > BOUNDS[name]:
                yield name, f"{name} must be at most {BOUNDS[name]:,}."
        self.add("items counted by minItems and maxItems", int(_largest(schema, ("minItems", "maxItems"))))
        yield from self._broken("items counted by minItems and maxItems")
        yield from self._multiple(schema.get("multipleOf"))

    def pattern(self, pattern: str) -> Iterator[tuple[str, str | None]]:
        """Count a regular expression."""
        if len(pattern) > BOUNDS["characters in one pattern"]:
            yield "characters in one pattern", None
            return
        atoms = pattern_size(pattern)
        if atoms is None:
            yield "", "a pattern cannot be read: its parentheses do not match, or it has the flag x."
            return
        self.add("atoms in all patterns", atoms)
        yield from self._broken("atoms in all patterns")

    def _multiple(self, value: Any) -> Iterator[tuple[str, str | None]]:
        """Bound the remainders the backend keeps apart: it has a state for each of them."""
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            return
        number = abs(Decimal(str(value)))
        name = "least common multiple of multipleOf"
        if number and number.adjusted() >= -9 and number < _INT64:  # noqa: PLR2004 - llguidance takes nine digits
            self.multiple = number if self.multiple is None else _common_multiple(self.multiple, number)
            if self.multiple * 10 ** _places(self.multiple) <= BOUNDS[name]:
                return
        yield name, f"the least common multiple of all multipleOf, without its point, must be at most {BOUNDS[name]:,}."


def _largest(schema: dict[str, Any], names: tuple[str, ...]) -> float:
    values = [schema.get(name) for name in names]
    return max((value for value in values if isinstance(value, (int, float)) and math.isfinite(value)), default=0)


def _common_multiple(one: Decimal, other: Decimal) -> Decimal:
    scale = Decimal(10 ** max(_places(one), _places(other)))
    return Decimal(math.lcm(int(one * scale), int(other * scale))) / scale


def _places(number: Decimal) -> int:
    """Return how many digits stand behind the point."""
    exponent = number.normalize().as_tuple().exponent
    return max(0, -exponent) if isinstance(exponent, int) else 0
