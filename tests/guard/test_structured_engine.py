"""Structured output on the real engine: correct answers or 400, in every order, and other requests are complete."""

import itertools
import json
import random
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.conftest import ROOT
from tests.guard.conftest import GuardedEngine, chat, completion

sys.path.insert(0, str(ROOT))  # the benchmarks are not part of the installed package

from benchmarks.structured_features import BEYOND, OPENAI

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

RANDOM_SCHEMAS = 300
REFUSED_BY_THE_BACKEND = {"oneOf that overlaps", "uniqueItems", "contains", "propertyNames", "format uri", "not"}
PATTERN_PROPERTIES = BEYOND["patternProperties"].schema


def schema(value: Any) -> dict[str, Any]:
    """A request for this schema."""
    return {"structured_outputs": {"json": value}}


def nested(levels: int, **kind: Any) -> dict[str, Any]:
    """Schemas in schemas."""
    inner: dict[str, Any] = {"type": "string"}
    for _ in range(levels):
        inner = kind | ({"items": inner} if kind["type"] == "array" else {"properties": {"a": inner}})
    return inner


KILLERS: dict[str, dict[str, Any]] = {
    "json_object: false": {"structured_outputs": {"json_object": False}},
    "json: empty": {"structured_outputs": {"json": ""}},
    "structural_tag: empty": {"structured_outputs": {"structural_tag": ""}},
    "structural_tag: {}": {"structured_outputs": {"structural_tag": "{}"}},
    "root twice": {"structured_outputs": {"grammar": 'root ::= "a"\nroot ::= "b"'}},
    "root root": {"structured_outputs": {"grammar": "root ::= root root"}},
    "a Lark grammar": {"structured_outputs": {"grammar": "start: WORD\nWORD: /[a-z]+/"}},
    "300 objects": {
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "a", "schema": nested(300, type="object")},
        }
    },
    "600 arrays": schema(nested(600, type="array")),
    "100,000 choices": {"structured_outputs": {"choice": [f"c{number}" for number in range(100_000)]}},
    "enum of 100,000": schema({"enum": list(range(100_000))}),
    "a{1,10000}": {"structured_outputs": {"regex": "(a{1,10000})"}},
    "a pattern of a million": schema({"type": "string", "pattern": "((a{1,100}){1,100}){1,100}"}),
    "$ref to itself": schema({"$ref": "#"}),
    "a remainder too many": schema({"type": "integer", "multipleOf": 99_999_989}),
    "5,000 references": schema(
        {"$defs": {f"a{number}": {"$ref": f"#/$defs/a{number + 1}"} for number in range(5000)}, "$ref": "#/$defs/a0"}
    ),
    "no schema": {"response_format": {"type": "json_schema", "json_schema": {"name": "a"}}},
    "a tag without structures": {"response_format": {"type": "structural_tag", "format": {"type": "any_text"}}},
}
HARMLESS: dict[str, dict[str, Any]] = {
    "JSON mode": {"response_format": {"type": "json_object"}},
    "a newline in a choice": {"structured_outputs": {"choice": ["c\nd", "e"]}},
    "patternProperties": schema(PATTERN_PROPERTIES),
    "a choice": {"structured_outputs": {"choice": ["yes", "no"]}},
    "an enum": schema({"enum": ["red", "green"]}),
}


@pytest.fixture
def lives(engine: GuardedEngine) -> Iterator[None]:
    """After each test the same engine process still answers plain requests."""
    pids = {process.pid for process in engine.family()}
    yield
    answer = engine.request("POST", "/v1/completions", completion(), timeout_s=120)
    assert answer.status == 200, answer.data
    assert pids <= {process.pid for process in engine.family()}


def ask(engine: GuardedEngine, fields: dict[str, Any], **others: Any) -> tuple[int, Any]:
    """Send a chat request and return its status and its JSON."""
    answer = engine.request("POST", "/v1/chat/completions", chat(**(fields | others)), timeout_s=200)
    return answer.status, answer.json()


def text_of(engine: GuardedEngine, fields: dict[str, Any], **others: Any) -> str:
    """Return the text of an answer."""
    status, body = ask(engine, fields, **others)
    assert status == 200, body
    return str(body["choices"][0]["message"]["content"])


@pytest.mark.usefixtures("lives")
def test_killers_in_every_order(engine: GuardedEngine) -> None:
    """Each request that ended or blocked an engine is 400 after each ordinary one; the ordinary ones are correct."""
    for (name, killer), (before, harmless) in itertools.product(KILLERS.items(), HARMLESS.items()):
        status, body = ask(engine, killer)
        assert status == 400, (name, body)
        assert body["error"]["message"], name
        assert ask(engine, harmless)[0] == 200, (name, before)
    for one, other in itertools.permutations(HARMLESS, 2):
        for name in (one, other):
            assert ask(engine, HARMLESS[name])[0] == 200, (one, other)
    assert text_of(engine, HARMLESS["a newline in a choice"], max_tokens=8) in ("c\nd", "e")
    assert text_of(engine, HARMLESS["a choice"], max_tokens=8) in ("yes", "no")
    assert json.loads(text_of(engine, HARMLESS["an enum"], max_tokens=16)) in ("red", "green")


@pytest.mark.usefixtures("lives")
def test_a_stream_beside_killers_is_whole(engine: GuardedEngine) -> None:
    """A stream that runs beside them equals one that runs alone."""
    alone, beside = [], []
    request = completion(max_tokens=200, temperature=0, ignore_eos=True)
    alone.append(engine.request("POST", "/v1/completions", request).json()["choices"][0]["text"])
    reader = threading.Thread(
        target=lambda: beside.append(
            engine.request("POST", "/v1/completions", request, timeout_s=200).json()["choices"][0]["text"]
        )
    )
    reader.start()
    for killer in KILLERS.values():
        assert ask(engine, killer)[0] == 400
    reader.join()
    assert len(beside[0]) > 100
    assert beside == alone


