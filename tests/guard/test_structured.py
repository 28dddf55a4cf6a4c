"""Structured output: what the guard passes to the engine's one backend, and what it refuses."""

import json
import sys
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import ROOT

sys.path.insert(0, str(ROOT))  # the benchmarks are not part of the installed package

from benchmarks.structured_features import BEYOND, OPENAI

from servekit.serve.guard.inside.servekit_guard.body.bounds import BOUNDS, BodyError
from servekit.serve.guard.inside.servekit_guard.body.patterns import pattern_size, repetitions
from servekit.serve.guard.inside.servekit_guard.body.structured import EXTRA_KINDS, MAX_CHOICES, check_structured

NONE: frozenset[str] = frozenset()
ALL = frozenset(EXTRA_KINDS)
TAG = {"structures": [{"begin": "<a>", "schema": {"type": "object"}, "end": "</a>"}], "triggers": ["<a>"]}


def nested(levels: int, kind: str = "object") -> dict[str, Any]:
    """Return objects in objects, or arrays in arrays, this many levels deep."""
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(levels):
        schema = {"type": kind, "items": schema} if kind == "array" else {"type": kind, "properties": {"a": schema}}
    return schema


def texts(number: int, length: int = 8) -> list[str]:
    """Different texts of one length."""
    return [f"{each:0{length}d}" for each in range(number)]


def chain(number: int) -> dict[str, Any]:
    """Definitions of which each refers to the next."""
    definitions: dict[str, Any] = {f"a{each}": {"$ref": f"#/$defs/a{each + 1}"} for each in range(number)}
    return {"$defs": definitions | {f"a{number}": {"type": "string"}}, "$ref": "#/$defs/a0"}


def short_id(value: Any) -> str:
    """A test's name that is the same in every process."""
    return str(sorted(value) if isinstance(value, frozenset) else value)[:40]


def problem_of(fields: dict[str, Any], allowed: frozenset[str] = NONE) -> BodyError | None:
    """Return why a body's structured output must not reach the engine."""
    try:
        check_structured(fields, allowed)
    except BodyError as error:
        return error
    return None


def problem(schema: Any) -> str | None:
    """Return the guard's message about a schema."""
    found = problem_of({"structured_outputs": {"json": schema}})
    return found.message if found else None


@pytest.mark.parametrize("name", [*OPENAI, *BEYOND])
def test_ordinary_schemas_pass(name: str) -> None:
    """Schemas that OpenAI documents, and others that its users need, pass the guard."""
    schema = (OPENAI | BEYOND)[name].schema
    assert problem(schema) is None
    assert problem(json.dumps(schema)) is None


LARGE = {
    "a thousand enum values": {"enum": texts(1000)},
    "450 properties": {
        "type": "object",
        "properties": {name: {"type": ["string", "null"], "description": "x" * 100} for name in texts(450)},
        "required": texts(450),
    },
    "ten levels": nested(10),
    "a pattern of a telephone number": {"type": "string", "pattern": r"^\(?\d{3}\)?[-. ]?\d{3}[-. ]?\d{4}$"},
    "property names that are keywords": {
        "type": "object",
        "properties": {name: {"type": "string"} for name in ("pattern", "enum", "$ref", "anyOf", "maxItems", "format")},
    },
    "an enum in each of two parts": {
        "allOf": [
            {"type": "object", "properties": {"a": {"enum": texts(10)}}},
            {"type": "object", "properties": {"b": {"enum": texts(3)}}},
        ]
    },
    "required one way or the other": {
        "type": "object",
        "properties": {"a": {"type": "string"}, "b": {"type": "string"}},
        "anyOf": [{"required": ["a"]}, {"required": ["b"]}],
    },
    "pydantic's discriminated union": {
        "$defs": {name: {"type": "object", "properties": {"kind": {"const": name}}} for name in "abc"},
        "anyOf": [{"$ref": f"#/$defs/{name}"} for name in "abc"],
    },
    "prices": {"type": "number", "multipleOf": 0.01, "minimum": 0, "maximum": 100000},
}


