"""Structured output that ended or stalled the engine, or made the next request do so."""

from typing import Any

from tests.engine.killers.case import (
    CHAT,
    COMPLETIONS,
    MESSAGES,
    RESPONSES,
    RIGHT,
    UNHARMED,
    Case,
    Group,
    plain,
)

ERRORS = "CVE-2026-105757"
CLOCK = "CVE-2026-55574"
JSON_MODE = {"response_format": {"type": "json_object"}}


def outputs(name: str, path: str = CHAT, /, **members: Any) -> Case:
    """Return the case of `structured_outputs` with these members, which is refused."""
    says = ("structured_outputs",)
    return plain(name, path, added={"structured_outputs": members}, says=says, closes=(ERRORS,))


def schema(name: str, value: Any, **right: Any) -> Case:
    """Return the case of `response_format` with this JSON schema, refused by default."""
    added = {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": value}}}
    return plain(name, added=added, **right)


def nested(kind: str, levels: int) -> dict[str, Any]:
    """Return a schema of nested arrays or objects."""
    inner: dict[str, Any] = {"type": "string"}
    for _ in range(levels):
        inner = (
            {"type": "array", "items": inner}
            if kind == "array"
            else {"type": "object", "properties": {"a": inner}, "required": ["a"]}
        )
    return inner


def tool(parameters: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of a request that must call a tool with these parameters."""
    return {
        "tools": [{"type": "function", "function": {"name": "f", "parameters": parameters}}],
        "tool_choice": {"type": "function", "function": {"name": "f"}},
    }


json_mode = plain("JSON mode", added=JSON_MODE, statuses=RIGHT)
pattern_properties = schema(
    "patternProperties",
    {"type": "object", "patternProperties": {"^a": {"type": "string"}}},
    statuses=UNHARMED,
    closes=(ERRORS,),
)
LARK = "start: WORD\nWORD: /[a-z]+/"
ROOT_TWICE = 'root ::= "a"\nroot ::= "b"'

EMPTY = Group(
    "empty, false and unknown members",
    (
        outputs("json_object false", json_object=False),
        outputs("json_object false for completions", COMPLETIONS, json_object=False),
        outputs("json_object false for responses", RESPONSES, json_object=False),
        outputs("json empty", json=""),
        outputs("structural_tag empty", structural_tag=""),
        outputs("structural_tag without a tag", structural_tag="{}"),
        outputs("regex empty", regex=""),
        outputs("grammar empty", grammar=""),
        outputs("choice empty", choice=[]),
        outputs("choice of an empty word", choice=[""]),
        outputs("two kinds", json_object=True, choice=["a"]),
        outputs("no kind"),
        plain("no member but whitespace", added={"structured_outputs": {"disable_any_whitespace": True}}),
        plain("unknown response_format", added={"response_format": {"type": "nosuch"}}),
        plain("response_format without schema", added={"response_format": {"type": "json_schema"}}),
        plain("choice of one word", added={"structured_outputs": {"choice": ["yes", "no"]}}, statuses=UNHARMED),
    ),
)

LATCHED = Group(
    "a first request decides for the second",
    (
        json_mode,
        plain("newline in a choice", added={"structured_outputs": {"choice": ["c\nd"]}}, statuses=UNHARMED),
        outputs("grammar with root twice", grammar=ROOT_TWICE),
        outputs("Lark grammar", grammar=LARK),
        pattern_properties,
        json_mode,
        plain("choice after all", added={"structured_outputs": {"choice": ["a", "b"]}}, statuses=UNHARMED),
        outputs("grammar of itself", grammar="root ::= root root"),
        outputs("regex that looks ahead", regex="(?=a)b"),
        schema("$ref to itself", {"$ref": "#"}, statuses=UNHARMED),
        schema("$ref to nothing", {"$ref": "#/$defs/nothing"}, statuses=UNHARMED),
        json_mode,
    ),
)

LARGE = Group(
    "schemas and grammars that take too long",
    (
        schema("300 nested objects", nested("object", 300), closes=(ERRORS, CLOCK)),
        schema("600 nested arrays", nested("array", 600), closes=(ERRORS, CLOCK)),
        plain("300 nested arrays as a text", added={"structured_outputs": {"json": nested("array", 300)}}),
        plain("a tool of 150 nested objects", added=tool(nested("object", 150)), says=("nested",)),
        plain(
            "a tool of 300 nested objects for messages",
            MESSAGES,
            added={
                "tools": [{"name": "f", "input_schema": nested("object", 300)}],
                "tool_choice": {"type": "tool", "name": "f"},
            },
        ),
        plain(
            "300 nested objects for responses",
            RESPONSES,
            added={"text": {"format": {"type": "json_schema", "name": "x", "schema": nested("object", 300)}}},
        ),
        outputs("choice of 100,000", choice=[f"word{number}" for number in range(100_000)]),
        schema("enum of 100,000", {"enum": [f"word{number}" for number in range(100_000)]}),
        schema(
            "a chain of 2,500 references",
            {
                "$ref": "#/$defs/d0",
                "$defs": {f"d{n}": {"$ref": f"#/$defs/d{n + 1}"} for n in range(2_500)} | {"d2500": {"type": "string"}},
            },
        ),
        schema("multipleOf 99,999,989", {"type": "integer", "multipleOf": 99_999_989}),
        schema(
            "ten allOf of two anyOf each",
            {
                "allOf": [{"anyOf": [{"pattern": f"^{n}.*x"}, {"pattern": f"{n}$"}]} for n in range(10)],
                "type": "string",
            },
        ),
        schema(
            "10,000 properties", {"type": "object", "properties": {f"p{n}": {"type": "string"} for n in range(10_000)}}
        ),
        outputs("regex of 10,000 repetitions", regex="(a{1,10000})"),
        outputs("regex of nested repetitions", regex="((a{1,100}){1,100}){1,100}"),
        schema(
            "pattern of nested repetitions",
            {"type": "string", "pattern": "((a{1,100}){1,100}){1,100}"},
            closes=(CLOCK,),
        ),
        schema(
            "array of up to 1,000,000",
            {"type": "array", "items": {"type": "string"}, "maxItems": 1_000_000},
            statuses=UNHARMED,
        ),
        schema("text of up to 1,000,000", {"type": "string", "maxLength": 1_000_000}, statuses=UNHARMED),
        schema("text of at least 1,000,000", {"type": "string", "minLength": 1_000_000}),
        json_mode,
    ),
)

GROUPS = (EMPTY, LATCHED, LARGE)
