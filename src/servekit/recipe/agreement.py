"""How far a compressed model's next words are from its base's, through their endpoints: no data set is needed.

`record` lets the base answer each prompt greedily, and asks for the 20 most likely next words after each beginning of
the answer. `compare` asks another endpoint after the same beginnings (teacher-forced). The divergence is of
distributions over the base's words and one class for all others.
"""

import json
import math
import statistics
import struct
import zlib
from base64 import b64encode
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import urllib3

from servekit.errors import ConfigurationError, Finding

WORDS: Final = 20
"""vLLM's limit, and the guard's."""
BOUND_NATS: Final = 0.05
_AT_ONCE: Final = 8
_TIMEOUT_S: Final = 300.0
_TEXTS: Final = (
    "Explain in two sentences why the sky is blue.",
    "Write a short letter to a neighbour about a lost cat.",
    "What is 17 times 23? Show how you compute it.",
    "Name three rivers of Europe and a city on each.",
    "Describe the steps to change a bicycle tyre.",
    "Translate into German: The train leaves at eight in the morning.",
    "Write a Python function that returns the n-th Fibonacci number.",
    "What should I think about before I adopt a dog?",
)
_PICTURES: Final = ((200, 30, 30), (30, 30, 200))
"""Colours of the plain pictures that the base describes if no prompts are given."""

Distribution = Mapping[str, float]
"""Log probabilities by word."""


