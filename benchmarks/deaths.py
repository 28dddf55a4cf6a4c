"""Kill a part of a running endpoint under streams, and compare the books with what every client had received.

Each stream asks for its usage in every chunk, so its client knows at its end how many tokens it has. A client's figure
is a lower bound of what vLLM's server got from EngineCore, and so is the engine's own counter at the last scrape. The
books may lack something of both only where the server itself is killed.
"""

import http.client
import json
import os
import re
import signal
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from benchmarks.endpoint import MODEL, served_by_servekit
from servekit.serve.books.database import database_path, read_usage
from tests.harness.endpoint import Endpoint
from tests.harness.tenants import CHAT, MARK

PARTS = ("core", "server", "servekit")
"""vLLM's EngineCore, its server, and servekit itself."""
SAID = "are booked as failed"
_TOKENS = 900
_UNTIL_TOKENS = 6_000
Figures = dict[str, int]


def kill(folder: Path, port: int, settings: Mapping[str, str], keys: Mapping[str, str], part: str) -> dict[str, Any]:
    """Start an endpoint, kill a part of it while each key (key to name) has two streams, and return the figures.

    After a kill of servekit itself the books are read once the next start has taken over what was left.
    """
    before = _booked(folder)
    received: Counter[str] = Counter()
    with served_by_servekit(folder, port, **settings) as endpoint:
        streams = [threading.Thread(target=_stream, args=(port, key, received)) for key in [*keys, *keys]]
        for stream in streams:
            stream.start()
        victim = endpoint.pid if part == "servekit" else endpoint.roles()[part]
        scraped = _scrape_until(endpoint, _UNTIL_TOKENS)
        os.kill(victim, signal.SIGKILL)
        endpoint.end(within_s=120)
        for stream in streams:
            stream.join()
        output = endpoint.output
    if part == "servekit":
        with served_by_servekit(folder, port, **settings) as endpoint:
            output = endpoint.output
    booked = {name: value - before.get(name, 0) for name, value in _booked(folder).items()}
    short = {name: received[key] - booked[name] for key, name in keys.items() if received[key] > booked[name]}
    return {
        "tokens at the last scrape before, by name": scraped["by name"],
        "tokens at the last scrape before, by the engine": scraped["by the engine"],
        "tokens that the clients had received": sum(received.values()),
        "tokens in the books": sum(booked.values()),
        "tokens that a client had and the books have not": sum(short.values()),
        "servekit said": [line.partition(" usage: ")[2] for line in output.splitlines() if SAID in line],
    }


def total(page: str, family: str) -> int:
    """Return the sum of a family of counters on a page of metrics."""
    return int(sum(float(value) for value in re.findall(rf"^{family}(?:{{.*}})? (\S+)$", page, re.MULTILINE)))


def judge(part: str, figures: Mapping[str, Any]) -> Sequence[str]:
    """Return what is wrong: books older than the last scrape, or not whole where they should be or are said to be."""
    wrong = []
    kind = "by name" if part == "server" else "by the engine"
    if figures["tokens in the books"] < figures[f"tokens at the last scrape before, {kind}"]:
        wrong.append(f"{part} killed: the books lack what the last scrape had")
    short = figures["tokens that a client had and the books have not"]
    warned = any("missing" in line for line in figures["servekit said"])
    if short and not warned:
        wrong.append(f"{part} killed: the books lack {short} tokens, and servekit does not say so")
    if part != "server" and (short or warned):
        wrong.append(f"{part} killed: the server could book everything, and the books are not whole ({short} short)")
    return wrong


def _stream(port: int, key: str, received: Counter[str]) -> None:
    """Read one long stream until its end, however it comes; keep the last count of its tokens."""
    message = {"role": "user", "content": f"{MARK} tell me a long story"}
    body = {"model": MODEL, "messages": [message], "max_tokens": _TOKENS, "ignore_eos": True, "stream": True}
    body["stream_options"] = {"include_usage": True, "continuous_usage_stats": True}
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
    tokens = 0
    with suppress(OSError, http.client.HTTPException):
        connection.request("POST", CHAT, json.dumps(body), {"content-type": "application/json", "x-api-key": key})
        for line in connection.getresponse():
            if line.startswith(b"data: {") and (usage := json.loads(line[6:]).get("usage")):
                tokens = usage["completion_tokens"]
    connection.close()
    received[key] += tokens


def _scrape_until(endpoint: Endpoint, tokens: int) -> Figures:
    """Scrape until the names have so many tokens more than at first; return the last figures."""
    first = None
    while True:
        page = endpoint.observe("/metrics")[1]
        figures = {
            "by name": total(page, "servekit_key_output_tokens_total"),
            "by the engine": total(page, "vllm:generation_tokens_total"),
        }
        first = first or figures
        if figures["by the engine"] >= first["by the engine"] + tokens:
            return figures
        time.sleep(0.1)


def _booked(folder: Path) -> Figures:
    return {name: int(row["output_tokens"]) for name, row in read_usage(database_path(folder)).items()}