@pytest.mark.parametrize("name", LARGE)
def test_large_schemas_pass(name: str) -> None:
    """The bounds leave room for realistic schemas."""
    assert problem(LARGE[name]) is None


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        ({"enum": texts(140, 1000)}, "bytes"),
        (nested(300), "levels of nesting"),
        (nested(600, "array"), "levels of nesting"),
        ({"type": "object", "properties": {name: {} for name in texts(1001)}, "required": texts(1001)}, "objects"),
        ({"enum": texts(100_000, 5)}, "list entries"),
        ({"type": "object", "required": texts(2001)}, "list entries"),
        ({"const": "x" * 1001}, "characters in one name or value"),
        ({"const": {"description": "x" * 1001}}, "characters in one name or value"),
        ({"type": "object", "properties": {"x" * 1001: {}}}, "characters in one name or value"),
        ({"type": "string", "pattern": "a" * 513}, "characters in one pattern"),
        ({"type": "string", "pattern": "(a{1,10000})"}, "atoms in all patterns"),
        ({"type": "string", "pattern": "((a{1,100}){1,100}){1,100}"}, "atoms in all patterns"),
        ({"anyOf": [{"type": "string", "pattern": "a{500}"}] * 9}, "atoms in all patterns"),
        ({"type": "object", "patternProperties": {"((a{1,100}){1,100})": {}}}, "atoms in all patterns"),
        ({"anyOf": [{"type": "string", "format": "email"}] * 129}, "patterns, formats and numeric ranges"),
        ({"type": "object", "patternProperties": {f"^{name}": {} for name in texts(17)}}, "pattern properties"),
        ({"type": "array", "items": {}, "maxItems": 100_000}, "minItems and maxItems"),
        ({"anyOf": [{"type": "array", "items": {}, "minItems": 1000}] * 3}, "minItems and maxItems"),
        ({"type": "string", "maxLength": 10**7}, "minLength or maxLength"),
        ({"type": "object", "minProperties": 10**6}, "minProperties or maxProperties"),
        ({"type": "integer", "multipleOf": 99_999_989}, "least common multiple"),
        ({"type": "integer", "multipleOf": 100_000_000}, "least common multiple"),
        ({"type": "number", "multipleOf": 1e-300}, "least common multiple"),
        ({"type": "number", "multipleOf": 0}, "least common multiple"),
        ({"allOf": [{"type": "integer", "multipleOf": prime} for prime in (7, 11, 13, 17)]}, "least common multiple"),
        ({"allOf": [{"anyOf": [{"required": [each]}, {"required": ["b"]}]} for each in texts(9)]}, "alternatives"),
        ({"allOf": [{"enum": texts(50)}, {"enum": texts(50)}]}, "alternatives"),
        ({"enum": texts(1000), "pattern": "(.*a){5}"}, "alternatives"),
        ({"allOf": [{"type": "string", "pattern": f"a{number}"} for number in range(3)]}, "alternatives"),
        ({"$ref": "#"}, "leads back to itself"),
        ({"allOf": [{"$ref": "#"}]}, "leads back to itself"),
        ({"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}, "leads back"),
        ({"$ref": "https://example.org/schema"}, "must point into the same schema"),
        ({"type": "object", "properties": {name: {} for name in texts(451)}}, "optional properties"),
        ({"anyOf": [{"minimum": 1}] * 129}, "patterns, formats and numeric ranges"),
        ({"properties": {name: {} for name in texts(400)}, "anyOf": [{"required": ["a"]}] * 30}, "weight"),
        ({"properties": {name: {"maximum": 1} for name in texts(120)}, "required": texts(1500)}, "weight"),
        ({"properties": {"a": {"$ref": "#/const"}}, "const": {"multipleOf": 10**7}}, "least common multiple"),
        ({"properties": {"a": {"$ref": "#/x/properties"}}, "x": {"properties": {"pattern": "(a{999}){9}"}}}, "atoms"),
        ({"properties": {name: {} for name in texts(500)}, "required": [*"ab"] * 100}, "optional properties"),
        ({"properties": {"a": {"$id": "b", "$ref": "#"}}}, "$id"),
        ({"$ref": "#/"}, "must point into the same schema"),
        (chain(400), "240 schemas lead into each other"),
        ({"x-guidance": {"whitespace_pattern": "a{9}"}}, "x-guidance"),
        ({"type": "integer", "minimum": 2**64}, "64 bits"),
        ({"type": "number", "minimum": float("nan")}, "not finite"),
        ({"const": "\ud800"}, "surrogate"),
        ([], "must be a JSON schema"),
        ("", "must be a JSON schema"),
        ("[" * 100_000, "must be a JSON schema"),
        ("x" * 200_000, "bytes"),
    ],
    ids=lambda value: value if isinstance(value, str) and len(value) < 40 else "",
)  # fmt: skip
def test_schemas_over_a_bound_are_refused(schema: Any, said: str) -> None:
    """A refusal names the bound and the field."""
    message = problem(schema)
    assert message is not None
    assert said in message
    assert message.startswith("structured_outputs.json: ")


