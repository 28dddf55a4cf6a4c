"""What a client is told about a wrong field, from errors of pydantic and from vLLM's own request models."""

import json
from typing import Any

import pytest

from servekit.serve.guard.inside.servekit_guard.wrong_fields import (
    describe_mistake,
    describe_wrong_field,
    explain,
)
from tests.guard.test_inside_vllm import run_inside


@pytest.mark.parametrize(
    "python",
    [
        "",
        "list index out of range",
        "pop from empty list",
        "'role'",
        "invalid literal for int() with base 10: 'x'",
        "could not convert string to float: 'a'",
        "unhashable type: 'dict'",
        "'NoneType' object is not iterable",
        "'list' object has no attribute 'items'",
        "'<' not supported between instances of 'str' and 'int'",
        "unsupported operand type(s) for +: 'int' and 'str'",
        "argument of type 'int' is not iterable",
        "TextEncodeInput must be Union[TextInputSequence, Tuple[InputSequence, InputSequence]]",
        "maximum recursion depth exceeded",
    ],
)
def test_pythons_own_messages_are_explained(python: str) -> None:
    """The text of an IndexError does not help the client, so the message explains what to check."""
    said = explain(python)
    assert said.startswith("The request could not be processed")
    assert python in said


@pytest.mark.parametrize(
    "message",
    [
        "`auto` needs a parser",
        "'auto' is not one of the tools",
        "The model `x` does not exist.",
        "n must be at least 1",
    ],
)
def test_vllms_own_messages_stay(message: str) -> None:
    """vLLM's own messages are passed on."""
    assert explain(message) == message


MISSING = {"type": "missing", "msg": "Field required", "input": {}}
UNION = ("body", "messages", 0, "ChatCompletionUserMessageParam", "content")


@pytest.mark.parametrize(
    ("errors", "body", "expected"),
    [
        (
            [MISSING | {"loc": UNION}],
            {"messages": [{}]},
            ("messages[0].content: Field required", "messages[0].content"),
        ),
        ([MISSING | {"loc": ("body", "input")}], {}, ("input: Field required", "input")),
        (
            [{"type": "x", "loc": ("body", "stop", "list[str]", 1), "msg": "Not a string"}] * 3,
            {"stop": ["a", 1]},
            ("stop[1]: Not a string", "stop[1]"),
        ),
        ([{"type": "x", "loc": ("body", "stop", "str"), "msg": "No"}], {"stop": 1}, ("stop: No", "stop")),
        (
            [{"type": "x", "loc": ("body", name), "msg": "No"} for name in ("top_p", "n", "stop", "n")],
            {"n": 0, "stop": 0, "top_p": 0},
            ("top_p: No (also wrong: n, stop)", "top_p"),
        ),
        (
            [{"type": "value_error", "loc": ("body",), "msg": "Value error, Pass a prompt."}],
            {},
            ("Pass a prompt.", None),
        ),
        (
            [{"type": "value_error", "loc": ("body", "n"), "msg": "Value error, n must be 1"}],
            {"n": 2},
            ("n must be 1", "n"),
        ),
        (["Unsupported Media Type"], None, ("Unsupported Media Type", None)),
        ([], None, ("The request body is not valid.", None)),
    ],
)
def test_a_wrong_field_is_named(errors: list[Any], body: Any, expected: tuple[str, str | None]) -> None:
    """The message has the field as a client writes it, without vLLM's class names, and what is wrong with it."""
    assert describe_wrong_field(errors, body) == expected


def test_vllms_parameter_is_the_field() -> None:
    """The parameter that a validator of vLLM names is the field."""
    cause = type("VLLMValidationError", (ValueError,), {"parameter": "logprobs"})("no")
    error = {
        "type": "value_error",
        "loc": ("body",),
        "msg": "Value error, no (parameter=logprobs)",
        "ctx": {"error": cause},
    }
    assert describe_wrong_field([error], {}) == ("no", "logprobs")


def test_a_late_error_begins_at_its_item() -> None:
    """vLLM validates parts one by one, later: the place of the part in the body is found by what it refused."""
    part = {"type": "image_url", "image_url": 5}
    body = {"x": [{}, {"image_url": 6}], "messages": [{"content": "a"}, {"content": [{"type": "text"}, part]}]}
    error = {"type": "dict_type", "loc": (1, "ImageParam", "image_url"), "msg": "Not an object", "input": 5}
    assert describe_wrong_field([error], body)[1] == "messages[1].content[1].image_url"
    error = {"type": "missing", "loc": ("file",), "msg": "Field required", "input": part}
    assert describe_wrong_field([error], body)[1] == "messages[1].content[1].file"
    error |= {"input": dict(part)}  # a copy that vLLM made: the place is unknown, the field is not
    assert describe_wrong_field([error], body)[1] == "file"


def test_broken_json_in_a_text_is_found() -> None:
    """The arguments of an earlier tool call are JSON in a text: the message says where, or at least what."""
    body = {"messages": [{}, {"tool_calls": [{"function": {"name": "f", "arguments": '{"a"'}}]}]}
    with pytest.raises(json.JSONDecodeError) as caught:
        json.loads('{"a"')
    field = "messages[1].tool_calls[0].function.arguments"
    assert describe_mistake(caught.value, body) == (f"{field}: not valid JSON: {caught.value}.", field)
    assert describe_mistake(caught.value, {})[0].startswith("arguments of a tool call: not valid JSON")


