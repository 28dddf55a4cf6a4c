"""Tool calls on the real engine: a grammar forces them, for random weights never make one."""

import json
from itertools import pairwise
from typing import Any

import httpx
import openai
import pytest

MODEL = "gemma4-demo"
ASKED: dict[str, Any] = {
    "model": MODEL,
    "messages": [{"role": "user", "content": "Go."}],
    "max_tokens": 600,
    "seed": 1,
    "temperature": 1,
}
AWKWARD = ["}]", '{"', "<|tool_call>", '<|"|>', "\\", "<channel|>"]
"""Values that a grammar makes the model write, and that look like the end of something."""


def tool(name: str) -> dict[str, Any]:
    """Return a function whose argument is one of the awkward values."""
    key = {
        "type": "object",
        "properties": {"key": {"enum": AWKWARD}},
        "required": ["key"],
        "additionalProperties": False,
    }
    return {"type": "function", "function": {"name": name, "parameters": key}}


TOOLS = [tool("first"), tool("second")]
NAMED = {"type": "function", "function": {"name": "second"}}


def collect(stream: Any) -> tuple[list[list[str]], str, str | None]:
    """Put a stream together as a client does: its calls, its content and why it ended."""
    calls: list[list[str]] = []
    content, reason = "", None
    for chunk in stream:
        for choice in chunk.choices:
            content += choice.delta.content or ""
            reason = choice.finish_reason or reason
            for call in choice.delta.tool_calls or []:
                if call.id:
                    assert call.index == len(calls)
                    calls.append([call.function.name, ""])
                calls[call.index][1] += call.function.arguments or ""
    return calls, content, reason


@pytest.mark.parametrize("choice", ["required", NAMED], ids=["required", "named"])
@pytest.mark.parametrize("most", [600, 25, 9], ids=["whole", "cut", "cut early"])
@pytest.mark.parametrize("stop", [None, ["never this"]], ids=["", "with a stop string"])
def test_forced_calls_are_the_same_streamed(
    client: openai.OpenAI, choice: Any, most: int, stop: list[str] | None
) -> None:
    """Calls, content and finish reason of a stream are those of the whole answer, also where the length cuts it.

    vLLM holds text back while it may become a stop string, so its pieces are no longer those of tokens.
    """
    asked = ASKED | {"max_tokens": most, "stop": stop, "tools": TOOLS, "tool_choice": choice}
    whole = client.chat.completions.create(**asked).choices[0]
    calls = [[call.function.name, call.function.arguments] for call in whole.message.tool_calls or []]
    assert collect(client.chat.completions.create(**asked, stream=True)) == (calls, "", whole.finish_reason)
    if whole.finish_reason != "length":
        assert calls
        assert all(json.loads(arguments)["key"] in AWKWARD for _name, arguments in calls)
    elif most > ASKED["max_tokens"] / 2:
        pytest.fail("the answer has no end: choose another seed")


def test_calls_that_are_not_forced_are_text_here(client: openai.OpenAI) -> None:
    """With `auto`, the answer of random weights is the same text whole and streamed, and no call."""
    asked = ASKED | {"max_tokens": 60, "tools": TOOLS}
    whole = client.chat.completions.create(**asked).choices[0]
    assert not whole.message.tool_calls
    assert collect(client.chat.completions.create(**asked, stream=True)) == ([], whole.message.content, "length")


@pytest.mark.parametrize("kind", ["json_object", "json_schema"])
def test_structured_output_does_not_wait_for_thinking(client: openai.OpenAI, kind: str) -> None:
    """A reasoning parser must not delay the grammar: vLLM's own waits for the end of thinking that nobody asked for."""
    schema = {"name": "x", "schema": tool("x")["function"]["parameters"]}
    form: Any = {"type": kind} | ({"json_schema": schema} if kind == "json_schema" else {})
    answer = client.chat.completions.create(**ASKED | {"max_tokens": 30}, response_format=form).choices[0]
    assert (answer.message.content or "").lstrip().startswith("{")


def test_prompt_has_tools_calls_and_answers(client: openai.OpenAI) -> None:
    """The demo's template writes tools, calls and their answers as Gemma 4 reads them, so each of them adds tokens."""
    call = {"id": "c1", "type": "function", "function": {"name": "first", "arguments": '{"key": "}]"}'}}
    user, asked = ASKED["messages"], {"role": "assistant", "content": None, "tool_calls": [call]}
    conversations = [
        {"messages": user},
        {"messages": user, "tools": TOOLS},
        {"messages": [*user, asked], "tools": TOOLS},
        {"messages": [*user, asked, {"role": "tool", "tool_call_id": "c1", "content": "Done."}], "tools": TOOLS},
    ]
    lengths = []
    for conversation in conversations:
        answer = client.chat.completions.create(**ASKED | {"max_tokens": 1} | conversation)
        assert answer.usage
        lengths.append(answer.usage.prompt_tokens)
    assert all(shorter < longer for shorter, longer in pairwise(lengths)), lengths


def test_thinking_is_asked_for_and_kept_apart(client: openai.OpenAI) -> None:
    """`enable_thinking` changes the prompt; an answer without it has no thinking."""
    plain = client.chat.completions.create(**ASKED | {"max_tokens": 5})
    asked: dict[str, Any] = {"chat_template_kwargs": {"enable_thinking": True}}
    thinking = client.chat.completions.create(**ASKED | {"max_tokens": 5}, extra_body=asked)
    assert plain.usage
    assert thinking.usage
    assert thinking.usage.prompt_tokens > plain.usage.prompt_tokens
    assert getattr(plain.choices[0].message, "reasoning", None) is None


def test_tools_of_another_shape_are_refused_in_words(client: openai.OpenAI) -> None:
    """A function that is named but not among the tools is the client's mistake, and the answer says so."""
    unknown = {"type": "function", "function": {"name": "third"}}
    with pytest.raises(openai.BadRequestError, match="does not match any of the specified `tools`"):
        client.chat.completions.create(**ASKED | {"tools": TOOLS, "tool_choice": unknown})


def test_stream_can_be_read_by_curl(client: openai.OpenAI) -> None:
    """A stream of a forced call is events of JSON, each with one kind of delta, and ends with `[DONE]`."""
    asked = ASKED | {"tools": TOOLS, "tool_choice": NAMED, "stream": True}
    headers = {"Authorization": f"Bearer {client.api_key}"}
    answer = httpx.post(f"{client.base_url}chat/completions", json=asked, headers=headers, timeout=60)
    *events, end = [line.removeprefix("data: ") for line in answer.text.splitlines() if line]
    deltas = [json.loads(event)["choices"][0]["delta"] for event in events]
    assert end == "[DONE]"
    assert all(len(delta.get("tool_calls") or ()) <= 1 for delta in deltas)