@pytest.mark.parametrize(
    ("params", "allowed"),
    [
        ({}, NONE),
        ([], NONE),
        ("json", NONE),
        ({"json": None}, NONE),
        ({"json": ""}, NONE),
        ({"json": False}, NONE),
        ({"json_object": False}, NONE),
        ({"json_object": 1}, NONE),
        ({"json_object": True, "choice": ["a"]}, NONE),
        ({"json": {}, "regex": ""}, ALL),
        ({"unknown": 1}, NONE),
        ({"json_object": True, "_backend": "outlines"}, NONE),
        ({"json_object": True, "whitespace_pattern": "(a{1,100}){1,100}"}, NONE),
        ({"choice": []}, NONE),
        ({"choice": [""]}, NONE),
        ({"choice": ["a", 1]}, NONE),
        ({"choice": "abc"}, NONE),
        ({"choice": texts(MAX_CHOICES + 1)}, NONE),
        ({"choice": texts(40, 1000)}, NONE),
        ({"regex": "a+"}, NONE),
        ({"grammar": "start: /a/"}, NONE),
        ({"structural_tag": json.dumps(TAG)}, NONE),
        ({"regex": ""}, ALL),
        ({"regex": "((a{1,100}){1,100}){1,100}"}, ALL),
        ({"grammar": " "}, ALL),
        ({"grammar": "start: a{100} b{100}"}, ALL),
        ({"grammar": 'start: x\nx: %json {"multipleOf": 99999989}'}, ALL),
        ({"structural_tag": ""}, ALL),
        ({"structural_tag": "{}"}, ALL),
        ({"structural_tag": json.dumps({"format": {"type": "any_text"}})}, ALL),
        ({"structural_tag": json.dumps(TAG | {"structures": [{"begin": "", "schema": {}, "end": ""}]})}, ALL),
        ({"structural_tag": json.dumps(TAG | {"structures": [{"begin": "a", "schema": nested(99), "end": ""}]})}, ALL),
    ],
    ids=lambda value: str(sorted(value) if isinstance(value, frozenset) else value)[:40],
)  # fmt: skip
def test_members_that_must_not_reach_the_engine(params: Any, allowed: frozenset[str]) -> None:
    """Empty, false and unknown members, several together, and kinds that are not enabled are refused."""
    found = problem_of({"structured_outputs": params}, allowed)
    assert found is not None
    assert (found.param or "").startswith("structured_outputs")


@pytest.mark.parametrize(
    "params",
    [
        None,
        {"json_object": True},
        {"json_object": True, "json": None, "disable_any_whitespace": True},
        {"choice": ["a", "c\nd"]},
        {"regex": r"\d{3}-\d{4}"},
        {"grammar": 'start: "yes" | "no"\n%ignore " "'},
        {"structural_tag": json.dumps(TAG)},
    ],
    ids=short_id,
)
def test_an_enabled_kind_passes(params: Any) -> None:
    """Each kind passes when it is enabled."""
    assert problem_of({"structured_outputs": params}, ALL) is None


BAD = {"type": "string", "pattern": "((a{1,100}){1,100}){1,100}"}
GOOD = {"type": "object", "properties": {"a": {"type": "string"}}}


def places(schema: Any) -> dict[str, dict[str, Any]]:
    """Every place of the four routes in which a schema becomes a grammar."""
    chat_tool = {"type": "function", "function": {"name": "f", "parameters": schema}}
    named = {"type": "function", "function": {"name": "f"}}
    tool = {"type": "function", "name": "f", "parameters": schema}
    anthropic = {"name": "f", "input_schema": schema}
    return {
        "structured_outputs": {"structured_outputs": {"json": schema}},
        "response_format": {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}},
        "text.format": {"text": {"format": {"type": "json_schema", "name": "a", "schema": schema}}},
        "chat, required": {"tools": [chat_tool], "tool_choice": "required"},
        "chat, named": {"tools": [chat_tool], "tool_choice": named},
        "responses, required": {"tools": [tool], "tool_choice": "required"},
        "responses, named": {"tools": [tool], "tool_choice": {"type": "function", "name": "f"}},
        "messages, any": {"tools": [anthropic], "tool_choice": {"type": "any"}},
        "messages, named": {"tools": [anthropic], "tool_choice": {"type": "tool", "name": "f"}},
    }


@pytest.mark.parametrize("place", places(GOOD))
def test_every_place_of_a_schema_is_checked(place: str) -> None:
    """The same bounds hold for every place of a schema."""
    assert problem_of(places(GOOD)[place]) is None
    found = problem_of(places(BAD)[place])
    assert found is not None
    assert "atoms in all patterns" in found.message


def test_tools_that_make_no_grammar_are_free() -> None:
    """A tool that the model need not call is only text in the prompt; so is any other than the named one."""
    schemas_of = {"f": GOOD, "g": BAD}
    tools = [{"type": "function", "function": {"name": name, "parameters": each}} for name, each in schemas_of.items()]
    for choice in (None, "none", "auto", {"type": "auto"}, {"type": "function", "function": {"name": "f"}}):
        assert problem_of({"tools": tools, "tool_choice": choice}) is None
    assert problem_of({"tools": tools, "tool_choice": "required"}) is not None


