"""The bounds of a JSON schema that the structured output backend compiles (llguidance 1.3.0, vLLM's `guidance`).

llguidance counts its own work and gives up in an error state, but not everywhere: a chain of 2,500 references
overflows its stack, `multipleOf: 99999989` takes all memory, ten `allOf` of two `anyOf` each hold the engine for a
third of a second at one token. Each bound is what keeps one of these far away; docs/security.md has the figures.
"""

import json
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from decimal import Decimal
from types import MappingProxyType
from typing import Any
from urllib.parse import unquote

from .patterns import pattern_size

Problem = tuple[str | None, str]
"""The field's name (None: the body as a whole) and what is wrong with it."""

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
"""The most of each in all schemas of one request, repetitions in patterns written out."""

PATTERN_ALTERNATIVES = 8
"""What a pattern counts for where it is intersected; an enum counts for the square root of twice its length."""

_MAPS = frozenset({"properties", "patternProperties", "$defs", "definitions"})
_NOTES = frozenset({"title", "description", "$comment", "default", "examples"})
_IN_PLACE = frozenset({"allOf", "anyOf", "oneOf", "enum", "const"})
_INTERSECTED = frozenset(
    {"properties", "patternProperties", "additionalProperties", "items", "prefixItems", "required"}
)
_MULTIPLIED = "alternatives multiplied by allOf and siblings"
_RANGES = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
_TOO_LONG_A_WAY = f"more than {BOUNDS['schemas that lead into each other']} schemas lead into each other."
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
            return where, f"{where}: {message or self._too_many(name)}"
        try:
            self.add("bytes", len(json.dumps(schema, ensure_ascii=False).encode()))
        except UnicodeEncodeError:
            return where, f"{where}: the schema has half of a surrogate pair in it."
        graph = _Graph(schema)
        problem = self._over("bytes") or graph.problem()
        self.add("units of weight", graph.weight)
        if not problem and self.weight > BOUNDS["units of weight"]:
            problem = (
                f"the schema takes too long to compile (weight {self.weight:,}, at most {BOUNDS['units of weight']:,})."
            )
        return (where, f"{where}: {problem}") if problem else None

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
                if not literal and key not in _MAPS:
                    yield from self._keywords(value)
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
        if isinstance(reference, str) and reference != "#" and not reference.startswith("#/"):
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
        properties, required = schema.get("properties"), _list(schema, "required")
        optional = len(properties) - len(required) if isinstance(properties, dict) else 0
        if optional > BOUNDS["optional properties in one object"]:
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


class _Graph:
    """A schema with its references followed: what leads back to itself, and what llguidance multiplies."""

    def __init__(self, root: dict[str, Any]) -> None:
        self._root = root
        self._most: dict[int, tuple[int, int]] = {}
        """By a schema's identity: the most alternatives anywhere in it, and its size; 1 while it is being looked at."""
        self.weight = 0
        """What intersecting adds to the schema's weight."""

    def problem(self) -> str | None:
        """Return what is wrong, or None."""
        try:
            self._alternatives(self._root, 1)
        except _BrokenError as error:
            return str(error)
        except RecursionError:
            return _TOO_LONG_A_WAY
        return "a $ref leads back to itself without a property or an item in between." if self._loops() else None

    def _alternatives(self, schema: Any, level: int) -> tuple[int, int]:
        """Return the most alternatives that one place in `schema` has, and its size; raise _BrokenError.

        Intersecting (llguidance's parser/src/json/schema.rs, `intersect`) makes one schema of each pair, and so it
        goes on below, property by property; hence the most of all places and not those of the same one.
        """
        if level > BOUNDS["schemas that lead into each other"]:
            raise _BrokenError(_TOO_LONG_A_WAY)
        if isinstance(schema, list):
            found = [self._alternatives(each, level + 1) for each in schema]
            return max([most for most, _ in found], default=1), _capped(sum([size for _, size in found]))
        if not isinstance(schema, dict):
            return 1, 0
        if id(schema) not in self._most:
            self._most[id(schema)] = 1, 1
            self._most[id(schema)] = self._multiplied(schema, level + 1)
        return self._most[id(schema)]

    def _multiplied(self, schema: dict[str, Any], level: int) -> tuple[int, int]:
        found = [self._alternatives(each, level) for each in _list(schema, "allOf")]
        for name in ("anyOf", "oneOf"):
            options = [self._alternatives(each, level) for each in _list(schema, name)]
            found += [(sum([most for most, _ in options]), sum([size for _, size in options]))] if options else []
        if values := _list(schema, "enum"):
            found.append((math.isqrt(2 * len(values)), len(values)))
        if isinstance(target := self._target(schema), dict):
            found.append(self._alternatives(target, level))
        below = [self._alternatives(each, level) for name, each in schema.items() if name not in _IN_PLACE]
        if any(isinstance(schema.get(name), str) for name in ("pattern", "format")):
            found.append((PATTERN_ALTERNATIVES, 1))
        if (found and schema.keys() & _INTERSECTED) or not found:
            found.append((max([most for most, _ in below], default=1), 1 + sum([size for _, size in below])))
        product, size = math.prod([most for most, _ in found]), _capped(sum([size for _, size in found]))
        if len([most for most, _ in found if most > 1]) > 1 and product > BOUNDS[_MULTIPLIED]:
            message = "allOf, anyOf, enum, pattern or $ref, one beside the other, make more than"
            raise _BrokenError(f"{message} {BOUNDS[_MULTIPLIED]} alternatives of the schema.")
        if len(found) > 1:
            self.weight = _capped(self.weight + product * size // 5)
        return product, size

    def _loops(self) -> bool:
        """Tell whether schemas hold each other in place: such a grammar has no beginning."""
        found: dict[int, dict[str, Any]] = {}
        todo: list[Any] = [self._root]
        while todo:
            each = todo.pop()
            todo += each if isinstance(each, list) else each.values() if isinstance(each, dict) else ()
            if isinstance(each, dict):
                found[id(each)] = each
        held = {number: self._held(each) & found.keys() for number, each in found.items()}
        holders = Counter(number for each in held.values() for number in each)
        free = [number for number in found if not holders[number]]
        for number in free:
            for below in held[number]:
                holders[below] -= 1
                if not holders[below]:
                    free.append(below)
        return len(free) < len(found)

    def _held(self, schema: dict[str, Any]) -> set[int]:
        options = [each for name in ("allOf", "anyOf", "oneOf") for each in _list(schema, name)]
        return {id(each) for each in (*options, self._target(schema))}

    def _target(self, schema: dict[str, Any]) -> Any:
        """Return what the schema's `$ref` points at (RFC 6901); None where there is none."""
        reference = schema.get("$ref")
        if not isinstance(reference, str):
            return None
        value: Any = self._root
        for escaped in reference[2:].split("/") if len(reference) > len("#/") else ():
            name = unquote(escaped).replace("~1", "/").replace("~0", "~")
            if isinstance(value, dict):
                value = value.get(name)
            elif isinstance(value, list) and name.isascii() and name.isdigit():
                value = value[int(name[:9])] if int(name[:9]) < len(value) else None
            else:
                return None
        return value


class _BrokenError(Exception):
    """A bound is broken; the text says which."""


def _capped(number: int) -> int:
    """Return `number`, or what is more than any bound: shared definitions make sizes that grow without end."""
    return min(number, 10**6)


def _list(schema: dict[str, Any], name: str) -> list[Any]:
    value = schema.get(name)
    return value if isinstance(value, list) else []


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