@pytest.mark.usefixtures("lives")
@pytest.mark.parametrize("name", [*OPENAI, *BEYOND])
def test_the_backend_serves_what_the_table_says(engine: GuardedEngine, name: str) -> None:
    """Every schema of OpenAI's subset is served; what the backend cannot do is 400 with the reason."""
    status, body = ask(engine, schema((OPENAI | BEYOND)[name].schema))
    assert status == (400 if name in REFUSED_BY_THE_BACKEND else 200), body
    if status == 400:
        assert "Grammar error" in body["error"]["message"] or "nimplemented" in body["error"]["message"], body


UNCOMPILABLE = {
    "no beginning": {"json": {"$ref": "#"}},
    "too many symbols": {"json": {"type": "array", "items": {"type": "integer"}, "maxItems": 70_000}},
    "too many states": {"json": {"type": "integer", "multipleOf": 997, "minimum": 123_456, "maximum": 10**15}},
    "json_object: false": {"json_object": False},
    "json: empty": {"json": ""},
    "structural_tag: empty": {"structural_tag": ""},
    "root root": {"grammar": "root ::= root root"},
    "root twice": {"grammar": 'root ::= "a"\nroot ::= "b"'},
}


@pytest.mark.usefixtures("lives")
@pytest.mark.parametrize("name", UNCOMPILABLE)
def test_a_grammar_that_does_not_compile_ends_its_own_request(engine: GuardedEngine, name: str) -> None:
    """The second line of defence: past the guard, as servekit itself, such a grammar ends only its own request."""
    body = completion(structured_outputs=UNCOMPILABLE[name])
    headers = engine.guard.headers
    answer = engine.request("POST", "/v1/completions", body, key=False, headers=headers, timeout_s=200)
    assert answer.status in (200, 400), answer.data


@pytest.mark.usefixtures("lives")
@pytest.mark.parametrize(
    "fields",
    [
        {"min_tokens": 4},
        {"ignore_eos": True},
        {"n": 4},
        {"logit_bias": {"5": -100}},
        {"stop": ["y"]},
        {"temperature": 2},
    ],
    ids=str,
)
def test_beside_other_fields(engine: GuardedEngine, fields: dict[str, Any]) -> None:
    """A finished grammar together with fields that require more tokens does no harm."""
    status, body = ask(engine, HARMLESS["a choice"] | fields, max_tokens=12)
    assert status == 200, body


@pytest.mark.usefixtures("lives")
def test_random_schemas_within_the_bounds(engine: GuardedEngine, eventually: Callable[..., None]) -> None:
    """Random schemas of every keyword are 200 or 400, never 500, and no slot is lost."""
    chaos = random.Random(15)
    requests = [schema(made(chaos, chaos.randint(1, 4))) | {"max_tokens": 6} for _ in range(RANDOM_SCHEMAS)]
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda fields: ask(engine, fields), requests))
    statuses = Counter(status for status, _ in answers)
    odd = [(fields, body) for fields, (status, body) in zip(requests, answers, strict=True) if status not in (200, 400)]
    assert not odd, (statuses, str(odd)[:3000])
    assert statuses[200] > 50, statuses
    assert statuses[400] > 20, statuses
    eventually(lambda: engine.counters()["in_flight"] == 0, within_s=20)


def made(chaos: random.Random, levels: int) -> Any:
    """Return a schema with some keywords, some of them wrong."""
    leaves: list[Any] = [
        {"type": "string", "minLength": chaos.randint(0, 5), "maxLength": chaos.choice([3, 9, 100_000])},
        {
            "type": "string",
            "pattern": chaos.choice(["^[a-z]{1,9}$", "(.*a){5}", r"^\d{3}-\d{4}$", "(?=a)", "[", "^(a?){200}"]),
        },
        {"type": "string", "format": chaos.choice(["email", "uuid", "date-time", "nothing"])},
        {"type": "integer", "minimum": chaos.randint(-9, 9), "maximum": chaos.choice([9, 1000, -10, "x"])},
        {"type": "number", "multipleOf": chaos.choice([1, 0.1, 7, 10, -5])},
        {"enum": chaos.choice([["a", 1, None], ["x" * 900], [[]], [], [{}]])},
        {"const": chaos.choice(["a", {"b": [1]}, True, 1.5])},
        {"$ref": chaos.choice(["#", "#/$defs/a", "#/nothing", "a"])},
        {"type": chaos.choice([["string", "null"], "object", "array", "thing", 1])},
        chaos.choice([{}, True, False, None, {"not": {}}, {"if": {}}, {"$id": "a", "type": "string"}]),
    ]
    if levels == 0:
        return chaos.choice(leaves)
    below = [made(chaos, levels - 1) for _ in range(chaos.randint(1, 4))]
    names = ["a", "b", "\n", "", "ü"][: len(below)]
    properties = dict(zip(names, below, strict=False))
    nodes: list[Any] = [
        {"type": "object", "properties": properties, "required": names, "additionalProperties": False},
        {"type": "object", "properties": properties, "$defs": {"a": below[0]}},
        {"type": "object", "patternProperties": {"^x": below[0]}, "additionalProperties": below[-1]},
        {"type": "array", "items": below[0], "minItems": chaos.randint(0, 3), "maxItems": chaos.choice([2, 300])},
        {"type": "array", "prefixItems": below},
        {"anyOf": below},
        {"allOf": below},
        {"oneOf": below},
        {"anyOf": below, "type": "object", "minProperties": 1},
    ]
    return chaos.choice(nodes)
