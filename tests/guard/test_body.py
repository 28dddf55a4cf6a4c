"""Which request bodies must not reach the engine."""

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from servekit.serve.guard.inside.servekit_guard.body import parse as parsing
from servekit.serve.guard.inside.servekit_guard.body.bounds import BodyError
from servekit.serve.guard.inside.servekit_guard.body.check import MAX_DEPTH, check_body
from servekit.serve.guard.inside.servekit_guard.body.fields import (
    MAX_MESSAGES,
    MAX_SEQUENCES,
    PASSED_INSIDE,
    REFUSED_IN_PARTS,
    ROUTES,
)
from servekit.serve.guard.inside.servekit_guard.body.parse import MAX_CONTAINERS, MAX_VALUES, parse
from tests.conftest import ROOT

VOCABULARY = 1000
CHAT, COMPLETIONS, RESPONSES, MESSAGES = "/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"
COUNT = "/v1/messages/count_tokens"


def problem_of(body: bytes, path: str = CHAT, vocabulary: int = VOCABULARY) -> BodyError | None:
    """Return why these bytes must not reach the engine."""
    try:
        check_body(parse(body), path, vocabulary)
    except BodyError as error:
        return error
    return None


def refused(fields: Any, path: str = CHAT) -> str | None:
    """Return the field a body is refused for, or None when it may pass."""
    problem = problem_of(json.dumps(fields).encode(), path)
    return problem.param if problem else None


