"""OpenAI's structured output subset and common requests beyond it: a schema, a valid answer, an invalid one."""

from typing import Any, NamedTuple


class Feature(NamedTuple):
    """One property of JSON schemas."""

    schema: dict[str, Any]
    right: str
    wrong: str


def _object(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


def _one(right: str, wrong: str, **schema: Any) -> Feature:
    """Return a feature with one property `v`, and the texts of a right and a wrong value."""
    return Feature(_object(v=schema), f'{{"v":{right}}}', f'{{"v":{wrong}}}')


_STEP = {"$defs": {"step": _object(text={"type": "string"})}}
_NODE = _object(value={"type": "number"}, next={"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]})
_TREE = _object(name={"type": "string"}, children={"type": "array", "items": {"$ref": "#"}})

OPENAI = {
    "string": _one('"a"', "1", type="string"),
    "number": _one("1.5", '"a"', type="number"),
    "integer": _one("3", "1.5", type="integer"),
    "boolean": _one("true", "1", type="boolean"),
    "null in a list of types": _one("null", "1", type=["string", "null"]),
    "enum": _one('"red"', '"pink"', type="string", enum=["red", "green"]),
    "enum of numbers": _one("2", "3", enum=[1, 2]),
    "const": _one('"x"', '"y"', const="x"),
    "nested objects": _one('{"b":{"c":1}}', '{"b":{"c":"1"}}', **_object(b=_object(c={"type": "integer"}))),
    "arrays": _one("[1,2]", '["a"]', type="array", items={"type": "integer"}),
    "minItems, maxItems": _one("[1,2]", "[1]", type="array", items={"type": "integer"}, minItems=2, maxItems=3),
    "anyOf": _one('{"b":1}', '{"b":"1"}', anyOf=[_object(a={"type": "string"}), _object(b={"type": "integer"})]),
    "$defs and $ref": Feature(
        _object(steps={"type": "array", "items": {"$ref": "#/$defs/step"}}) | _STEP,
        '{"steps":[{"text":"a"}]}',
        '{"steps":[{"text":1}]}',
    ),
    "recursion, $ref to the root": Feature(
        _TREE, '{"name":"a","children":[{"name":"b","children":[]}]}', '{"name":"a","children":[{"name":"b"}]}'
    ),
    "recursion, $ref to a definition": Feature(
        {"$ref": "#/$defs/node", "$defs": {"node": _NODE}},
        '{"value":1,"next":{"value":2,"next":null}}',
        '{"value":1,"next":{"value":2,"next":3}}',
    ),
    "additionalProperties: false": Feature(_object(a={"type": "integer"}), '{"a":1}', '{"a":1,"b":2}'),
    "pattern": _one('"@user_1"', '"user"', type="string", pattern="^@[a-zA-Z0-9_]+$"),
    "format date-time": _one('"2024-01-02T03:04:05Z"', '"today"', type="string", format="date-time"),
    "format date": _one('"2024-01-02"', '"2024"', type="string", format="date"),
    "format time": _one('"03:04:05Z"', '"3"', type="string", format="time"),
    "format duration": _one('"P1D"', '"1 day"', type="string", format="duration"),
    "format email": _one('"a@example.org"', '"a"', type="string", format="email"),
    "format hostname": _one('"example.org"', '"-"', type="string", format="hostname"),
    "format ipv4": _one('"127.0.0.1"', '"x"', type="string", format="ipv4"),
    "format ipv6": _one('"::1"', '"x"', type="string", format="ipv6"),
    "format uuid": _one('"123e4567-e89b-12d3-a456-426614174000"', '"x"', type="string", format="uuid"),
    "multipleOf": _one("10", "11", type="integer", multipleOf=5),
    "multipleOf a fraction": _one("0.25", "0.3", type="number", multipleOf=0.25),
    "minimum, maximum": _one("7", "11", type="integer", minimum=1, maximum=10),
    "exclusiveMinimum, exclusiveMaximum": _one("0.5", "1.0", type="number", exclusiveMinimum=0, exclusiveMaximum=1),
}
"""https://platform.openai.com/docs/guides/structured-outputs: the supported schemas."""

BEYOND = {
    "patternProperties": Feature(
        {"type": "object", "patternProperties": {"^x_": {"type": "integer"}}, "additionalProperties": False},
        '{"x_a":1}',
        '{"x_a":"1"}',
    ),
    "additionalProperties: a schema": Feature(
        {"type": "object", "additionalProperties": {"type": "integer"}}, '{"a":1}', '{"a":"1"}'
    ),
    "optional properties": Feature(
        {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}}},
        '{"b":1}',
        '{"b":"1"}',
    ),
    "minLength, maxLength": _one('"abc"', '"a"', type="string", minLength=2, maxLength=4),
    "prefixItems": _one('[1,"a"]', '["a",1]', type="array", prefixItems=[{"type": "integer"}, {"type": "string"}]),
    "allOf": _one("7", "11", allOf=[{"type": "integer", "minimum": 1}, {"maximum": 10}]),
    "oneOf of different types": _one('"a"', "true", oneOf=[{"type": "string"}, {"type": "integer"}]),
    "oneOf that overlaps": _one("1", '"a"', oneOf=[{"type": "integer"}, {"type": "number", "minimum": 5}]),
    "minProperties, maxProperties": Feature(
        {"type": "object", "additionalProperties": {"type": "integer"}, "minProperties": 1, "maxProperties": 2},
        '{"a":1}',
        "{}",
    ),
    "uniqueItems": _one("[1,2]", "[1,1]", type="array", items={"type": "integer"}, uniqueItems=True),
    "contains": _one("[1,2]", "[1]", type="array", items={"type": "integer"}, contains={"const": 2}),
    "propertyNames": Feature({"type": "object", "propertyNames": {"pattern": "^a"}}, '{"a":1}', '{"b":1}'),
    "format uri": _one('"https://example.org/"', '"\\u0000"', type="string", format="uri"),
    "not": _one("1", '"a"', **{"not": {"type": "string"}}),
}
