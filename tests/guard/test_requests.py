"""Requests as clients send them, each with the real engine's verdict: served, or refused in words that help."""

import json
from typing import Any

import pytest

from tests.guard.conftest import GuardedEngine, chat, completion, image, png

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

CHAT, COMPLETIONS, RESPONSES, MESSAGES = "/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"
COUNT = f"{MESSAGES}/count_tokens"
PICTURE = image(png(64, 64))
URL = PICTURE["image_url"]["url"]
NOW = {"type": "function", "function": {"name": "now", "parameters": {"type": "object", "properties": {}}}}
CALL = {"id": "c1", "type": "function", "function": {"name": "now", "arguments": "{}"}}


def said(content: Any, role: str = "user", **more: Any) -> dict[str, Any]:
    """Return a message."""
    return {"role": role, "content": content} | more


def talk(*messages: Any, **fields: Any) -> dict[str, Any]:
    """Return a chat request with these messages."""
    return {"model": "demo", "max_tokens": 4, "messages": list(messages)} | fields


def respond(*items: Any, **fields: Any) -> dict[str, Any]:
    """Return a request for /v1/responses."""
    return {"model": "demo", "max_output_tokens": 4, "input": list(items)} | fields


def count(*messages: Any, **fields: Any) -> dict[str, Any]:
    """Return a request for the number of tokens."""
    return {"model": "demo", "messages": list(messages)} | fields


PART = {"type": "input_image", "image_url": URL}
QUESTION = {"type": "input_text", "text": "What is in this image?"}
ANSWER = {"type": "output_text", "text": "A dot."}
ANTHROPIC_PICTURE = {
    "type": "image",
    "source": {"type": "base64", "media_type": "image/png", "data": URL.partition(",")[2]},
}

