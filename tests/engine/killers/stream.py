"""A greedy stream that runs beside other requests, and whether it was what it would have been without them.

Batches of another shape round differently, so two greedy streams may part where two words are as good as even.
Hence three baselines, each beside as many plain requests, and two questions that rounding does not touch: was every
token the likeliest one by the stream's own logits, and did it part from every baseline where they were not even?
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
"""Logits of a BF16 model come in steps of 1/16 to 1/8; batches of another shape move them by a few of them."""


@dataclass(frozen=True)
class Token:
    """A token as it was streamed: which, how likely, and the likeliest there were (logarithms)."""

    name: str
    likely: float
    best: dict[str, float]
    after_s: float
    """Since the token before it, or since the request."""


@dataclass
class Stream:
    """The streams that ran one after the other while something else went on."""

    runs: list[list[Token]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def stream_once(target: Target, tokens: int = TOKENS) -> list[Token]:
    """Return the tokens of one greedy stream. Raises OSError or ValueError where it is not whole."""
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
    """Stream again and again until the end of the block; the last one is read to its end."""
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
    """Return the longest that a stream waited for a token."""
    return max((token.after_s for run in runs for token in run), default=0.0)


def compare(runs: list[list[Token]], baselines: list[list[Token]]) -> list[str]:
    """Return what shows that something else reached into these streams."""
    wrong = []
    for number, run in enumerate(runs):
        wrong += [f"stream {number}: {each}" for each in _unlikely(run)]
        parted = [_parted(run, baseline) for baseline in baselines]
        if all(parted):
            wrong.append(f"stream {number} is none of the baselines: {'; '.join(parted)}")
    return wrong


def _unlikely(run: list[Token]) -> list[str]:
    """Tell where a greedy stream did not take the likeliest token, which a mask left by another request makes."""
    return [
        f"token {place} is {token.name} ({token.likely:.2f}), not {max(token.best, key=token.best.__getitem__)}"
        for place, token in enumerate(run)
        if max(token.best.values()) - token.likely > EVEN
    ]


def _parted(run: list[Token], baseline: list[Token]) -> str:
    """Tell where a stream left a baseline though the baseline was sure; empty where it did not."""
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
