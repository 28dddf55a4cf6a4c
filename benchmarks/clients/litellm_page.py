"""LiteLLM's first page: completion, stream, tools, and the Responses route, at an OpenAI-compatible address."""

import json
import os

import litellm

ASKED = {
    "model": f"openai/{os.environ['MODEL']}",
    "api_base": os.environ["OPENAI_BASE_URL"],
    "messages": [{"role": "user", "content": "Hello, how are you?"}],
}
KEYS = {"type": "object", "properties": {"day": {"enum": ["today", "tomorrow"]}}, "required": ["day"]}
TOOL = {"name": "weather", "parameters": KEYS | {"additionalProperties": False}}

assert litellm.completion(**ASKED, max_tokens=40).choices[0].message.content
print("completion")
assert "".join(
    chunk.choices[0].delta.content or "" for chunk in litellm.completion(**ASKED, max_tokens=40, stream=True)
)
print("stream")
forced = {
    "tools": [{"type": "function", "function": TOOL}],
    "tool_choice": {"type": "function", "function": {"name": "weather"}},
    "max_tokens": 1000,
    "temperature": 1,
    "seed": 1,
}
(call,) = litellm.completion(**ASKED, **forced).choices[0].message.tool_calls
assert set(json.loads(call.function.arguments)) == {"day"}
arguments = ""
for chunk in litellm.completion(**ASKED, **forced, stream=True):
    for delta in chunk.choices[0].delta.tool_calls or []:
        arguments += delta.function.arguments or ""
assert set(json.loads(arguments)) == {"day"}
print("forced tools, whole and streamed")
response = litellm.responses(model=ASKED["model"], api_base=ASKED["api_base"], input="Hello", max_output_tokens=40)
assert response.output
print("responses")
