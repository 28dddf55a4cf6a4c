"""A greedy stream that runs beside other requests, and a check that they did not change it.

Batches of another shape round differently, so two greedy streams may diverge where two tokens are almost equally
likely. Hence three baselines, each beside as many plain requests, and two checks that rounding does not affect: every
token is the likeliest one by the stream's own logits, and at least one baseline has no divergence except at a near tie.
"""

import http.client
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from tests.engine.killers.case import COMPLETIONS, Target, completion

TOKENS = 96
EVEN = 0.5
"""Logits of a BF16 model have steps of 1/16 to 1/8; another batch shape shifts them by a few steps."""


@dataclass(frozen=True)
class Token:
    """A streamed token: its name, its log probability, and those of the likeliest tokens."""

    name: str
    likely: float
    best: dict[str, float]
    after_s: float
    """Seconds since the previous token, or since the request."""


@dataclass
class Stream:
    """The streams that ran one after the other beside something else."""

    runs: list[list[Token]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def stream_once(target: Target, tokens: int = TOKENS) -> list[Token]:
    """Return the tokens of one greedy stream; raises OSError or ValueError if it is incomplete."""
    body = completion(
        "The sea and the",
        model=target.model,
        max_tokens=tokens,
        temperature=0,
        ignore_eos=True,
        stream=True,
        logprobs=4,
        return_tokens_as_token_ids=True,
    )
    began = time.monotonic()
    connection = http.client.HTTPConnection("127.0.0.1", target.port, timeout=120)
    try:
        headers = {"Authorization": f"Bearer {target.key}", "Content-Type": "application/json"}
        connection.request("POST", COMPLETIONS, json.dumps(body), headers)
        answer = connection.getresponse()
        lines = [(time.monotonic(), line) for line in answer]
    except http.client.HTTPException as error:
        raise OSError(repr(error)) from error
    finally:
        connection.close()
    events = [(when, line[6:].strip()) for when, line in lines if line.startswith(b"data: ")]
    if answer.status != 200 or not events or events[-1][1] != b"[DONE]":
        raise ValueError(f"status {answer.status}, {len(events)} events, at the end {lines[-3:]}")
    said = []
    for when, event in events[:-1]:
        if b'"choices"' not in event:
            raise ValueError(f"an event without a token: {event!r}")
        said += _tokens(json.loads(event), when - began)
        began = when
    if len(said) != tokens:
        raise ValueError(f"{len(said)} tokens of {tokens}")
    return said


@contextmanager
def streaming(target: Target) -> Iterator[Stream]:
    """Stream again and again until the end of the block; read the last stream to its end."""
    stream, over, started = Stream(), threading.Event(), threading.Event()

    def run() -> None:
        while not (over.is_set() or stream.problems):
            started.set()
            try:
                stream.runs.append(stream_once(target))
            except (OSError, ValueError) as error:
                stream.problems.append(f"the stream beside it was not whole: {error}")

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    started.wait()
    try:
        yield stream
    finally:
        over.set()
        thread.join()


def slowest_s(runs: list[list[Token]]) -> float:
    """Return the longest time that a stream waited for a token."""
    return max((token.after_s for run in runs for token in run), default=0.0)


def compare(runs: list[list[Token]], baselines: list[list[Token]]) -> list[str]:
    """Return the signs that something else affected these streams."""
    wrong = []
    for number, run in enumerate(runs):
        wrong += [f"stream {number}: {each}" for each in _unlikely(run)]
        parted = [_parted(run, baseline) for baseline in baselines]
        if all(parted):
            wrong.append(f"stream {number} is none of the baselines: {'; '.join(parted)}")
    return wrong


def _unlikely(run: list[Token]) -> list[str]:
    """Return where a greedy stream did not take the likeliest token, as with a mask left over from another request."""
    return [
        f"token {place} is {token.name} ({token.likely:.2f}), not {max(token.best, key=token.best.__getitem__)}"
        for place, token in enumerate(run)
        if max(token.best.values()) - token.likely > EVEN
    ]


def _parted(run: list[Token], baseline: list[Token]) -> str:
    """Return where a stream left a baseline although the baseline had a clear choice; empty if it did not."""
    for place, (token, was) in enumerate(zip(run, baseline, strict=True)):
        if token.name == was.name:
            continue
        gap = was.likely - was.best.get(token.name, float("-inf"))
        return "" if gap <= EVEN else f"at {place}: {token.name} for {was.name}, worse by {gap:.2f}"
    return ""


def _tokens(event: dict[str, Any], after_s: float) -> list[Token]:
    tokens = []
    for choice in event["choices"]:
        told = choice["logprobs"]
        for name, likely, best in zip(told["tokens"], told["token_logprobs"], told["top_logprobs"], strict=True):
            tokens.append(Token(name, likely, best, after_s))
    return tokens
