"""A greedy stream that runs beside other requests, and whether it was what it would have been without them.

Batches of another shape round differently, so two greedy streams may part where two words are as good as even.
Hence three baselines, each beside as many plain requests, and two questions that rounding does not touch: was every
token the likeliest one by the stream's own logits, and did it part from every baseline where they were not even?
"""

import http.client
import json
import threading
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
    connection = http.client.HTTPConnection("127.0.0.1", target.port, timeout=120)
    try:
        headers = {"Authorization": f"Bearer {target.key}", "Content-Type": "application/json"}
        connection.request("POST", COMPLETIONS, json.dumps(body), headers)
        answer = connection.getresponse()
        lines = list(answer)
    except http.client.HTTPException as error:
        raise OSError(repr(error)) from error
    finally:
        connection.close()
    events = [line[6:].strip() for line in lines if line.startswith(b"data: ")]
    if answer.status != 200 or events[-1:] != [b"[DONE]"]:
        raise ValueError(f"status {answer.status}, {len(events)} events, at the end {lines[-3:]}")
    if broken := [event for event in events[:-1] if b'"choices"' not in event]:
        raise ValueError(f"an event without a token: {broken[0]!r}")
    said = [token for event in events[:-1] for token in _tokens(json.loads(event))]
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


def _tokens(event: dict[str, Any]) -> list[Token]:
    tokens = []
    for choice in event["choices"]:
        told = choice["logprobs"]
        for name, likely, best in zip(told["tokens"], told["token_logprobs"], told["top_logprobs"], strict=True):
            tokens.append(Token(name, likely, best))
    return tokens
