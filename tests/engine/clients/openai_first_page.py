"""OpenAI's Python library: the examples of its README, and of the pages on tools and structured outputs."""

import json
import os

from openai import OpenAI
from pydantic import BaseModel, Field

MODEL = os.environ["MODEL"]
SHORT = {"model": MODEL, "max_tokens": 40}
FORCED = {"model": MODEL, "max_tokens": 1000, "temperature": 1, "seed": 1}
MESSAGES = [{"role": "user", "content": "What is the weather in Paris?"}]
PARAMETERS = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 20}, "unit": {"enum": ["celsius", "fahrenheit"]}},
    "required": ["city", "unit"],
    "additionalProperties": False,
}
TOOL = {"name": "weather", "description": "The weather of a city", "parameters": PARAMETERS, "strict": True}
TOOLS = [{"type": "function", "function": TOOL}]
PNG = (
    "data:image/png;base64,"
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)


class Person(BaseModel, extra="forbid"):
    """Random weights end nothing by themselves, so texts have a limit here, and objects no other keys."""

    name: str = Field(max_length=20)
    age: int = Field(ge=0, le=99)


client = OpenAI()

assert MODEL in [model.id for model in client.models.list()]
assert client.models.retrieve(MODEL).id == MODEL
print("models")

answer = client.chat.completions.create(**SHORT, messages=MESSAGES).choices[0]
assert answer.message.content and answer.message.tool_calls in (None, [])
print("chat")

stream = client.chat.completions.create(**SHORT, messages=MESSAGES, stream=True, stream_options={"include_usage": True})
chunks = list(stream)
text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
assert text and chunks[-1].usage.completion_tokens > 0
print("chat stream")

free = client.chat.completions.create(**SHORT, messages=MESSAGES, tools=TOOLS).choices[0]
assert free.message.content or free.message.tool_calls
print("tools")

for choice in ({"type": "function", "function": {"name": "weather"}}, "required"):
    forced = {"messages": MESSAGES, "tools": TOOLS, "tool_choice": choice}
    whole = client.chat.completions.create(**FORCED, **forced).choices[0]
    called = whole.message.tool_calls[0].function
    assert called.name == "weather" and set(json.loads(called.arguments)) == {"city", "unit"}
    with client.chat.completions.stream(**FORCED, **forced) as events:
        done = [event.arguments for event in events if event.type == "tool_calls.function.arguments.done"]
    assert done[0] == called.arguments, (done, called)
print("forced tools, whole and streamed")

call = whole.message.tool_calls[0]
history = [
    *MESSAGES,
    {"role": "assistant", "tool_calls": [call.model_dump()]},
    {"role": "tool", "tool_call_id": call.id, "content": "sunny"},
]
assert client.chat.completions.create(**SHORT, messages=history, tools=TOOLS).choices[0].message is not None
print("a tool's answer")

person = client.chat.completions.parse(**FORCED, messages=MESSAGES, response_format=Person).choices[0].message.parsed
assert isinstance(person, Person)
print("structured output")

few, many = ({"model": MODEL, "max_output_tokens": most} for most in (40, 1000))
response = client.responses.create(**few, instructions="You are a coding assistant.", input="Hello")
assert response.output_text
print("responses")

part = {"type": "input_image", "image_url": PNG}
looked = [{"role": "user", "content": [{"type": "input_text", "text": "What is in this image?"}, part]}]
assert client.responses.create(**few, input=looked).output_text
print("responses with an image")

types = [event.type for event in client.responses.create(**few, input="Hello", stream=True)]
assert types[0] == "response.created" and types[-1] == "response.completed" and "response.output_text.delta" in types
print("responses stream")

flat = {"tools": [{"type": "function", **TOOL}], "tool_choice": {"type": "function", "name": "weather"}}
(item,) = client.responses.create(**many, input="Hello", **flat).output
assert item.type == "function_call" and set(json.loads(item.arguments)) == {"city", "unit"}
arguments = ""
for event in client.responses.create(**many, input="Hello", **flat, stream=True):
    if event.type == "response.function_call_arguments.delta":
        arguments += event.delta
assert set(json.loads(arguments)) == {"city", "unit"}
print("responses tools, whole and streamed")

parsed = client.responses.parse(**many, input="Hello", text_format=Person).output_parsed
assert isinstance(parsed, Person)
print("responses structured output")