@dataclass(frozen=True)
class Endpoint:
    """An OpenAI-compatible endpoint that serves one model."""

    url: str
    key: str = ""

    def ask(self, **body: Any) -> dict[str, Any]:
        """Return the answer to a chat request. Raises ConfigurationError."""
        return self._query("POST", "/v1/chat/completions", {"model": self.model(), "temperature": 0, **body})

    def model(self) -> str:
        """Return the name of the model that is served."""
        return str(self._query("GET", "/v1/models")["data"][0]["id"])

    def _query(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        headers = {"Authorization": f"Bearer {self.key}", "Content-Type": "application/json"}
        content = json.dumps(body) if body is not None else None
        try:
            answer = urllib3.request(
                method, f"{self.url}{path}", body=content, headers=headers, timeout=_TIMEOUT_S, retries=False
            )
            said: Any = answer.json()
        except (urllib3.exceptions.HTTPError, ValueError) as error:
            raise _problem(self.url, str(error)) from error
        if answer.status != 200 or not isinstance(said, dict):  # noqa: PLR2004 - HTTP's OK
            raise _problem(self.url, f"status {answer.status}: {str(said)[:300]}")
        return said


@dataclass(frozen=True)
class Agreement:
    """What `compare` found, over all positions of all answers."""

    positions: int
    divergence_nats: float
    worst_nats: float
    """The 99th percentile of the divergence at one position."""
    top1: float
    """Share of positions with the same most likely word."""
    merged: float
    """Mean probability of the base's words that are not among the other's 20: they count as one with the rest."""
    tokens: float
    """Tokens of the other's own answers, mean."""
    base_tokens: float

    def text(self, bound: float) -> str:
        """Return the figures for people."""
        verdict = "within" if self.divergence_nats <= bound else "above"
        return (
            f"KL divergence  {self.divergence_nats:.4f} nats mean over {self.positions} positions ({verdict} "
            f"{bound:g}), {self.worst_nats:.4f} at the 99th percentile\n"
            f"top-1          {self.top1:.1%} of positions have the same most likely word\n"
            f"merged         {self.merged:.2%} of the base's probability is of words that the other's list lacks\n"
            f"tokens         {self.tokens:.0f} per answer, the base's {self.base_tokens:.0f}"
        )


def record(endpoint: Endpoint, prompts: Sequence[list[dict[str, Any]]], *, positions: int, max_tokens: int) -> Any:
    """Return the base's answers, and its next words after each of their first `positions` beginnings."""
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        answers = list(pool.map(lambda each: _answer(endpoint, each, max_tokens), prompts))
        cases: list[dict[str, Any]] = [
            {"messages": prompt, "tokens": len(words), "beginnings": _beginnings(words[:positions])}
            for prompt, words in zip(prompts, answers, strict=True)
        ]
        for case in cases:
            case["words"] = list(pool.map(lambda text, of=case: _next_words(endpoint, of, text), case["beginnings"]))
    return {"model": endpoint.model(), "max_tokens": max_tokens, "cases": cases}


def compare(endpoint: Endpoint, base: Mapping[str, Any]) -> Agreement:
    """Ask after the same beginnings, and compare with what `record` returned."""
    divergences: list[float] = []
    same, merged, lengths = 0, 0.0, []
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        for case in base["cases"]:
            found = pool.map(lambda text, of=case: _next_words(endpoint, of, text), case["beginnings"])
            for mine, theirs in zip(found, case["words"], strict=True):
                divergences.append(divergence(theirs, mine))
                same += max(mine, key=mine.__getitem__) == max(theirs, key=theirs.__getitem__)
                merged += sum(math.exp(theirs[word]) for word in theirs.keys() - mine.keys())
            lengths.append(len(_answer(endpoint, case["messages"], base["max_tokens"])))
    count = len(divergences)
    return Agreement(
        positions=count,
        divergence_nats=statistics.fmean(divergences),
        worst_nats=sorted(divergences)[min(count - 1, int(0.99 * count))],
        top1=same / count,
        merged=merged / count,
        tokens=statistics.fmean(lengths),
        base_tokens=statistics.fmean(case["tokens"] for case in base["cases"]),
    )


def divergence(base: Distribution, other: Distribution) -> float:
    """Return KL(base || other) in nats, over the words of both lists and one class for all other words.

    A word of the base that the other's list lacks is in that class too, so the result is a lower bound of the whole
    divergence (data processing inequality).
    """
    common = [(base[word], other[word]) for word in base.keys() & other.keys()]
    whole = sum(math.exp(mine) * (mine - theirs) for mine, theirs in common)
    rest, other_rest = (max(1 - sum(math.exp(pair[side]) for pair in common), 1e-9) for side in (0, 1))
    return max(0.0, whole + rest * math.log(rest / other_rest))


def read_base(path: Path) -> Any:
    """Return what `record` returned, from a file. Raises ConfigurationError."""
    try:
        base = json.loads(path.read_text(encoding="utf-8"))
        needed = {"messages", "tokens", "beginnings", "words"}
        whole = "max_tokens" in base and base["cases"] and all(needed <= each.keys() for each in base["cases"])
    except (ValueError, LookupError, TypeError, AttributeError):
        whole = False
    if not whole:
        remedy = "name a file that `servekit eval agreement --record` wrote"
        raise ConfigurationError([Finding("is no record of a base", file=str(path), remedy=remedy)])
    return base


def read_prompts(path: Path | None) -> list[list[dict[str, Any]]]:
    """Return the prompts of a JSONL file with `messages`, or servekit's own. Raises ConfigurationError."""
    if path is None:
        return [*([{"role": "user", "content": text}] for text in _TEXTS), *map(_about_picture, _PICTURES)]
    prompts = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            messages = json.loads(line)["messages"]
            prompts.append([each for each in messages if each["role"] != "assistant"][:2])
        except (ValueError, LookupError, TypeError) as error:
            remedy = 'write {"messages": [{"role": "user", "content": "..."}]}'
            raise ConfigurationError(
                [Finding(f"not a row with messages: {error}", file=str(path), line=number, remedy=remedy)]
            ) from error
    if not prompts:
        raise ConfigurationError([Finding("has no prompts", file=str(path), remedy="write a row with messages")])
    return prompts


def _answer(endpoint: Endpoint, messages: Any, max_tokens: int) -> list[str]:
    answer = endpoint.ask(messages=messages, max_tokens=max_tokens, logprobs=True)
    return [str(each["token"]) for each in answer["choices"][0]["logprobs"]["content"]]


def _next_words(endpoint: Endpoint, case: Mapping[str, Any], beginning: str) -> dict[str, float]:
    """Return the most likely words after a beginning of an answer, with their log probabilities."""
    more = [{"role": "assistant", "content": beginning}] if beginning else []
    answer = endpoint.ask(
        messages=[*case["messages"], *more],
        max_tokens=1,
        logprobs=True,
        top_logprobs=WORDS,
        add_generation_prompt=not more,
        continue_final_message=bool(more),
    )
    return {each["token"]: each["logprob"] for each in answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]}


def _beginnings(words: list[str]) -> list[str]:
    """Return what is before each word of an answer; chat templates trim it, for the base as for the other."""
    return ["".join(words[:count]) for count in range(len(words) or 1)]


def _about_picture(colour: tuple[int, int, int]) -> list[dict[str, Any]]:
    picture = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{b64encode(_png(colour)).decode()}"}}
    return [{"role": "user", "content": [{"type": "text", "text": "What is in this picture?"}, picture]}]


def _png(colour: tuple[int, int, int], side: int = 96) -> bytes:
    def chunks() -> Iterator[tuple[bytes, bytes]]:
        yield b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
        yield b"IDAT", zlib.compress(b"".join(b"\0" + bytes(colour) * side for _ in range(side)))
        yield b"IEND", b""

    made = (
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks()
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(made)


def _problem(url: str, what: str) -> ConfigurationError:
    return ConfigurationError([Finding(what, url, remedy="name a ready endpoint, and its key")])
