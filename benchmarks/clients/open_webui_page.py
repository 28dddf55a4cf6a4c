"""The requests that Open WebUI makes of an OpenAI-compatible server, as its `routers/openai.py` makes them.

The package itself installs some 270 others. It lists the models, streams a chat with usage, asks for a title, for tags
and for what to ask next with `stream: false`, and sends images as data: URLs.
"""

import base64
import json
import os
import urllib.request

PNG = base64.b64encode(
    bytes.fromhex(
        "89504e470d0a1a0a0000000d494844520000000100000001080600000"
        "01f15c4890000000d49444154789c6364f8cf500f000386018"
        "05a34 7d6a0000000049454e44ae426082".replace(" ", "")
    )
).decode()


def ask(path: str, body: dict | None = None) -> bytes:
    """Return the answer to one request."""
    headers = {"Authorization": f"Bearer {os.environ['OPENAI_API_KEY']}", "Content-Type": "application/json"}
    data = json.dumps(body).encode() if body else None
    request = urllib.request.Request(os.environ["OPENAI_BASE_URL"] + path, data, headers)
    with urllib.request.urlopen(request, timeout=120) as answer:
        return answer.read()


model = json.loads(ask("/models"))["data"][0]["id"]
print("models")
question = {"role": "user", "content": "Hello"}
streamed = ask(
    "/chat/completions",
    {
        "model": model,
        "stream": True,
        "stream_options": {"include_usage": True},
        "messages": [{"role": "system", "content": "Be brief."}, question],
        "max_tokens": 40,
    },
)
events = [line[6:] for line in streamed.decode().splitlines() if line.startswith("data: ")]
assert events[-1] == "[DONE]"
assert json.loads(events[-2])["usage"]["completion_tokens"] > 0
print("chat with stream_options")
for max_name in ("max_tokens", "max_completion_tokens"):
    title = ask("/chat/completions", {"model": model, "stream": False, "messages": [question], max_name: 40})
    assert json.loads(title)["choices"][0]["message"]["content"]
print("title, tags and follow-ups")
image = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG}"}}
parts = [{"type": "text", "text": "What is this?"}, image]
seen = ask("/chat/completions", {"model": model, "messages": [{"role": "user", "content": parts}], "max_tokens": 10})
assert json.loads(seen)["choices"][0]["message"]["content"]
print("image")