SERVED: dict[str, tuple[str, dict[str, Any]]] = {
    "max_completion_tokens": (CHAT, {"model": "demo", "messages": [said("x")], "max_completion_tokens": 4}),
    "content as a list": (CHAT, talk(said([{"type": "text", "text": "Be short."}], "system"), said("Hi"))),
    "a developer message": (CHAT, talk(said("Be short.", "developer"), said("Hi"))),
    "no model named": (CHAT, {"messages": [said("Hi")], "max_tokens": 4}),
    "a format of text": (CHAT, chat(response_format={"type": "text"})),
    "JSON, after another JSON": (CHAT, chat(response_format={"type": "json_object"})),
    "an empty bias": (CHAT, chat(logit_bias={})),
    "logprobs": (CHAT, chat(logprobs=True, top_logprobs=5)),
    "two choices in a stream": (CHAT, chat(stream=True, stream_options={"include_usage": True}, n=2)),
    "a tool's answer": (CHAT, talk(said("time?"), said(None, "assistant", tool_calls=[CALL]), said("12:00", "tool"))),
    "fields that vLLM ignores": (CHAT, chat(metadata={"a": "b"}, store=False, service_tier="auto", unknown_field=1)),
    "sampling": (CHAT, chat(stop=["\n"], frequency_penalty=0.1, repetition_penalty=1.05, min_p=0.05, top_k=-1)),
    "an image with detail": (CHAT, chat({"type": "image_url", "image_url": {"url": URL, "detail": "high"}})),
    "an image of another type": (CHAT, chat(image(URL.replace("image/png", "application/octet-stream")))),
    "parts of responses in a chat": (CHAT, talk(said([QUESTION, PART]))),
    "thinking": (CHAT, chat(chat_template_kwargs={"enable_thinking": True})),
    "two prompts, two choices": (COMPLETIONS, completion(prompt=["a", "b"], n=2, echo=True)),
    "token ids": (COMPLETIONS, completion(prompt=[2, 105, 9])),
    "a response": (RESPONSES, respond() | {"input": "Hello"}),
    "an image without detail": (RESPONSES, respond(said([QUESTION, PART]))),
    "an earlier answer": (RESPONSES, respond(said("x"), said([ANSWER, ANSWER], "assistant"), said("y"))),
    "an earlier answer, whole": (
        RESPONSES,
        respond(said("x"), said([ANSWER], "assistant", type="message", id="msg_1", status="completed"), said("y")),
    ),
    "an earlier answer without text": (RESPONSES, respond(said("x"), said([], "assistant", type="message"), said("y"))),
    "a tool's image": (
        RESPONSES,
        respond(
            said("x"),
            {"type": "function_call", "name": "f", "call_id": "c", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c", "output": "12:00"},
        ),
    ),
    "a system message for messages": (MESSAGES, talk(said("Hi"), system=[{"type": "text", "text": "Be short."}])),
    "tokens": (COUNT, count(said("Hi"))),
    "tokens of tools and an image": (
        COUNT,
        count(
            said([{"type": "text", "text": "Hi"}, ANTHROPIC_PICTURE]),
            tools=[{"name": "now", "input_schema": {"type": "object"}}],
            tool_choice={"type": "none"},
            system="Be short.",
        ),
    ),
}
REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "JSON that is off": (CHAT, chat(structured_outputs={"json_object": False}), "json_object: must be true"),
    "an empty schema": (CHAT, chat(structured_outputs={"json": ""}), "must be a JSON schema"),
    "a bias of a word": (CHAT, chat(logit_bias={"AI": -100}), "logit_bias must have token ids from 0 to 1023"),
    "fewer logprobs than none": (CHAT, chat(logprobs=True, top_logprobs=-1), "top_logprobs must be from 0 to 20"),
    "a budget of thinking": (CHAT, chat(thinking_token_budget=100), "thinking_token_budget is set but"),
    "no tools": (CHAT, chat(tools=[]), "`tools` must not be an empty array"),
    "no tokens": (CHAT, chat(max_tokens=0), "max_tokens must be from 1 to 2,147,483,647 (got 0)"),
    "greedy and two": (CHAT, chat(n=2, temperature=0), "n must be 1 when using greedy sampling"),
    "an image as a text": (CHAT, chat({"type": "image_url", "image_url": URL}), "messages[0].content[1].image_url: "),
    "an image as base64": (CHAT, chat(image(URL.partition(",")[2])), "'data:image/...;base64,...'"),
    "a line break in base64": (CHAT, chat(image(f"{URL}\n")), "An image is not valid base64, without line breaks"),
    "an image of the Internet": (
        CHAT,
        chat(image("https://example.org/x.jpg")),
        "must be sent in the request as 'data:",
    ),
    "four images": (CHAT, chat(*[PICTURE] * 4), "At most 3 image(s)"),
    "a part without a text": (CHAT, talk(said([{"type": "text"}])), "messages[0].content[0].text: Field required"),
    "a part in a tool's answer": (
        CHAT,
        talk(said("x"), said([{"type": "text"}], "tool", tool_call_id="c1")),
        "messages[1].content[0].text",
    ),
    "no content": (CHAT, talk(said(None)), "messages[0].content: Input should be a valid string or a valid list"),
    "a call of another kind": (
        CHAT,
        talk(said("x"), said(None, "assistant", tool_calls=[{"id": "c", "type": "custom", "custom": {}}])),
        "messages[1].tool_calls[0].function must be an object",
    ),
    "a call without arguments": (
        CHAT,
        talk(said("x"), said(None, "assistant", tool_calls=[{"id": "c", "type": "function", "function": {}}])),
        "messages[1].tool_calls[0].function.arguments: Field required",
    ),
    "a call of broken JSON": (
        CHAT,
        talk(said(None, "assistant", tool_calls=[CALL | {"function": {"name": "now", "arguments": "{"}}])),
        "messages[0].tool_calls[0].function.arguments: not valid JSON",
    ),
    "a tool of responses, by name": (
        CHAT,
        chat(
            tools=[{"type": "function", "name": "now"}], tool_choice={"type": "function", "function": {"name": "now"}}
        ),
        "tools[0].function must be an object",
    ),
    "a tool of chat, in responses": (RESPONSES, respond(said("x"), tools=[NOW]), "tools[0].name: Field required"),
    "tools that are a number": (RESPONSES, respond(said("x"), tools=5), "tools must be a list"),
    "no input": (RESPONSES, respond(), "input must have 1 to 2,048 entries (got 0)"),
    "a part of chat, in responses": (
        RESPONSES,
        respond(said([{"type": "text", "text": "x"}])),
        "input[0].content[0].type: Input should be 'input_text' or 'input_image'",
    ),
    "a role that is none": (RESPONSES, respond(said("x", "usr")), "input[0].role must be one of user, assistant"),
    "an item that is none": (
        RESPONSES,
        respond({"type": "input_text", "text": "x"}),
        "input[0].type must be",
    ),
    "a reference": (RESPONSES, respond({"type": "item_reference", "id": "x"}), "input[0].type must be one of message,"),
    "messages that are null": (CHAT, chat(messages=None), "messages must not be null"),
    "an empty text for messages": (MESSAGES, talk(said([{"type": "text", "text": ""}])), "at least one must have"),
    "no content for messages": (MESSAGES, talk(said([])), "messages: at least one must have content"),
    "a system message among messages": (
        MESSAGES,
        talk(said("x", "system")),
        "messages[0].role: Input should be 'user'",
    ),
    "a call without tools": (MESSAGES, talk(said("x"), tool_choice={"type": "any"}), "tool_choice: the request has no"),
    "tokens of nothing": (COUNT, count(), "messages must have 1 to 2,048 entries"),
    "tokens of a part without a type": (COUNT, count(said([{"text": "x"}])), "messages[0].content[0].type: Field req"),
    "tokens of a bad image": (
        COUNT,
        count(said([ANTHROPIC_PICTURE | {"source": {"type": "base64", "media_type": "image/png", "data": "!"}}])),
        "An image is not valid base64",
    ),
    "tokens with a template": (
        COUNT,
        count(said("x"), chat_template_kwargs={"chat_template": "x"}),
        "chat_template_kwargs",
    ),
}