@pytest.mark.parametrize(
    ("path", "fields", "param"),
    [
        (CHAT, {"mm_processor_kwargs": {"do_resize": False}}, "mm_processor_kwargs"),
        (RESPONSES, {"media_io_kwargs": {"image": {}}}, "media_io_kwargs"),
        (CHAT, {"truncate_prompt_tokens": 5}, "truncate_prompt_tokens"),
        (CHAT, {"stop_token_ids": [-1]}, "stop_token_ids"),
        (CHAT, {"stop_token_ids": [VOCABULARY]}, "stop_token_ids"),
        (CHAT, {"stop_token_ids": [True]}, "stop_token_ids"),
        (CHAT, {"stop_token_ids": ["5"]}, "stop_token_ids"),
        (CHAT, {"stop_token_ids": {"0": 1}}, "stop_token_ids"),
        (CHAT, {"stop_token_ids": [1] * 300}, "stop_token_ids"),
        (CHAT, {"logit_bias": {"1": 10**400}}, "logit_bias"),
        (CHAT, {"n": MAX_SEQUENCES + 1}, "n"),
        (CHAT, {"n": "2"}, "n"),
        (CHAT, {"n": 1e300}, "n"),
        (CHAT, {"best_of": 1000}, "n"),
        (COMPLETIONS, {"prompt": ["a"] * (MAX_SEQUENCES + 1)}, "n"),
        (COMPLETIONS, {"prompt": [[1]] * 30, "n": 30}, "n"),
        (COMPLETIONS, {"prompt": [VOCABULARY]}, "prompt"),
        (COMPLETIONS, {"prompt": [[1, 2], [3, VOCABULARY]]}, "prompt"),
        (COMPLETIONS, {"prompt": [[1, 2], [3.5]]}, "prompt"),
        (COMPLETIONS, {"prompt": ["a", 5]}, "prompt"),
        (COMPLETIONS, {"prompt": [[1], "a"]}, "prompt"),
        (COMPLETIONS, {"prompt": [-1]}, "prompt"),
        (COMPLETIONS, {"prompt_embeds": "AAAA"}, "prompt_embeds"),
        (COMPLETIONS, {"logprobs": 21}, "logprobs"),
        (CHAT, {"prompt_logprobs": -1}, "prompt_logprobs"),
        (CHAT, {"temperature": -0.1}, "temperature"),
        (CHAT, {"temperature": "0.5"}, "temperature"),
        (CHAT, {"top_k": 2**70}, "top_k"),
        (CHAT, {"seed": 2**63}, "seed"),
        (CHAT, {"logit_bias": {"AI": -100}}, "logit_bias"),
        (CHAT, {"logit_bias": {str(VOCABULARY): 1}}, "logit_bias"),
        (CHAT, {"logit_bias": {"\u0665": 1}}, "logit_bias"),
        (CHAT, {"logit_bias": {"5": "much"}}, "logit_bias"),
        (CHAT, {"logit_bias": [5]}, "logit_bias"),
        (CHAT, {"bad_words": [""]}, "bad_words"),
        (CHAT, {"allowed_token_ids": [900]}, "allowed_token_ids"),
        (CHAT, {"stop": ["a"] * 33}, "stop"),
        (CHAT, {"stop": "a" * 257}, "stop"),
        (MESSAGES, {"stop_sequences": ["ok", "a" * 257]}, "stop_sequences"),
        (CHAT, {"messages": []}, "messages"),
        (CHAT, {"messages": [{}] * (MAX_MESSAGES + 1)}, "messages"),
        (CHAT, {"chat_template": "{{ messages }}"}, "chat_template"),
        (CHAT, {"chat_template_kwargs": {"chat_template": "{% for _ in range(10) %}"}}, "chat_template_kwargs"),
        (MESSAGES, {"chat_template_kwargs": {"enable_thinking": "{{ 7 * 7 }}"}}, "chat_template_kwargs"),
        (CHAT, {"documents": [{"text": "x"}]}, "documents"),
        (CHAT, {"kv_transfer_params": {"do_remote_decode": True}}, "kv_transfer_params"),
        (CHAT, {"vllm_xargs": {"a": 1}}, "vllm_xargs"),
        (CHAT, {"use_beam_search": True}, "use_beam_search"),
        (CHAT, {"repetition_detection": {"max_pattern_size": 20_000, "min_count": 2}}, "repetition_detection"),
        (RESPONSES, {"background": True}, "background"),
        (RESPONSES, {"metadata": {str(number): "" for number in range(17)}}, "metadata"),
        (CHAT, {"messages": [{"role": "user", "content": [{"type": "image_url", "uuid": "u"}]}]}, "content"),
        (CHAT, {"messages": [{"role": "user", "content": [{"type": "image_embeds"}]}]}, "content"),
        (CHAT, {"user": "u" * 2000}, "user"),
        (CHAT, {"messages": [{"tool_calls": [{"function": {"arguments": "[" * 100_000}}]}]}, "arguments"),
        (CHAT, {"messages": [{"tool_calls": [{"function": {"arguments": "[" * 99 + "]" * 99}}]}]}, "arguments"),
        (RESPONSES, {"input": [{"type": "function_call", "arguments": "[" + "{}," * 20_001 + "{}]"}]}, "arguments"),
    ],
)
def test_a_harmful_field_is_named(path: str, fields: dict[str, Any], param: str) -> None:
    """The refusal names the field, so that the client can fix it."""
    assert refused(fields, path) == param


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        (CHAT, {"messages": [{"role": "user", "content": "mm_processor_kwargs"}]}),
        (CHAT, {"mm_processor_kwargs": None, "media_io_kwargs": {}, "bad_words": [], "use_beam_search": False}),
        (CHAT, {"stop_token_ids": [0, VOCABULARY - 1]}),
        (CHAT, {"stop_token_ids": None}),
        (CHAT, {"n": MAX_SEQUENCES, "logit_bias": {}, "stop": "\n", "chat_template_kwargs": {"enable_thinking": True}}),
        (COMPLETIONS, {"n": None, "prompt": "hello"}),
        (COMPLETIONS, {"prompt": list(range(500))}),
        (COMPLETIONS, {"prompt": [[1, 2], [VOCABULARY - 1]]}),
        (COMPLETIONS, {"prompt": ["a"] * MAX_SEQUENCES}),
        (COMPLETIONS, {"prompt": []}),
        (CHAT, {"metadata": {"n": 10**30}, "of_next_year": {"uuid": "u"}}),
        (CHAT, {"tools": [{"function": {"parameters": {"properties": {"uuid": {"type": "string"}}}}}]}),
        (
            MESSAGES,
            {"messages": [{"role": "user", "content": [{"type": "tool_use", "input": {"content": [{"uuid": "u"}]}}]}]},
        ),
        (CHAT, {"messages": [{"role": "user", "content": "\N{GRINNING FACE} \\ud83d"}]}),
        (
            CHAT,
            {
                "messages": [
                    {"role": "assistant", "tool_calls": [{"function": {"arguments": '{"code": "' + "[" * 999 + '"}'}}]}
                ]
            },
        ),
        (CHAT, {"messages": [{"role": "tool", "content": '{"uuid": 1}'}], "seed": -(2**63), "top_k": -1}),
    ],
)
def test_an_ordinary_body_passes(path: str, fields: Any) -> None:
    """Harmless bodies pass, also with a dangerous name in a text or in a client's own schema."""
    assert refused(fields, path) is None


CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}


@pytest.mark.parametrize(
    ("path", "fields", "param"),
    [
        (CHAT, {"tools": {}}, "tools"),
        (RESPONSES, {"tools": 0.5}, "tools"),
        (RESPONSES, {"tools": ["f"]}, "tools[0]"),
        (CHAT, {"tools": [CALL, {"type": "function", "name": "f"}]}, "tools[1].function"),
        (CHAT, {"tools": [{"type": "function", "function": "f"}]}, "tools[0].function"),
        (MESSAGES, {"tools": [5]}, "tools[0]"),
        (CHAT, {"messages": [{"role": "assistant", "tool_calls": {"a": 1}}]}, "messages[0].tool_calls"),
        (CHAT, {"messages": [{"role": "assistant", "tool_calls": ["f"]}]}, "messages[0].tool_calls[0]"),
        (
            CHAT,
            {"messages": [{"role": "user"}, {"role": "assistant", "tool_calls": [CALL, {"type": "custom"}]}]},
            "messages[1].tool_calls[1].function",
        ),
        (RESPONSES, {"input": [{"role": "assistant", "tool_calls": [{}]}]}, "input[0].tool_calls[0].function"),
        (CHAT, {"messages": [{"content": "x"}]}, "messages[0].role"),
        (CHAT, {"messages": [{"role": 5, "content": "x"}]}, "messages[0].role"),
        (MESSAGES, {"messages": [{}]}, "messages[0].role"),
        (RESPONSES, {"input": [{"role": "usr", "content": "x"}]}, "input[0].role"),
        (RESPONSES, {"input": [{"type": "message", "content": "x"}]}, "input[0].role"),
        (RESPONSES, {"input": []}, "input"),
        (RESPONSES, {"input": None}, "input"),
        (RESPONSES, {"input": [{"type": "item_reference", "id": "x"}]}, "input[0].type"),
        (RESPONSES, {"input": [{"type": ["message"], "role": "user"}]}, "input[0].type"),
        (CHAT, {"messages": None}, "messages"),
        (MESSAGES, {"tool_choice": {"type": "tool", "name": "f"}}, "tool_choice"),
        (MESSAGES, {"tool_choice": {"type": "any"}, "tools": None}, "tool_choice"),
        (COUNT, {"tool_choice": {"type": "tool", "name": "f"}, "tools": [{"name": "g"}]}, "tool_choice.name"),
        (MESSAGES, {"tool_choice": {"type": "tool"}, "tools": [{"name": "g"}]}, "tool_choice.name"),
        (MESSAGES, {"messages": [{"role": "user", "content": []}]}, "messages"),
        (MESSAGES, {"messages": [{"role": "user", "content": [{"type": "text", "text": ""}]}]}, "messages"),
        (COUNT, {"messages": [{"role": "user", "content": []}, {"role": "assistant", "content": []}]}, "messages"),
    ],
)
def test_a_shape_that_vllm_does_not_check_is_named(path: str, fields: dict[str, Any], param: str) -> None:
    """What vLLM reads without a check, and answers 500 or a Python error to, is refused by its name."""
    assert refused(fields, path) == param


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        (CHAT, {"tools": None, "messages": [{"role": "model", "content": "x", "tool_calls": None}]}),
        (CHAT, {"tools": [CALL], "messages": [{"role": "assistant", "content": None, "tool_calls": [CALL]}]}),
        (CHAT, {"messages": [{"role": "user", "content": []}]}),
        (CHAT, {"messages": "x"}),
        (COMPLETIONS, {"messages": None, "tools": 5}),
        (RESPONSES, {"tools": [{"type": "function", "name": "f"}], "input": [{"type": "reasoning", "summary": []}]}),
        (RESPONSES, {"input": "x"}),
        (MESSAGES, {"tool_choice": {"type": "auto"}}),
        (MESSAGES, {"tool_choice": {"type": "tool", "name": "f"}, "tools": [{"name": "f"}]}),
        (RESPONSES, {"input": [{"type": "function_call", "name": "f"}, {"type": "function_call_output"}]}),
        (MESSAGES, {"messages": [{"role": "user", "content": [{"type": "nosuch"}]}]}),
        (MESSAGES, {"tools": [{"name": "f"}], "messages": [{"role": "user", "content": []}, {"role": "user"}]}),
    ],
)
def test_other_shapes_are_left_to_vllm(path: str, fields: dict[str, Any]) -> None:
    """What vLLM accepts, or refuses by its name, passes."""
    assert refused(fields, path) is None


