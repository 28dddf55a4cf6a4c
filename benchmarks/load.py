"""Load on an endpoint: parallel streamed chat completions, each to its full length.

Not `vllm bench serve`: that spends eight seconds of CPU time before each round on importing vLLM, on the same two
cores. Here a round takes a few seconds, so that the two sides can alternate often.
"""

import asyncio
import json
import time
from dataclasses import dataclass
from typing import Protocol


class Target(Protocol):
    """What a load needs from an endpoint."""

    @property
    def url(self) -> str:
        """The base address."""

    @property
    def model(self) -> str:
        """The served model's name."""

    @property
    def key(self) -> str:
        """The clients' key; empty if authentication is off."""


@dataclass(frozen=True)
class Round:
    """The result of one round: the tokens generated and the seconds until the last stream ended."""

    tokens: int
    seconds: float

    @property
    def tokens_per_s(self) -> float:
        """Output tokens per second of all streams together."""
        return self.tokens / self.seconds


def run_round(endpoint: Target, *, streams: int, tokens: int) -> Round:
    """Run `streams` requests of `tokens` output tokens in parallel; raise ValueError if one is cut short."""
    return asyncio.run(_round(endpoint, streams, tokens))


async def _round(endpoint: Target, streams: int, tokens: int) -> Round:
    began = time.perf_counter()
    made = await asyncio.gather(*(_stream(endpoint, number, tokens) for number in range(streams)))
    seconds = time.perf_counter() - began
    if made != [tokens] * streams:
        raise ValueError(f"asked for {tokens} tokens in each of {streams} streams, got {made}")
    return Round(sum(made), seconds)


async def _stream(endpoint: Target, number: int, tokens: int) -> int:
    """Send one request on a new connection; return the number of tokens that the engine reports."""
    host, _, port = endpoint.url.removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(_request(endpoint, host, number, tokens))
    answer = await reader.read(-1)
    writer.close()
    head, _, body = answer.partition(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 200") or b"data: [DONE]" not in body:
        raise ValueError(answer[:500].decode(errors="replace"))
    # The last event before [DONE] has the usage; it is short enough that chunked encoding never splits it.
    usage = body[body.rindex(b'data: {"id"') :].partition(b"data: ")[2].partition(b"\n")[0]
    return int(json.loads(usage)["usage"]["completion_tokens"])


def _request(endpoint: Target, host: str, number: int, tokens: int) -> bytes:
    body = json.dumps(
        {
            "model": endpoint.model,
            # The number comes first, so that no two streams share a cached prefix.
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
