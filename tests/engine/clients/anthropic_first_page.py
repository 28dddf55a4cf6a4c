"""Anthropic's Python library: the examples of its README on messages, streams and tools."""

import os

from anthropic import Anthropic

SHORT, FORCED = ({"model": os.environ["MODEL"], "max_tokens": most} for most in (40, 1000))
MESSAGES = [{"role": "user", "content": "Hello, Claude"}]
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 20}, "unit": {"enum": ["celsius", "fahrenheit"]}},
    "required": ["city", "unit"],
    "additionalProperties": False,
}
TOOLS = [{"name": "weather", "description": "The weather of a city", "input_schema": SCHEMA}]

client = Anthropic()

message = client.messages.create(**SHORT, messages=MESSAGES)
assert message.content[0].text and message.usage.output_tokens > 0
print("messages")

with client.messages.stream(**SHORT, messages=MESSAGES) as stream:
    text = "".join(stream.text_stream)
    assert text and stream.get_final_message().content[0].text == text
print("messages stream")

for choice in ({"type": "tool", "name": "weather"}, {"type": "any"}):
    called = client.messages.create(**FORCED, messages=MESSAGES, tools=TOOLS, tool_choice=choice)
    with client.messages.stream(**FORCED, messages=MESSAGES, tools=TOOLS, tool_choice=choice) as stream:
        streamed = stream.get_final_message()
    for each in (called, streamed):
        assert each.content[0].type == "tool_use" and set(each.content[0].input) == {"city", "unit"}
print("forced tools, whole and streamed")

use = called.content[0]
history = [
    *MESSAGES,
    {"role": "assistant", "content": [use.model_dump()]},
    {"role": "user", "content": [{"type": "tool_result", "tool_use_id": use.id, "content": "sunny"}]},
]
assert client.messages.create(**SHORT, messages=history, tools=TOOLS).content
print("a tool's answer")

assert client.messages.count_tokens(model=SHORT["model"], messages=MESSAGES).input_tokens > 0
print("count_tokens")
