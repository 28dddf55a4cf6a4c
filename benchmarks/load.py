"""Load on an endpoint: a number of streamed chat completions at once, each to its full length.

Not `vllm bench serve`: that imports vLLM for eight seconds of processor time before each round, on the same two
cores. Here a round is a few seconds and the two sides can take many turns.
"""

import asyncio
import json
import time
from dataclasses import dataclass
from typing import Protocol


class Target(Protocol):
    """What a load must know of an endpoint."""

    @property
    def url(self) -> str:
        """The base address."""

    @property
    def model(self) -> str:
        """The served name."""

    @property
    def key(self) -> str:
        """The clients' key; empty where the server asks for none."""


@dataclass(frozen=True)
class Round:
    """What one round gave: tokens made and the seconds all its streams took together."""

    tokens: int
    seconds: float

    @property
    def tokens_per_s(self) -> float:
        """Output tokens per second of all streams together."""
        return self.tokens / self.seconds


def run_round(endpoint: Target, *, streams: int, tokens: int) -> Round:
    """Let `streams` requests of `tokens` output tokens run at once; raise ValueError where one is cut short."""
    return asyncio.run(_round(endpoint, streams, tokens))


async def _round(endpoint: Target, streams: int, tokens: int) -> Round:
    began = time.perf_counter()
    made = await asyncio.gather(*(_stream(endpoint, number, tokens) for number in range(streams)))
    seconds = time.perf_counter() - began
    if made != [tokens] * streams:
        raise ValueError(f"asked for {tokens} tokens in each of {streams} streams, got {made}")
    return Round(sum(made), seconds)


async def _stream(endpoint: Target, number: int, tokens: int) -> int:
    """Send one request on a connection of its own; return how many tokens the engine says it made."""
    host, _, port = endpoint.url.removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(_request(endpoint, host, number, tokens))
    answer = await reader.read(-1)
    writer.close()
    head, _, body = answer.partition(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 200") or b"data: [DONE]" not in body:
        raise ValueError(answer[:500].decode(errors="replace"))
    # The last event before [DONE] carries the usage; it is short enough never to be cut by the chunked encoding.
    usage = body[body.rindex(b'data: {"id"') :].partition(b"data: ")[2].partition(b"\n")[0]
    return int(json.loads(usage)["usage"]["completion_tokens"])


def _request(endpoint: Target, host: str, number: int, tokens: int) -> bytes:
    body = json.dumps(
        {
            "model": endpoint.model,
            # The number stands first: no two streams share a cached beginning.
            "messages": [{"role": "user", "content": f"{number}: describe the sea in many words."}],
            "max_tokens": tokens,
            "ignore_eos": True,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
    )
    key = f"Authorization: Bearer {endpoint.key}\r\n" if endpoint.key else ""
    return (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n{key}"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n{body}"
    ).encode()