@pytest.mark.parametrize(("path", "body"), SERVED.values(), ids=SERVED.keys())
def test_what_clients_send_is_served(engine: GuardedEngine, path: str, body: dict[str, Any]) -> None:
    """The engine serves the request."""
    answer = engine.request("POST", path, body)
    assert answer.status == 200, answer.data
    assert b'"error"' not in answer.data


@pytest.mark.parametrize(("path", "body", "words"), REFUSED.values(), ids=REFUSED.keys())
def test_what_is_wrong_is_said_in_words(engine: GuardedEngine, path: str, body: dict[str, Any], words: str) -> None:
    """The engine would refuse the request or fail; its client gets 400 and a line that names the field or the rule."""
    answer = engine.request("POST", path, body)
    message = answer.json()["error"]["message"]
    assert answer.status == 400, answer.data
    assert words in message
    assert "\n" not in message
    assert not [text for text in ("validation error", "pydantic", "could not be processed") if text in message]
    assert engine.request("GET", "/health").status == 200


def test_a_prompt_is_as_long_as_its_count(engine: GuardedEngine) -> None:
    """`count_tokens` gives what `/v1/messages` then uses, with an image too, and an unknown model is 404."""
    for content in ("Once upon a time", [{"type": "text", "text": "What?"}, ANTHROPIC_PICTURE]):
        counted = engine.request("POST", COUNT, count(said(content), system="Be short.")).json()
        used = engine.request("POST", MESSAGES, talk(said(content), system="Be short.")).json()["usage"]
        assert counted["input_tokens"] == used["input_tokens"] > 4
    missing = engine.request("POST", COUNT, count(said("x")) | {"model": "nope"})
    assert (missing.status, missing.json()["error"]["type"]) == (404, "not_found_error")
    assert engine.counters()["in_flight"] == 0


def test_all_of_an_earlier_answer_is_read(engine: GuardedEngine) -> None:
    """An answer in two parts gives the same prompt as in one: vLLM alone reads the first part only."""

    def prompt_tokens(*parts: str) -> int:
        answer = said([{"type": "output_text", "text": part, "annotations": []} for part in parts], "assistant")
        whole = answer | {"type": "message", "id": "msg_1", "status": "completed"}
        made = engine.request("POST", RESPONSES, respond(said("x"), whole, said("y")))
        return int(made.json()["usage"]["input_tokens"])

    assert prompt_tokens("once upon", " a time") == prompt_tokens("once upon a time") > prompt_tokens("once upon")


@pytest.mark.parametrize("header", ["authorization", "x-api-key"])
@pytest.mark.parametrize("path", ["/v1/models/demo", "/v1/models/%64emo"])
def test_one_model(engine: GuardedEngine, header: str, path: str) -> None:
    """The model's object is the one in the list, for both ways to send a key."""
    headers = {header: f"Bearer {engine.key}" if header == "authorization" else engine.key}
    model = engine.request("GET", path, key=False, headers=headers).json()
    (listed,) = engine.request("GET", "/v1/models").json()["data"]
    assert (model["id"], model["object"], model["max_model_len"]) == ("demo", "model", listed["max_model_len"])
    head = engine.request("HEAD", path, key=False, headers=headers)
    assert (head.status, head.data) == (200, b"")


@pytest.mark.parametrize(
    "name", ["nope", "google/gemma-4", "google%2Fgemma-4", "demo/", "demo%00", "../metrics", "Demo"]
)
def test_another_model_is_not_found(engine: GuardedEngine, name: str) -> None:
    """A name that is not served, with slashes too, is 404 in the API's shape."""
    answer = engine.raw(
        f"GET /v1/models/{name} HTTP/1.1\r\nHost: x\r\nX-Api-Key: {engine.key}\r\nConnection: close\r\n\r\n".encode()
    )
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 404 ")
    error = json.loads(body)["error"]
    assert (error["param"], error["code"]) == ("model", "model_not_found")


def test_a_stream_is_not_collected_by_nginx(engine: GuardedEngine) -> None:
    """nginx reads the header, and forwards each part of a stream when it arrives."""
    answer = engine.request("POST", CHAT, chat(stream=True))
    assert answer.headers["x-accel-buffering"] == "no"
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert [name for name in answer.headers if name.startswith("access-control-")] == []


def test_no_page_may_read_an_answer(engine: GuardedEngine) -> None:
    """vLLM's own CORS, which allows every page, is off."""
    origin = {"origin": "https://app.example.org"}
    for method, path in (("GET", "/health"), ("GET", "/v1/models"), ("OPTIONS", CHAT)):
        headers = engine.request(method, path, headers=origin).headers
        assert [name for name in headers if name.startswith("access-control-")] == []
