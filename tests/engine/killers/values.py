"""Values for the fields of a request: sensible values, boundary values, and hostile values."""

import random
from collections.abc import Callable
from typing import Any

from servekit.serve.guard.inside.servekit_guard.body.verdicts import Bias, Items, Number, Refused, Rule, Text, TokenIds
from tests.engine.killers.case import Target
from tests.engine.killers.content import picture
from tests.engine.killers.structured import nested

HOSTILE: list[Any] = [
    *(
        None,
        True,
        False,
        0,
        -1,
        1,
        2,
        0.5,
        -0.5,
        1e-30,
        1e30,
        2**31,
        2**63,
        -(2**63),
        2**70,
        float("nan"),
        float("inf"),
    ),
    *(
        "",
        " ",
        "\0",
        "\ud800",
        "\U0001d54f" * 50,
        "<|image|>",
        "<eos>",
        "a" * 5000,
        "{{ 7*7 }}",
        "../../etc/passwd",
        "5",
    ),
    *(
        [],
        {},
        [[]],
        [None],
        {"a": {}},
        [-1],
        [10**9],
        ["a", 1],
        [{}],
        {"": None},
        [[[[[[]]]]]],
        ["x"] * 300,
        [9] * 3000,
    ),
]
SCHEMAS: list[Any] = [
    *(
        {},
        True,
        {"type": "object"},
        {"type": "nosuch"},
        {"$ref": "#"},
        {"enum": []},
        {"enum": ["a", "b\n"]},
        {"const": 1},
    ),
    *(
        {"type": "string", "pattern": "^[a-z]{1,9}$"},
        {"type": "string", "pattern": "(?=a)b"},
        {"type": "string", "pattern": "("},
    ),
    *({"type": "string", "format": "date"}, {"type": "integer", "minimum": 5, "maximum": 1}, {"multipleOf": 0}),
    *({"type": "array", "items": {"type": "number"}, "maxItems": 3}, {"type": "array", "minItems": 10**6}, {"not": {}}),
    *(
        {"anyOf": [{"type": "null"}, {"type": "boolean"}]},
        {"allOf": [{"type": "string"}, {"type": "number"}]},
        {"oneOf": []},
    ),
    *(
        nested("array", 5),
        nested("object", 5),
        nested("object", 40),
        {"type": "object", "patternProperties": {"^a": {}}},
    ),
    {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"], "additionalProperties": False},
    {"$defs": {"a": {"type": "array", "items": {"$ref": "#/$defs/a"}}}, "$ref": "#/$defs/a"},
]


def sensible(name: str, rule: Rule, chaos: random.Random, target: Target) -> Any:
    """Return a typical value for the field, or one at its bounds."""
    if name in BY_NAME:
        return BY_NAME[name](chaos, target)
    return _by_rule(rule, chaos, target.vocabulary - 1)


def _by_rule(rule: Rule, chaos: random.Random, last: int) -> Any:
    made: Any = chaos.random() < 0.5
    if isinstance(rule, Number):
        low, high = rule.low, rule.high
        number = chaos.choice((low, high, 0, 1, 1, 2, low - 1, high + 1, low + (high - low) * chaos.random()))
        made = int(number) if chaos.random() < 0.6 else number
    elif isinstance(rule, Text):
        made = "a" * chaos.choice((1, 8, rule.max_chars, rule.max_chars + 1))
    elif isinstance(rule, TokenIds):
        made = [chaos.choice((0, 9, last, last + 1)) for _ in range(chaos.choice((1, 2, rule.max_items)))]
    elif isinstance(rule, Bias):
        made = {str(chaos.choice((0, 9, 900, last, last + 1))): chaos.choice((-100, -1, 0, 1, 100)) for _ in range(3)}
    elif isinstance(rule, Items):
        made = [chaos.choice(("a", "stop", "x" * (rule.max_chars or 9), "\n"))] * chaos.choice((1, 2, rule.max_items))
    elif isinstance(rule, Refused):
        made = chaos.choice(HOSTILE)
    return made


def _outputs(chaos: random.Random, _target: Target) -> Any:
    kind = chaos.choice(("json", "regex", "choice", "grammar", "json_object", "structural_tag"))
    texts: dict[str, list[Any]] = {
        "json": [*SCHEMAS, "", "{", '{"type": "object"}'],
        "regex": ["a+", "", "(", "(?=a)b", "[a-z]{1,5}", "(a{1,50}){1,50}"],
        "choice": [["a"], ["a", "b"], [], [""], ["c\nd"], ['"'], ["\\"], ["a"] * 100],
        "grammar": ['root ::= "a"', "root ::= root root", "start: /[a-z]+/", "", "root ::="],
        "json_object": [True, True, False],
        "structural_tag": ["", "{}", '{"type": "structural_tag", "format": {"type": "any_text"}}'],
    }
    made = {kind: chaos.choice(texts[kind])}
    return made | ({chaos.choice(list(texts)): chaos.choice(HOSTILE)} if chaos.random() < 0.15 else {})


def _format(chaos: random.Random, _target: Target) -> Any:
    schema = {"type": "json_schema", "json_schema": {"name": "x", "schema": chaos.choice(SCHEMAS)}}
    return chaos.choice(({"type": "json_object"}, {"type": "text"}, schema, schema, schema, {"type": "json_schema"}))


def _text_format(chaos: random.Random, _target: Target) -> Any:
    return {"format": {"type": "json_schema", "name": "x", "schema": chaos.choice(SCHEMAS)}}


def _tools(chaos: random.Random, _target: Target) -> Any:
    function = {"name": "f", "parameters": chaos.choice(SCHEMAS)}
    shapes = ({"type": "function", "function": function}, {"type": "function", **function})
    return [chaos.choice((*shapes, {"name": "f", "input_schema": chaos.choice(SCHEMAS)}))] * chaos.randint(1, 2)


def _tool_choice(chaos: random.Random, _target: Target) -> Any:
    named = {"type": "function", "function": {"name": "f"}}
    return chaos.choice(("none", "auto", "required", named, {"type": "tool", "name": "f"}, {"type": "any"}))


def _messages(chaos: random.Random, _target: Target) -> Any:
    roles = ("user", "assistant", "system", "developer", "tool", "nosuch", "")
    contents: tuple[Any, ...] = (
        "x",
        None,
        "",
        [],
        [{"type": "text", "text": "x"}],
        [{"type": "input_text", "text": "x"}],
        [picture()],
        5,
    )
    return [{"role": chaos.choice(roles), "content": chaos.choice(contents)} for _ in range(chaos.randint(0, 4))]


def _prompt(chaos: random.Random, target: Target) -> Any:
    last = target.vocabulary - 1
    return chaos.choice(("x", ["a", "b"], [2, 9], [[2, 9], [last]], [last + 1], [-1], [[]], ["a"] * 300, "word " * 900))


BY_NAME: dict[str, Callable[[random.Random, Target], Any]] = {
    "structured_outputs": _outputs,
    "response_format": _format,
    "text": _text_format,
    "tools": _tools,
    "tool_choice": _tool_choice,
    "messages": _messages,
    "input": _messages,
    "prompt": _prompt,
    "model": lambda _chaos, target: target.model,
    "stream_options": lambda chaos, _target: {chaos.choice(("include_usage", "continuous_usage_stats")): True},
    "chat_template_kwargs": lambda chaos, _target: {chaos.choice(("enable_thinking", "thinking", "tools")): True},
    "reasoning_effort": lambda chaos, _target: chaos.choice(("none", "low", "high")),
    "repetition_detection": lambda chaos, _target: {"max_pattern_size": chaos.choice((1, 64, 65)), "min_count": 2},
    "seed": lambda chaos, _target: chaos.choice((0, 7, -(2**63), 2**63 - 1)),
    "service_tier": lambda _chaos, _target: "auto",
    "truncation": lambda chaos, _target: chaos.choice(("auto", "disabled")),
    "metadata": lambda _chaos, _target: {"a": "b"},
    "reasoning": lambda chaos, _target: {"effort": chaos.choice(("low", "high"))},
    "system": lambda _chaos, _target: "Be short.",
    "include": lambda _chaos, _target: ["message.output_text.logprobs"],
    "request_id": lambda _chaos, _target: "r1",
    "suffix": lambda _chaos, _target: "x",
    "instructions": lambda _chaos, _target: "Be short.",
    "prompt_logprobs": lambda chaos, _target: chaos.choice((0, 1, 5, 20, 21, -1)),
    "n": lambda chaos, _target: chaos.choice((1, 1, 2, 3, 16, 257)),
}
