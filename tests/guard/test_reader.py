"""Gemma 4's answers, cut everywhere: the parts of a stream are those of the whole answer."""

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from servekit.serve.guard.inside.servekit_guard.answers.forced_calls import Forced
from servekit.serve.guard.inside.servekit_guard.answers.reader import Part, Reader

SPECIAL = ("<|tool_response>", "<|image|>", "<pad>", "<turn|>")
WEATHER = '<|tool_call>call:weather{city:<|"|>Paris<|"|>}<tool_call|>'
DOUBLE_CUTS = 90
"""Longest answer that is cut at every pair of places: the number of pairs grows with its square."""


@dataclass
class Answer:
    """What an answer says, as a client puts it together."""

    content: str = ""
    reasoning: str = ""
    calls: list[list[str]] = field(default_factory=list)
    """Name and JSON of the arguments of each call."""


def put_together(parts: list[Part], answer: Answer) -> Answer:
    """Add parts to an answer, as clients do with the deltas of a stream."""
    for kind, text in parts:
        if kind == "call":
            answer.calls.append([text, ""])
        elif kind == "arguments":
            answer.calls[-1][1] += text
        else:
            setattr(answer, kind, getattr(answer, kind) + text)
    return answer


def read(pieces: list[str], *, calls: bool = True, forced: str | None = "") -> tuple[Answer, bool]:
    """Read an answer that arrives in these pieces; return it and whether it ends inside a call."""
    reader = Reader(SPECIAL, calls=calls, forced=None if forced == "" else Forced(forced))
    answer = Answer()
    for number, piece in enumerate(pieces, 1):
        put_together(reader.read(piece, last=number == len(pieces)), answer)
    return answer, reader.cut


def cuts(text: str) -> Iterator[list[str]]:
    """Cut a text at every place, at every pair of places if it is short, and into pieces of equal length."""
    for size in range(1, 9):
        yield [text[at : at + size] for at in range(0, len(text), size)]
    for at in range(len(text) + 1):
        yield [text[:at], text[at:]]
    if len(text) <= DOUBLE_CUTS:
        for first, second in combinations(range(len(text) + 1), 2):
            yield [text[:first], text[first:second], text[second:]]


def same_everywhere(text: str, **how: Any) -> tuple[Answer, bool]:
    """Return what the whole answer says, after comparing every way of cutting it."""
    whole = read([text], **how)
    for pieces in cuts(text):
        assert read(pieces, **how) == whole, pieces
    return whole


TEXTS = {
    "plain": ("Hello, world", Answer("Hello, world")),
    "comparison": ("if a < b and <b>c</b> or <|x", Answer("if a < b and <b>c</b> or <|x")),
    "end that looks like a tag": ("if a <", Answer("if a <")),
    "thinking": ("<|channel>thought\nTwo and two.\n<channel|>Four.", Answer("Four.", "Two and two.\n")),
    "empty thinking": ("<|channel>thought\n<channel|>Four.", Answer("Four.")),
    "thinking twice": ("<|channel>thought\na<channel|>b<|channel>thought\nc<channel|>d", Answer("bd", "ac")),
    "thinking without its label": ("<|channel>though no<channel|>Four.", Answer("Four.", "though no")),
    "thinking that does not end": ("<|channel>thought\nTwo and", Answer("", "Two and")),
    "stray tags": ('a<channel|>b<tool_call|>c<|"|>d<|tool_response>e', Answer("abcde")),
    "words that look like tags": ("<pad> and <mask> remain", Answer("<pad> and <mask> remain")),
    "call": (WEATHER, Answer(calls=[["weather", '{"city": "Paris"}']])),
    "text around calls": (
        f"One.{WEATHER}Two.<|tool_call>call:a.b-c{{}}<tool_call|>",
        Answer("One.Two.", calls=[["weather", '{"city": "Paris"}'], ["a.b-c", "{}"]]),
    ),
    "call that ends the thinking": (
        f"<|channel>thought\nLet me look.{WEATHER}",
        Answer("", "Let me look.", [["weather", '{"city": "Paris"}']]),
    ),
    "no end tag": (WEATHER.removesuffix("<tool_call|>"), Answer(calls=[["weather", '{"city": "Paris"}']])),
    "next call without an end tag": (
        "<|tool_call>call:a{x:1}<|tool_call>call:b{x:[1,<|tool_call>call:c{}",
        Answer(calls=[["a", '{"x": 1}'], ["b", '{"x": [1]}'], ["c", "{}"]]),
    ),
    "brackets in the wrong order": (
        "<|tool_call>call:a{x:[1,{y:2]}<tool_call|>",
        Answer(calls=[["a", '{"x": [1, {"y": 2}]}']]),
    ),
    "string without an end": (
        '<|tool_call>call:a{x:<|"|>1}<tool_call|>.',
        Answer(".", calls=[["a", '{"x": "1}"}']]),
    ),
    "tags inside a string": (
        '<|tool_call>call:a{x:<|"|>}<|image|> "<b>\\<|"|>}<tool_call|>',
        Answer(calls=[["a", '{"x": "}<|image|> \\"<b>\\\\"}']]),
    ),
    "no call": ("<|tool_call>I will<tool_call|> not", Answer("I will not")),
    "bare words": (
        "<|tool_call>call:a{a:-1.5e3,b:02134,c:true,d:None,e:,f:two words , g:[1, ,2,]}<tool_call|>",
        Answer(
            calls=[["a", '{"a": -1.5e3, "b": "02134", "c": true, "d": null, "e": "", "f": "two words", "g": [1, 2]}']]
        ),
    ),
    "quoted keys": (
        '<|tool_call>call:a{<|"|>a b<|"|>:{<|"|>3<|"|>:<|"|>x<|"|>}}<tool_call|>',
        Answer(calls=[["a", '{"a b": {"3": "x"}}']]),
    ),
}