RESPONSES, CHAT, COMPLETIONS, MESSAGES = "/v1/responses", "/v1/chat/completions", "/v1/completions", "/v1/messages"
IMAGE = {"type": "input_image", "image_url": "data:image/png;base64,AAAA"}


def said(content: Any, role: str = "user") -> dict[str, Any]:
    return {"role": role, "content": content}


def anthropic(*messages: Any, **fields: Any) -> dict[str, Any]:
    return {"model": "m", "max_tokens": 5, "messages": list(messages)} | fields


WRONG: list[tuple[str, dict[str, Any], str]] = [
    (RESPONSES, {"input": [said([{"type": "input_text", "text": "x"}, IMAGE])]}, "input[0].content[1].detail: Field"),
    (RESPONSES, {"input": [said([{"type": "input_text", "txt": "x"}])]}, "input[0].content[0].text: Field required"),
    (
        RESPONSES,
        {"input": [said([{"type": "text", "text": "x"}])]},
        "input[0].content[0].type: Input should be 'in",
    ),
    (RESPONSES, {"input": [said(5)]}, "input[0].content: Input should be a valid string or a valid list"),
    (RESPONSES, {"input": [said("x"), {"type": "function_call", "name": "f"}]}, "input[1].arguments: Field required"),
    (RESPONSES, {"input": [{"type": "function_call_output", "call_id": "x"}]}, "input[0].output: Field required"),
    (RESPONSES, {"input": [{"type": "nosuch"}]}, "input[0].type: Input should be 'message' or "),
    (RESPONSES, {"input": ["x"]}, "input[0]: Input should be a valid object"),
    (RESPONSES, {"input": 5}, "input: Input should be a valid string or a valid list"),
    (RESPONSES, {"input": "x", "tools": [{"type": "function"}]}, "tools[0].name: Field required"),
    (RESPONSES, {"input": "x", "tools": [{"type": "nosuch"}]}, "tools[0].type: Input should be 'function' or"),
    (RESPONSES, {"input": "x", "tool_choice": "maybe"}, "tool_choice: Input should be 'none', 'auto' or 'required' or"),
    (RESPONSES, {"input": "x", "text": {"format": {"type": "json_schema"}}}, "text.format.name: Field required"),
    (CHAT, {"messages": [said(5)]}, "messages[0].content: Input should be a valid string or a valid list"),
    (CHAT, {"messages": "x"}, "messages: Input should be a valid list"),
    (CHAT, {"messages": [said("x")], "stop": [1]}, "stop[0]: Input should be a valid string"),
    (
        CHAT,
        {"messages": [said("x")], "stream_options": {"a": 1}},
        "Stream options can only be defined when `stream=True`.",
    ),
    (CHAT, {"messages": [{"role": "assistant", "tool_calls": [{"id": "c"}]}]}, "messages[0].tool_calls[0]."),
    (MESSAGES, anthropic(said([{"type": "nosuch"}])), "messages[0].content[0].type: Input should be 'text', 'image', "),
    (MESSAGES, anthropic(said("x", "system")), "messages[0].role: Input should be 'user' or 'assistant'"),
    (MESSAGES, anthropic(said("x"), tools=[{"name": "f"}]), "tools[0].input_schema: Field required"),
    (f"{MESSAGES}/count_tokens", {"model": "m"}, "messages: Field required"),
    (COMPLETIONS, {"prompt": [["a"]]}, "prompt[0][0]: Input should be a valid integer"),
    (COMPLETIONS, {"prompt": 5}, "prompt: Input should be a valid list or a valid string"),
]
"""Bodies that vLLM refuses, with the beginning of what its client is told."""
PROGRAM = """
import json
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from vllm.entrypoints.anthropic.api_router import router as messages
from vllm.entrypoints.openai.chat_completion.api_router import router as chat
from vllm.entrypoints.openai.completion.api_router import router as completions
from vllm.entrypoints.openai.responses.api_router import router as responses
from servekit_guard.routes import CLIENT_ROUTES
from servekit_guard.vllm_patches import stop_at_first_mistakes
from servekit_guard.wrong_fields import describe_wrong_field
app = FastAPI()
for router in (messages, chat, completions, responses):
    app.include_router(router)
stop_at_first_mistakes(app.routes, [route.path for route in CLIENT_ROUTES if route.generates])
fields = {route.path: route.body_field for route in app.routes if getattr(route, "body_field", None)}
said = []
for path, body in json.loads(%r):
    errors = fields[path].validate(body, {}, loc=("body",))[1]
    said.append([len(errors), *describe_wrong_field(errors, body)])
print(json.dumps(said))
"""


@pytest.mark.engine
@pytest.mark.timeout(600)
def test_vllms_errors_become_one_line() -> None:
    """Of what the installed vLLM reports about a body, up to 217 errors, the client gets the one that fits the item."""
    answers = run_inside(PROGRAM % json.dumps([(path, body) for path, body, _ in WRONG]))
    assert max(count for count, _, _ in answers) > 200
    for (_, body, expected), (_, message, param) in zip(WRONG, answers, strict=True):
        assert message.startswith(expected), (body, message)
        assert param is not None
        assert param.startswith(expected.partition(":")[0].rstrip(".")) or param == "stream_options"
        assert "\n" not in message