def checked(fields: dict[str, Any], path: str) -> dict[str, Any]:
    """Return a body as vLLM gets it."""
    check_body(fields, path, VOCABULARY)
    return fields


@pytest.mark.parametrize(("path", "list_name"), [(RESPONSES, "input"), (CHAT, "messages")])
def test_an_image_gets_openais_default_of_detail(path: str, list_name: str) -> None:
    """vLLM requires a `detail` that OpenAI's clients leave out; one that was sent stays."""
    images = [{"type": "input_image", "image_url": "x"}, {"type": "input_image", "image_url": "x", "detail": "low"}]
    body = checked({list_name: [{"role": "user", "content": images}]}, path)
    assert [part["detail"] for part in body[list_name][0]["content"]] == ["auto", "low"]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "ab"),
        ({"type": "message", "id": "m", "status": "completed"}, "ab"),
        ({"content": []}, ""),
        ({"status": "in_progress"}, None),
        ({"role": "user"}, None),
        ({"content": "ab"}, None),
        ({"content": "ab", "id": "m"}, "ab"),
        ({"content": [{"type": "output_text", "text": "a"}, {"type": "refusal", "refusal": "b"}]}, None),
        ({"content": [{"type": "output_text"}]}, None),
    ],
)
def test_an_earlier_answer_becomes_one_text(changes: dict[str, Any], expected: str | None) -> None:
    """A complete answer that a client sends back is joined, since vLLM reads its first part only; others stay."""
    parts = [{"type": "output_text", "text": "a"}, {"type": "output_text", "text": "b", "annotations": []}]
    message = {"role": "assistant", "content": parts} | changes
    before = dict(message)
    (after,) = checked({"input": [message]}, RESPONSES)["input"]
    if expected is None:
        assert after == before
    else:
        assert after == {name: before[name] for name in before if name != "id"} | {"content": expected}


@pytest.mark.parametrize(
    "body",
    [
        rb'{"mm_processor\u005fkwargs": {"do_resize": false}}',
        b'{"mm_processor_kwargs": null, "mm_processor_kwargs": {"do_resize": false}}',
        '{"mm_processor_kwargs": {"do_resize": false}}'.encode("utf-16"),
        '{"mm_processor_kwargs": {"do_resize": false}}'.encode("utf-16-le"),
        '{"mm_processor_kwargs": {"do_resize": false}}'.encode("utf-32"),
        '{"mm_processor_kwargs": {"do_resize": false}}'.encode("utf-8-sig"),
    ],
)
def test_a_key_cannot_be_hidden(body: bytes) -> None:
    """Escapes, doubled keys and other encodings are read as Python's json reads them."""
    assert json.loads(body) == parse(body)
    problem = problem_of(body)
    assert problem is not None
    assert problem.param == "mm_processor_kwargs"


