"""What the soak's clients send: good requests, mistakes, attacks and hang-ups, each with the expected answers."""

import base64
import json
import random
import struct
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

CHAT = "/v1/chat/completions"
OVERSIZED_BYTES = 33 * 1024**2
_PIECE_BYTES = 1024**2


class HangUp(StrEnum):
    """When a client disconnects before the end."""

    NEVER = "never"
    IN_THE_BODY = "in the body"
    BEFORE_THE_ANSWER = "before the answer"
    IN_THE_STREAM = "in the stream"


@dataclass(frozen=True)
class Kind:
    """One kind of request."""

    name: str
    weight: int
    """How often it is sent, beside the others."""
    make: Callable[[random.Random, str, str], bytes]
    """Makes the request from a source of chance, the model's name and the key."""
    statuses: frozenset[int] = frozenset({200})
    """What it may be answered; 0 stands for a closed connection."""
    hang_up: HangUp = HangUp.NEVER
    streamed: bool = False


def chat(chance: random.Random, model: str, key: str, *, images: int = 0, **fields: Any) -> bytes:
    """Return a chat completion of a random length."""
    words = " ".join(chance.choice(("sea", "wind", "stone", "light")) for _ in range(chance.randint(1, 60)))
    content: list[dict[str, Any]] = [{"type": "text", "text": words}]
    content += [{"type": "image_url", "image_url": {"url": picture(chance)}} for _ in range(images)]
    body = {
        "model": model,
        "messages": [{"role": "user", "content": content}],
        "max_tokens": chance.randint(1, 48),
        "ignore_eos": True,
    }
    return request(json.dumps(body | fields).encode(), key)


def request(body: bytes, key: str, *, path: str = CHAT, length: int | None = None) -> bytes:
    """Return one POST; `length` is its Content-Length header, if that differs from the body's length."""
    head = (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nAuthorization: Bearer {key}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body) if length is None else length}\r\n\r\n"
    )
    return head.encode() + body


def picture(chance: random.Random) -> str:
    """Return a small PNG of one random grey as a data URL."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    rows = (b"\0" + bytes([chance.randrange(256)]) * 64) * 48
    body = chunk(b"IHDR", struct.pack(">IIBBBBB", 64, 48, 8, 0, 0, 0, 0)) + chunk(b"IDAT", zlib.compress(rows))
    encoded = base64.b64encode(b"\x89PNG\r\n\x1a\n" + body + chunk(b"IEND", b"")).decode()
    return f"data:image/png;base64,{encoded}"


def _oversized_chunked(_: random.Random, __: str, key: str) -> bytes:
    head = request(b"", key).replace(b"Content-Length: 0", b"Transfer-Encoding: chunked")
    piece = b"%x\r\n%b\r\n" % (_PIECE_BYTES, b" " * _PIECE_BYTES)
    return head + piece * (OVERSIZED_BYTES // _PIECE_BYTES) + b"0\r\n\r\n"


def _stream(chance: random.Random, model: str, key: str, **fields: Any) -> bytes:
    return chat(chance, model, key, stream=True, **fields)


_REFUSED: Mapping[str, frozenset[int]] = {
    "mistake": frozenset({400, 422}),
    "size": frozenset({413}),
    "key": frozenset({401}),
    "route": frozenset({404}),
}

KINDS = (
    Kind("chat", 20, chat),
    Kind("stream", 20, _stream, streamed=True),
    Kind("chat with 1 to 3 images", 8, lambda c, m, k: chat(c, m, k, images=c.randint(1, 3))),
    Kind("stream, hangs up in it", 12, lambda c, m, k: _stream(c, m, k, max_tokens=200), hang_up=HangUp.IN_THE_STREAM),
    Kind("chat, hangs up before the answer", 8, chat, hang_up=HangUp.BEFORE_THE_ANSWER),
    Kind("chat, hangs up in the body", 4, chat, hang_up=HangUp.IN_THE_BODY),
    Kind("not JSON", 4, lambda _, __, k: request(b'{"model": "x", "messages": [', k), _REFUSED["mistake"]),
    Kind("not UTF-8", 2, lambda _, __, k: request(b"\xff\xfe\x00" * 50, k), _REFUSED["mistake"]),
    Kind("wrong types", 4, lambda c, m, k: chat(c, m, k, messages=17), _REFUSED["mistake"]),
    Kind("prompt too long", 1, lambda c, m, k: chat(c, m, k, max_tokens=10**6), _REFUSED["mistake"]),
    Kind("4 images", 2, lambda c, m, k: chat(c, m, k, images=4), _REFUSED["mistake"]),
    Kind("unknown model", 2, lambda c, _, k: chat(c, "gpt-4", k), _REFUSED["route"]),
    Kind("body too large, announced", 3, lambda _, __, k: request(b"{", k, length=OVERSIZED_BYTES), _REFUSED["size"]),
    # The server answers and closes while the client still sends: TCP may lose the answer.
    Kind("body too large, chunked", 1, _oversized_chunked, _REFUSED["size"] | {0}),
    Kind("wrong key", 4, lambda c, m, _: chat(c, m, "sk-wrong"), _REFUSED["key"]),
    Kind("route that does not exist", 2, lambda _, __, k: request(b"{}", k, path="/invocations"), _REFUSED["route"]),
)
