"""A JSON schema with its references followed: what leads back to itself, and what llguidance multiplies."""

import math
from collections import Counter
from typing import Any
from urllib.parse import unquote

from .bounds import BOUNDS

PATTERN_ALTERNATIVES = 8
"""What a pattern counts for where it is intersected; an enum counts for the square root of twice its length."""

_NOT_BELOW = frozenset({"allOf", "anyOf", "oneOf", "enum", "const", "$defs", "definitions"})
_INTERSECTED = frozenset(
    {"properties", "patternProperties", "additionalProperties", "items", "prefixItems", "required"}
)
_MULTIPLIED = "alternatives multiplied by allOf and siblings"
_TOO_LONG_A_WAY = f"more than {BOUNDS['schemas that lead into each other']} schemas lead into each other."


class SchemaGraph:
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
        found = [self._alternatives(each, level) for each in list_of(schema, "allOf")]
        for name in ("anyOf", "oneOf"):
            options = [self._alternatives(each, level) for each in list_of(schema, name)]
            found += [(sum([most for most, _ in options]), sum([size for _, size in options]))] if options else []
        if values := list_of(schema, "enum"):
            found.append((math.isqrt(2 * len(values)), len(values)))
        if isinstance(target := self._target(schema), dict):
            found.append(self._alternatives(target, level))
        below = [self._alternatives(each, level) for name, each in schema.items() if name not in _NOT_BELOW]
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
        options = [each for name in ("allOf", "anyOf", "oneOf") for each in list_of(schema, name)]
        return {id(each) for each in (*options, self._target(schema))}

    def _target(self, schema: dict[str, Any]) -> Any:
        """Return what the schema's `$ref` points at (RFC 6901); None where there is none."""
        reference = schema.get("$ref")
        if not isinstance(reference, str):
            return None
        value: Any = self._root
        for escaped in reference.split("/")[1:]:
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


def list_of(schema: dict[str, Any], name: str) -> list[Any]:
    """Return a keyword's list; empty where it has none."""
    value = schema.get(name)
    return value if isinstance(value, list) else []
