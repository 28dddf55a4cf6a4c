"""The bounds of a JSON schema that the structured output backend compiles (llguidance 1.3.0, vLLM's `guidance`).

llguidance counts its own work and stops with an error, but not everywhere: a chain of 2,500 references overflows its
stack, `multipleOf: 99999989` takes all memory, and ten `allOf` of two `anyOf` each block the engine for a third of a
second at one token. Each bound keeps a request well away from one of these; docs/security.md has the figures.
"""

import json
import math
import re
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from .bounds import BOUNDS, BodyError, check_bound
from .graph import SchemaGraph, list_of
from .patterns import pattern_size

_MAPS = frozenset({"properties", "patternProperties", "$defs", "definitions"})
_NOTES = frozenset({"title", "description", "$comment", "default", "examples"})
_RANGES = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
_REFERENCE = re.compile("#(/[^/]+)*")
_INT64 = 2**63


@dataclass
class SchemaMeter:
    """Adds up the content of all schemas of one request; raises BodyError when a bound is exceeded."""

    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(BOUNDS, 0))
    multiple: Decimal | None = None

    @property
    def weight(self) -> int:
        """The time vLLM's server needs to check the schemas, in units of about 0.05 ms; EngineCore needs twice that."""
        counts = self.counts
        searched = 10 * counts["patterns, formats and numeric ranges"]
        listed = counts["list entries"] // 2 + counts["items counted by minItems and maxItems"] // 5
        return 1 + counts["objects"] + searched + listed + counts["units of weight"]

    def check(self, schema: dict[str, Any]) -> None:
        """Add `schema` to all that came before, and check the sum."""
        self._walk(schema)
        try:
            self.add("bytes", len(json.dumps(schema, ensure_ascii=False).encode()))
        except UnicodeEncodeError:
            raise BodyError("the schema has half of a surrogate pair in it.") from None
        self.counts["units of weight"] += SchemaGraph(schema).check()
        check_bound(
            "units of weight",
            self.weight,
            f"the schema takes too long to compile (weight {self.weight:,}, at most {BOUNDS['units of weight']:,}).",
        )

    def add(self, name: str, number: int) -> None:
        """Count `number` more of `name`."""
        self.counts[name] += number
        check_bound(name, self.counts[name])

    def _walk(self, schema: dict[str, Any]) -> None:
        todo: list[tuple[Any, int, str, bool]] = [(schema, 1, "", False)]
        while todo:
            value, level, key, literal = todo.pop()
            check_bound("levels of nesting", level)
            literal = literal or key in ("enum", "const")
            if isinstance(value, dict):
                is_map = key in _MAPS and not literal
                self.add("objects", not is_map)
                check_bound("characters in one name or value", max(map(len, value), default=0))
                # Also in data and in maps of names: a $ref may point at them, and that turns them into schemas.
                self._keywords(value)
                is_inside = level > 1 and key not in _NOTES and not literal
                if is_inside and isinstance(value.get("$id", value.get("id")), str):
                    raise BodyError("$id is accepted at the top of a schema only: it changes what a $ref means.")
                todo += [(each, level + 1, "" if is_map else name, literal) for name, each in value.items()]
            elif isinstance(value, list):
                self.add("list entries", len(value))
                todo += [(each, level + 1, "", literal) for each in value]
            elif isinstance(value, str) and (literal or key not in _NOTES):
                check_bound("characters in one name or value", len(value))
            elif isinstance(value, float) and not math.isfinite(value):
                raise BodyError("a number in the schema is not finite.")
            elif isinstance(value, int) and not -_INT64 <= value < _INT64:
                raise BodyError("a number in the schema does not fit 64 bits.")

    def _keywords(self, schema: dict[str, Any]) -> None:
        if "x-guidance" in schema:
            raise BodyError("x-guidance is not accepted by this server.")
        reference = schema.get("$ref")
        if isinstance(reference, str) and not _REFERENCE.fullmatch(reference):
            raise BodyError("a $ref must point into the same schema, as in '#/$defs/NAME'.")
        by_pattern, properties = schema.get("patternProperties"), schema.get("properties")
        patterns = list(by_pattern) if isinstance(by_pattern, dict) else []
        self.add("pattern properties", len(patterns))
        if isinstance(schema.get("pattern"), str):
            patterns.append(schema["pattern"])
        ranges = any(isinstance(schema.get(name), (int, float)) for name in _RANGES)
        formats = isinstance(schema.get("format"), str)
        self.add("patterns, formats and numeric ranges", len(patterns) + formats + ranges)
        if isinstance(properties, dict):
            required = {name for name in list_of(schema, "required") if isinstance(name, str)}
            check_bound("optional properties in one object", len(properties.keys() - required))
        for pattern in patterns:
            self._pattern(pattern)
        for name in ("minLength or maxLength", "minProperties or maxProperties"):
            check_bound(name, _largest(schema, *name.split(" or ")), f"{name} must be at most {BOUNDS[name]:,}.")
        self.add("items counted by minItems and maxItems", int(_largest(schema, "minItems", "maxItems")))
        self._multiple(schema.get("multipleOf"))

    def _pattern(self, pattern: str) -> None:
        check_bound("characters in one pattern", len(pattern))
        atoms = pattern_size(pattern)
        if atoms is None:
            raise BodyError("a pattern cannot be read: its parentheses do not match, or it has the flag x.")
        self.add("atoms in all patterns", atoms)

    def _multiple(self, value: Any) -> None:
        """Limit the remainders that the backend distinguishes: it has a state for each of them."""
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            return
        number = abs(Decimal(str(value)))
        name = "least common multiple of multipleOf"
        if number and number.adjusted() >= -9 and number < _INT64:  # noqa: PLR2004 - llguidance takes nine digits
            self.multiple = number if self.multiple is None else _common_multiple(self.multiple, number)
            if self.multiple * 10 ** _places(self.multiple) <= BOUNDS[name]:
                return
        raise BodyError(
            f"the least common multiple of all multipleOf, without its decimal point, must be at most {BOUNDS[name]:,}."
        )


def _largest(schema: dict[str, Any], *names: str) -> float:
    values = [schema.get(name) for name in names]
    return max((value for value in values if isinstance(value, (int, float)) and math.isfinite(value)), default=0)


def _common_multiple(one: Decimal, other: Decimal) -> Decimal:
    scale = Decimal(10 ** max(_places(one), _places(other)))
    return Decimal(math.lcm(int(one * scale), int(other * scale))) / scale


def _places(number: Decimal) -> int:
    """Return the number of digits after the decimal point."""
    exponent = number.normalize().as_tuple().exponent
    return max(0, -exponent) if isinstance(exponent, int) else 0