@pytest.mark.parametrize(
    "form",
    [
        {},
        "json_object",
        {"type": "jsn"},
        {"type": "json_schema"},
        {"type": "json_schema", "json_schema": None},
        {"type": "json_schema", "json_schema": {"name": "a"}},
        {"type": "json_schema", "json_schema": {"name": "a", "schema": "{}"}},
        {"type": "structural_tag", "format": {}},
    ],
    ids=short_id,
)
def test_an_invalid_response_format(form: Any) -> None:
    """An unknown format, or one without its schema, is refused; text and JSON pass."""
    assert problem_of({"response_format": form}) is not None
    for name in ("text", "json_object"):
        assert problem_of({"response_format": {"type": name}}) is None


def test_one_constraint_at_a_time() -> None:
    """Two fields that each define a grammar are refused."""
    both = places(GOOD)["structured_outputs"] | {"response_format": {"type": "json_object"}}
    assert problem_of(both) is not None


def test_many_sequences_share_a_budget() -> None:
    """vLLM compiles for each prompt and each of `n`, so a large schema allows fewer sequences."""
    large = {"structured_outputs": {"json": LARGE["450 properties"]}}
    small = {"structured_outputs": {"json": GOOD}}
    for many in ({"n": 128}, {"prompt": ["a"] * 128}, {"prompt": [[1]] * 16, "n": 8}):
        assert problem_of(large | many) is not None
        assert problem_of(small | many) is None
    pattern = {"structured_outputs": {"json": {"type": "string", "pattern": "^a+$"}}}
    assert problem_of(pattern | {"n": 60}) is None
    assert problem_of(pattern | {"n": 90}) is not None
    assert problem_of(large | {"prompt": [1] * 1000}) is None, "one prompt of token ids"


def test_the_size_of_patterns() -> None:
    """Repetitions are expanded, nested ones multiplied; an unreadable pattern has no size."""
    sizes = {
        "": 0,
        "abc": 3,
        "a{10}b": 11,
        "(a{10}b){20}": 220,
        "[abc]{2,5}": 5,
        r"\d{3,}": 3,
        r"[^\]a]{4}": 4,
        "[]a]{4}": 4,
        "(?:ab|c)+x?": 4,
        "(?P<name>a)(?<other>b){3}": 4,
        r"\p{L}{2}": 64,
        r"\({3}": 3,
        "()": 0,
        "a{,5}": 5,
        "(a": None,
        "a)": None,
        "(?x)(a) {9}": None,
    }
    assert {pattern: pattern_size(pattern) for pattern in sizes} == sizes
    assert repetitions("a{10} b{1,20} c* {}") == 200


schemas = st.recursive(
    st.booleans()
    | st.sampled_from([{"type": "string"}, {"$ref": "#"}, {"$ref": "#/$defs/a"}, {"enum": ["a"]}, None, 1]),
    lambda inner: (
        st.builds(dict, type=st.just("object"), properties=st.dictionaries(st.text(max_size=3), inner, max_size=3))
        | st.builds(dict, allOf=st.lists(inner, max_size=3))
        | st.builds(dict, anyOf=st.lists(inner, max_size=3), pattern=st.text(max_size=9))
        | st.dictionaries(
            st.sampled_from([*LARGE, "$defs", "items", "$ref", "multipleOf", "enum", "type"]), inner, max_size=4
        )
    ),
    max_leaves=30,
)


@settings(max_examples=300, deadline=None)
@given(schemas)
def test_any_schema_is_judged(schema: Any) -> None:
    """Any schema gets a verdict and raises no other exception."""
    message = problem(schema)
    assert message is None or message.startswith("structured_outputs")


@given(st.text(alphabet=r"a(){}[]\|?*+,0123456789pL<>:=!-^", max_size=60))
def test_any_pattern_is_measured(pattern: str) -> None:
    """Any pattern has a size or None."""
    size = pattern_size(pattern)
    assert size is None or size >= 0


def test_the_documents_name_every_bound() -> None:
    """The table in docs/security.md has the numbers of the code."""
    text = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
    missing = [name for name, most in BOUNDS.items() if f"| {name} | {most:,} |" not in text]
    assert not missing


def test_judging_has_an_end() -> None:
    """The largest schemas that are allowed are judged in a few hundredths of a second, a hundredth of this limit."""
    wide = {"type": "object", "properties": {name: {"anyOf": [{"$ref": "#/$defs/a"}]} for name in texts(300)}}
    for schema in (LARGE["450 properties"], {"enum": texts(2000)}, wide | {"$defs": {"a": nested(10)}}):
        began_s = time.thread_time()
        assert problem(schema) is None
        assert time.thread_time() - began_s < 3