@pytest.mark.parametrize("name", TEXTS)
def test_answer_is_the_same_at_every_cut(name: str) -> None:
    """Content, thinking and calls are as expected, wherever the stream is cut, and all arguments are JSON."""
    text, expected = TEXTS[name]
    answer, cut = same_everywhere(text)
    assert (answer, cut) == (expected, False)
    for _name, arguments in answer.calls:
        json.loads(arguments)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<|tool_call>call:wea", []),
        ("<|tool_call>call:weather{", [["weather", "{"]]),
        ('<|tool_call>call:weather{city:<|"|>Par', [["weather", '{"city": "Par']]),
        ("<|tool_call>call:weather{days:12", [["weather", '{"days": ']]),
    ],
)
def test_cut_call_is_not_completed(text: str, expected: list[list[str]]) -> None:
    """A call that the length limit cuts stays incomplete and is reported: half a path must not look whole."""
    answer, cut = same_everywhere(text)
    assert (answer.calls, answer.content, cut) == (expected, "", True)


def test_without_tools_nothing_is_called() -> None:
    """In a request without tools an answer that spells out a call is text without its tags."""
    answer, _cut = same_everywhere("<|channel>thought\nx<channel|>" + WEATHER, calls=False)
    assert answer == Answer("call:weather{city:Paris}", "x")


def test_a_name_that_never_ends_is_text() -> None:
    """A begin tag before a long text without a brace does not hold the answer back."""
    answer, cut = same_everywhere("<|tool_call>" + "word " * 40 + "{")
    assert (answer, cut) == (Answer("word " * 40 + "{"), False)


AWKWARD = '{"x": "}]\\"{<|tool_call>", "parameters": {"y": [1]}}'
FORCED = f'[{{"name": "a", "parameters": {AWKWARD}}}\n, {{"name" :"b","parameters":{{}}}}]'


def test_required_calls_are_the_same_at_every_cut() -> None:
    """Braces and quotes inside strings do not end the arguments of a forced call."""
    answer, cut = same_everywhere(FORCED, forced=None)
    assert answer.calls == [["a", AWKWARD], ["b", "{}"]]
    assert (answer.content, cut) == ("", False)
    for end in range(len(FORCED)):
        assert read([FORCED[:end]], forced=None)[1]


def test_named_call_is_the_same_at_every_cut() -> None:
    """All content of a request that names its function is the arguments of that function, after any thinking."""
    arguments = '{"city": "<|channel><tool_call|>"}'
    assert same_everywhere(arguments, forced="weather")[0] == Answer(calls=[["weather", arguments]])
    answer, _cut = same_everywhere("<|channel>thought\nx<channel|>" + arguments, forced="weather")
    assert answer == Answer("", "x", [["weather", arguments]])


TEXT = st.text(st.characters(codec="utf-8"), max_size=12).filter(lambda text: "<" not in text)
KEYS = st.from_regex(r"[A-Za-z_][A-Za-z0-9_ -]{0,8}[A-Za-z0-9]", fullmatch=True)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=12,
)


def written(value: object) -> str:
    """Write a value as Gemma 4 writes arguments."""
    if isinstance(value, str):
        return f'<|"|>{value}<|"|>'
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{written(each)}" for key, each in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(written, value)) + "]"
    return json.dumps(value)


@given(arguments=st.dictionaries(KEYS, VALUES, max_size=5), seed=st.integers(0, 2**32))
@settings(max_examples=300, deadline=None)
def test_any_arguments_arrive(arguments: dict[str, object], seed: int) -> None:
    """Whatever arguments the model writes, the client gets those, from a stream cut at random too."""
    text, chance = f"Well.<|tool_call>call:f{written(arguments)}<tool_call|>", random.Random(seed)
    places = sorted(chance.sample(range(len(text) + 1), chance.randrange(min(len(text), 12))))
    pieces = [text[start:end] for start, end in zip([0, *places], [*places, len(text)], strict=True)]
    for way in ([text], pieces):
        answer, cut = read(way)
        assert (answer.content, [name for name, _ in answer.calls], cut) == ("Well.", ["f"], False)
        assert json.loads(answer.calls[0][1]) == arguments


def test_reading_takes_time_in_proportion() -> None:
    """Each character is looked at a few times, not once more for each token that follows."""
    text = f'<|tool_call>call:f{{x:<|"|>{"word " * 40_000}<|"|>}}<tool_call|>'
    answer, _cut = read([text[at : at + 4] for at in range(0, len(text), 4)])
    assert len(answer.calls[0][1]) == len('{"x": ""}') + 200_000
