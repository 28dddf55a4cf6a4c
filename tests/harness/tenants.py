"""Mixed requests of several keys: streams, clients that leave, refusals, several choices, images. A seed draws them."""

import base64
import http.client
import json
import random
import struct
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

MARK = "SECRETMARK"
"""A word in every prompt; no log, metric or database may contain it."""
CHAT, COMPLETIONS, RESPONSES, MESSAGES = "/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"
Draw = Callable[[random.Random, str], tuple[str, dict[str, Any]]]


def picture(side: int) -> str:
    """Return a grey PNG as a data URL."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    rows = zlib.compress((b"\0" + b"\x80" * side) * side)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    return "data:image/png;base64," + base64.b64encode(data).decode()


def _chat(draw: random.Random, model: str, *parts: dict[str, Any], **fields: Any) -> tuple[str, dict[str, Any]]:
    text = {"type": "text", "text": " ".join([MARK, *draw.choices(["sea", "wind", "stone", "light", "river"], k=9)])}
    message = {"role": "user", "content": [text, *parts]}
    return CHAT, {"model": model, "messages": [message], "max_tokens": draw.randint(1, 24)} | fields


def _image(draw: random.Random, model: str) -> tuple[str, dict[str, Any]]:
    part = {"type": "image_url", "image_url": {"url": picture(draw.choice([32, 48, 64]))}}
    return _chat(draw, model, *[part] * draw.randint(1, 3), n=draw.choice([1, 2]))


def _completion(draw: random.Random, model: str, **fields: Any) -> tuple[str, dict[str, Any]]:
    return COMPLETIONS, {"model": model, "prompt": f"{MARK} 1 2 3", "max_tokens": draw.randint(1, 24)} | fields


def _response(draw: random.Random, model: str) -> tuple[str, dict[str, Any]]:
    return RESPONSES, {"model": model, "input": f"{MARK} x", "max_output_tokens": draw.randint(1, 8)}


def _message(draw: random.Random, model: str) -> tuple[str, dict[str, Any]]:
    body = {"model": model, "messages": [{"role": "user", "content": f"{MARK} y"}], "max_tokens": draw.randint(1, 8)}
    return MESSAGES, body


ANSWERED: dict[str, Draw] = {
    "chat": _chat,
    "stream": lambda draw, model: _chat(draw, model, stream=True),
    "stream with usage": lambda draw, model: _chat(draw, model, stream=True, stream_options={"include_usage": True}),
    "choices": lambda draw, model: _chat(draw, model, n=3),
    "streamed choices": lambda draw, model: _chat(draw, model, n=2, stream=True),
    "prompts": lambda draw, model: _completion(draw, model, prompt=[MARK, "b c", "d"], n=2),
    "stop": lambda draw, model: _completion(draw, model, stop=["a", "e", "1"], stream=draw.random() < 0.5),
    "logprobs": lambda draw, model: _completion(draw, model, logprobs=2, echo=True),
    "image": _image,
    "response": _response,
    "message": _message,
}
LEFT: dict[str, Draw] = {
    "left a stream": lambda draw, model: _chat(draw, model, stream=True, max_tokens=600, ignore_eos=True),
    "left choices": lambda draw, model: _chat(draw, model, stream=True, n=3, max_tokens=600, ignore_eos=True),
    "left an answer": lambda draw, model: _completion(draw, model, max_tokens=600, ignore_eos=True),
}
"""Long enough for the client to leave before the end."""
REFUSED: dict[str, Draw] = {
    "by the guard": lambda draw, model: _completion(draw, model, n=100_000),
    "by vLLM": lambda draw, model: _completion(draw, f"{model}-of-another"),
    "too long": lambda draw, model: _chat(draw, model, max_tokens=1_000_000),
}
KINDS = {**ANSWERED, **LEFT, **REFUSED}


def send_mixed(
    port: int,
    keys: Sequence[str],
    count: int,
    *,
    model: str,
    seed: int = 0,
    threads: int = 12,
    lost: tuple[type[Exception], ...] = (),
) -> dict[str, Counter[str]]:
    """Send `count` requests in turn over all kinds and keys; return the outcomes that each key must have.

    lost: errors of a connection after which a request's outcome is unknown.
    """
    draw = random.Random(seed)
    jobs = [(keys[number % len(keys)], list(KINDS)[number % len(KINDS)], draw.random()) for number in range(count)]
    draw.shuffle(jobs)
    outcomes: dict[str, Counter[str]] = {key: Counter() for key in keys}
    with ThreadPoolExecutor(threads) as pool:
        for key, outcome in pool.map(lambda job: _send(port, model, *job, lost=lost), jobs):
            outcomes[key][outcome] += 1
    return outcomes


def _send(
    port: int, model: str, key: str, kind: str, seed: float, *, lost: tuple[type[Exception], ...]
) -> tuple[str, str]:
    """Send one request; return its key and its outcome."""
    draw = random.Random(seed)
    path, body = KINDS[kind](draw, model)
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
    try:
        connection.request("POST", path, json.dumps(body), {"content-type": "application/json", "x-api-key": key})
        if kind in LEFT and not body.get("stream"):
            connection.sock.settimeout(draw.uniform(0.1, 0.4))
        try:
            answer = connection.getresponse()
            if kind in LEFT and answer.status < 400:
                answer.read(draw.randint(1, 400))
                return key, "cancelled"
            answer.read()
        except TimeoutError:
            return key, "cancelled"
    except lost:
        return key, "unknown"
    else:
        status = answer.status
        return key, "ok" if status < 400 else "refused" if status < 500 or status == 503 else "failed"
    finally:
        connection.close()
