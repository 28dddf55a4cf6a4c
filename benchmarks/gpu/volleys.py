"""Requests whose memory vLLM 0.20.2 does not profile at its start, fired together with ordinary ones."""

import json
import re
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from benchmarks.gpu.endpoint import Measured, Served
from tests.harness.http import get

COMPLETIONS = "/v1/completions"
CHAT = "/v1/chat/completions"
ANSWER_S = 240
"""How long a request may take."""
FILLED_S = 60
"""How long the rows of a volley may take until all of them run."""
FULL = 0.97
"""The share of the KV cache from which it counts as full: vLLM begins to preempt."""
SAMPLED = {"temperature": 1.0, "top_p": 0.95, "top_k": 64, "ignore_eos": True}
"""What Gemma's own generation_config asks for, at full length."""
Body = dict[str, Any]


@dataclass(frozen=True)
class Volley:
    """`rows` requests that run together, and then `shots` into the full batch."""

    name: str
    shots: Sequence[tuple[str, Body]]
    rows: Sequence[Body] = ()
    """For COMPLETIONS."""
    fills_cache: bool = False
    """Whether the shots wait for a full cache rather than for all rows to run."""


@dataclass
class Outcome:
    """The outcome of a volley."""

    name: str
    seconds: float = 0.0
    running: int = 0
    """Rows in the engine's batch when the shots were fired."""
    cache: float = 0.0
    """The share of the KV cache in use then."""
    rows: dict[str, int] = field(default_factory=dict)
    """How many of them ended with which status."""
    shots: dict[str, int] = field(default_factory=dict)
    refusals: list[str] = field(default_factory=list)
    """What the client was told, each once."""
    alive: bool = False
    """Whether the engine answers afterwards."""
    gpu_bytes: int = 0


def prompt(tokens: int, number: int = 0) -> list[int]:
    """Return token ids that every vocabulary has; each number gives another beginning, so that no prefix is cached."""
    return [14 + (number // 240**place if place < 3 else number + place) % 240 for place in range(tokens)]  # noqa: PLR2004


def row(number: int, tokens: int, length: int = 40) -> Body:
    """Return an ordinary row: `length` prompt tokens, with Gemma's recommended sampling."""
    return {"prompt": prompt(length, number), "max_tokens": tokens} | SAMPLED


def fire(server: Measured, key: str, volley: Volley) -> Outcome:
    """Fire a volley and wait for every answer."""
    began_s, outcome = time.monotonic(), Outcome(volley.name)
    with ThreadPoolExecutor(max(1, len(volley.rows) + len(volley.shots))) as pool:
        rows = [pool.submit(post, server.url, key, COMPLETIONS, body) for body in volley.rows]
        outcome.running, outcome.cache = _filled(server, rows, fills_cache=volley.fills_cache)
        shots = [pool.submit(post, server.url, key, path, body) for path, body in volley.shots]
        outcome.rows = dict(Counter(each.result()[0] for each in rows))
        outcome.shots = dict(Counter(each.result()[0] for each in shots))
    told = {told for each in (*rows, *shots) if (told := each.result()[1])}
    outcome.refusals = sorted(told)[:5]
    outcome.seconds = round(time.monotonic() - began_s, 2)
    outcome.alive = server.process.poll() is None and get(f"{server.url}/health")[0] == 200  # noqa: PLR2004
    return outcome


def post(url: str, key: str, path: str, body: Mapping[str, Any]) -> tuple[str, str]:
    """Return the status, or how the connection ended, and the message of a refusal."""
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}
    request = urllib.request.Request(f"{url}{path}", json.dumps({"model": "model", **body}).encode(), headers)
    try:
        with urllib.request.urlopen(request, timeout=ANSWER_S) as answer:
            answer.read()
            return str(answer.status), ""
    except urllib.error.HTTPError as error:
        with error:
            return str(error.code), message_of(error.read())
    except OSError as error:
        return type(error).__name__, ""


def message_of(answer: bytes) -> str:
    """Return an error's message."""
    with suppress(ValueError, KeyError, TypeError):
        return str(json.loads(answer)["error"]["message"])[:200]
    return answer[:200].decode(errors="replace")


def _filled(server: Measured, rows: Sequence["Future[tuple[str, str]]"], *, fills_cache: bool) -> tuple[int, float]:
    """Wait until all rows run or the cache is full, one row has ended, or the engine has; return the most of both."""
    end_s, most, cache = time.monotonic() + FILLED_S, 0, 0.0
    while rows and time.monotonic() < end_s and server.process.poll() is None:
        most = max(most, int(gauge(server, "num_requests_running")))
        cache = max(cache, gauge(server, "kv_cache_usage_perc"))
        if (cache >= FULL if fills_cache else most >= len(rows)) or any(each.done() for each in rows):
            break
        time.sleep(0.1)
    return most, cache


def gauge(server: Measured, name: str) -> float:
    """Return one of the engine's own metrics, such as how many requests are in its batch."""
    address = server.observe_url if isinstance(server, Served) else server.url
    found = re.search(rf"(?m)^vllm:{name}\{{.*\}} ([-+.\de]+)$", get(f"{address}/metrics")[1])
    return float(found[1]) if found else 0.0