@pytest.mark.parametrize(
    "body",
    [
        *(b'{"n": ', b'{"n":' + b"[" * 100_000, b'"\\u"', b"", b"null", b" [1, 2]", b'"n"', b"\xff"),
        *(b'{"top_p": NaN}', b'{"x": [-Infinity]}', b'{"metadata": {"a": 1e999}}', b'{"x": ' + b"9" * 5000 + b"}"),
        *(rb'{"x": "\ud83d"}', rb'{"x": ["\uDE00\uD83D"]}', b'{"x": "\xed\xa0\xbd"}', rb'{"\udead": 1}'),
        b'{"x": ' + b"[" * MAX_DEPTH + b"]" * MAX_DEPTH + b"}",
        b'{"x": [' + b"{}," * MAX_CONTAINERS + b"{}]}",
        b'{"x": [' + b"1," * MAX_VALUES + b"1, 1]}",
    ],
    ids=lambda body: f"{len(body)} bytes",
)
def test_a_body_must_be_a_json_object_of_sane_size(body: bytes) -> None:
    """Broken JSON, NaN, excessive nesting and excessive counts are refused with a message."""
    problem = problem_of(body)
    assert problem is not None
    assert problem.message.startswith(("The request body", "A number in the request body"))


def test_brackets_in_a_text_are_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """A prompt of source code passes, however many brackets it has; above a size the count is not exact."""
    text = '{"a": [1, "\\\\"]}, ' * MAX_CONTAINERS
    assert refused({"messages": [{"role": "user", "content": text}]}) is None
    monkeypatch.setattr(parsing, "MAX_COUNTED_BYTES", 100_000)
    assert problem_of(json.dumps({"content": text}).encode()) is not None


def test_without_a_known_vocabulary_no_token_passes() -> None:
    """Token ids that cannot be checked are refused."""
    assert problem_of(b'{"stop_token_ids": [1]}', CHAT, 0) is not None
    assert problem_of(b'{"prompt": [1]}', COMPLETIONS, 0) is not None


def test_every_field_of_vllm_has_a_verdict() -> None:
    """Every field of vLLM's request models has a verdict, and every verdict has a field."""
    table = json.loads((ROOT / "docs" / "request_fields.json").read_text())
    assert {route: set(fields) for route, fields in table["routes"].items()} == {
        route: set(rules) for route, rules in ROUTES.items()
    }
    passed = " ".join(PASSED_INSIDE.values()).split()
    assert sorted([*passed, *REFUSED_IN_PARTS]) == sorted(table["nested"])


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=10,
)


@given(st.data(), st.sampled_from(sorted(ROUTES)))
@settings(deadline=None)
def test_any_json_is_judged(data: st.DataObject, path: str) -> None:
    """Fields of any type are refused or pass, and the rules hold for those that pass."""
    fields: dict[str, Any] = data.draw(st.dictionaries(st.sampled_from(sorted(ROUTES[path])), JSON, max_size=5))
    with contextlib.suppress(BodyError):
        check_body(fields, path, VOCABULARY)
        assert fields.get("mm_processor_kwargs") in (None, False, {}, [])
        tokens = fields.get("stop_token_ids") or []
        assert all(0 <= token < VOCABULARY for token in tokens)
        assert type(fields.get("n")) in {int, float, bool, type(None)}


@given(st.binary(max_size=200))
def test_any_bytes_are_judged(body: bytes) -> None:
    """Bytes that are not JSON are refused, without any other exception."""
    problem_of(body)
