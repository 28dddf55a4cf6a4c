"""A JSON schema with its references followed: loops, and the alternatives that llguidance multiplies."""

import math
from graphlib import CycleError, TopologicalSorter
from typing import Any
from urllib.parse import unquote

from .bounds import BOUNDS, BodyError, check_bound

PATTERN_ALTERNATIVES = 8
"""The alternatives a pattern counts for where it is intersected; an enum counts for the root of twice its length."""

_OPTIONS = ("allOf", "anyOf", "oneOf")
_NOT_BELOW = frozenset({*_OPTIONS, "enum", "const", "$defs", "definitions"})
_INTERSECTED = frozenset(
    {"properties", "patternProperties", "additionalProperties", "items", "prefixItems", "required"}
)
_MULTIPLIED = "alternatives multiplied by allOf and siblings"
_CHAIN = "schemas that lead into each other"
_TOO_LONG_A_CHAIN = f"more than {BOUNDS[_CHAIN]} schemas lead into each other."

Pair = tuple[int, int]
"""Of a schema: the most alternatives in one place of it, and its size."""


class SchemaGraph:
    """Follows the references of one schema."""

    def __init__(self, root: dict[str, Any]) -> None:
        self._root = root
        self._pairs: dict[int, Pair] = {}
        """By a schema's identity; (1, 1) while the schema is being examined."""
        self._weight = 0

    def check(self) -> int:
        """Return the weight that intersections add to the schema's; raises BodyError when a bound is exceeded."""
        try:
            self._alternatives(self._root, 1)
            TopologicalSorter(self._in_place()).prepare()
        except RecursionError:
            raise BodyError(_TOO_LONG_A_CHAIN) from None
        except CycleError:  # such a grammar has no beginning
            raise BodyError("a $ref leads back to itself without a property or an item in between.") from None
        return self._weight

    def _alternatives(self, schema: Any, level: int) -> Pair:
        """Return the most alternatives that one place in `schema` has, and the schema's size.

        Intersecting (llguidance's parser/src/json/schema.rs, `intersect`) makes one schema of each pair, and continues
        below, property by property. Hence the maximum over all places, and not that of the same place.
        """
        check_bound(_CHAIN, level, _TOO_LONG_A_CHAIN)
        if isinstance(schema, list):
            found = [self._alternatives(each, level + 1) for each in schema]
            return _most(found), _size(found)
        if not isinstance(schema, dict):
            return 1, 0
        if id(schema) not in self._pairs:
            self._pairs[id(schema)] = 1, 1
            self._pairs[id(schema)] = self._multiplied(schema, level + 1)
        return self._pairs[id(schema)]

    def _multiplied(self, schema: dict[str, Any], level: int) -> Pair:
        found = [self._alternatives(each, level) for each in list_of(schema, "allOf")]
        for name in ("anyOf", "oneOf"):
            options = [self._alternatives(each, level) for each in list_of(schema, name)]
            found += [(sum([most for most, _ in options]), _size(options))] if options else []
        if values := list_of(schema, "enum"):
            found.append((math.isqrt(2 * len(values)), len(values)))
        if isinstance(target := self._target(schema), dict):
            found.append(self._alternatives(target, level))
        below = [self._alternatives(each, level) for name, each in schema.items() if name not in _NOT_BELOW]
        if any(isinstance(schema.get(name), str) for name in ("pattern", "format")):
            found.append((PATTERN_ALTERNATIVES, 1))
        if (found and schema.keys() & _INTERSECTED) or not found:
            found.append((_most(below), 1 + _size(below)))
        product, size = math.prod([most for most, _ in found]), _size(found)
        if len([most for most, _ in found if most > 1]) > 1 and product > BOUNDS[_MULTIPLIED]:
            raise BodyError(
                "allOf, anyOf, enum, pattern and $ref beside each other make more than"
                f" {BOUNDS[_MULTIPLIED]} alternatives of the schema."
            )
        if len(found) > 1:
            self._weight = _capped(self._weight + product * size // 5)
        return product, size

    def _in_place(self) -> dict[int, set[int]]:
        """Return which schemas each schema contains in its own place, by their identities."""
        found: dict[int, dict[str, Any]] = {}
        todo: list[Any] = [self._root]
        while todo:
            each = todo.pop()
            todo += each if isinstance(each, list) else each.values() if isinstance(each, dict) else ()
            if isinstance(each, dict):
                found[id(each)] = each
        return {
            number: {id(self._target(schema)), *(id(each) for name in _OPTIONS for each in list_of(schema, name))}
            & found.keys()
            for number, schema in found.items()
        }

    def _target(self, schema: dict[str, Any]) -> Any:
        """Return what the schema's `$ref` points at (RFC 6901); None when it points nowhere."""
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


def list_of(schema: dict[str, Any], name: str) -> list[Any]:
    """Return a keyword's list; empty when it has none."""
    value = schema.get(name)
    return value if isinstance(value, list) else []


def _most(found: list[Pair]) -> int:
    return max([most for most, _ in found], default=1)


def _size(found: list[Pair]) -> int:
    return _capped(sum([size for _, size in found]))


def _capped(number: int) -> int:
    """Cap a number above every bound: shared definitions make sizes that grow without limit."""
    return min(number, 10**6)
