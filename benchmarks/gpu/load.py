"""`vllm bench serve`, many times in one process, so that it imports vLLM only once.

Runs under the engine's Python. Reads one JSON object per line, {"arguments": [...], "key": "..."}, with the
arguments of `vllm bench serve`. Writes `WARM` after the warm-up requests and waits for another line, so that several
such processes can begin together. Then writes one line `RESULT {...}`: the figures, and when the tokens arrived
(`flow`). Energy is what `servekit measure` is for.
"""

import argparse
import asyncio
import importlib
import itertools
import json
import operator
import os
import sys
from collections import defaultdict
from collections.abc import Awaitable, Callable
from typing import Any

READY, WARM, RESULT = "READY", "WARM", "RESULT "
"""What the lines of this program begin with."""
BIN_S = 0.01
"""How exactly the times of tokens are told."""
KEPT = (
    *("completed", "failed", "duration", "total_input_tokens", "total_output_tokens"),
    *("request_throughput", "output_throughput", "total_token_throughput", "max_concurrent_requests"),
    *("mean_ttft_ms", "median_ttft_ms", "p99_ttft_ms", "mean_itl_ms", "median_itl_ms", "p99_itl_ms"),
    *("mean_tpot_ms", "median_tpot_ms"),
)


def measure(parser: argparse.ArgumentParser, serve: Any, order: dict[str, Any]) -> dict[str, Any]:
    """Run one `vllm bench serve` and return its figures."""
    serve.fetch_spec_decode_metrics = starter()
    os.environ["OPENAI_API_KEY"] = order.get("key") or ""
    arguments = parser.parse_args(order["arguments"])
    result = asyncio.run(serve.main_async(arguments))
    figures = {name: result[name] for name in KEPT if name in result}
    figures["flow"] = flow(result)
    if errors := sorted({error for error in result.get("errors", ()) if error}):
        figures["errors"] = errors[:3]
    return figures


def flow(result: dict[str, Any]) -> dict[str, Any]:
    """Return when the answered requests were sent and when their tokens arrived.

    `sent_s` is in seconds of time.perf_counter, a clock that all processes of a Linux host share; `ttfts_s` is the time
    from there to the first token. Both are in the order of sending. `tokens` counts the tokens in bins of BIN_S
    seconds, from `first_bin` on; if the server sent several tokens in one chunk, all chunks of a request count alike.
    """
    names = ("start_times", "ttfts", "itls", "output_lens", "errors")
    answered = [
        each[:4]
        for each in sorted(zip(*(result[name] for name in names), strict=True), key=operator.itemgetter(0))
        if each[1] and not each[4]
    ]
    tokens: defaultdict[int, float] = defaultdict(float)
    for sent_s, ttft_s, itls_s, length in answered:
        for moment_s in itertools.accumulate(itls_s, initial=sent_s + ttft_s):
            tokens[int(moment_s / BIN_S)] += length / (1 + len(itls_s))
    bins = range(min(tokens, default=0), max(tokens, default=-1) + 1)
    return {
        "sent_s": [round(sent_s, 6) for sent_s, *_ in answered],
        "ttfts_s": [round(ttft_s, 6) for _, ttft_s, *_ in answered],
        "first_bin": bins.start,
        "tokens": [round(tokens[number], 2) for number in bins],
    }


def starter() -> Callable[..., Awaitable[None]]:
    """Return a replacement for vLLM's query of the server's draft metrics, which comes between warm-up and start.

    The benchmark queries again at its end; that call returns immediately. None means that the server has no drafts.
    """
    asked = itertools.count()

    async def wait_once(*_: object) -> None:
        if next(asked) == 0:
            print(WARM, flush=True)
            sys.stdin.readline()

    return wait_once


def main() -> None:
    """Serve measurements until the input ends."""
    serve: Any = importlib.import_module("vllm.benchmarks.serve")
    parser = argparse.ArgumentParser()
    serve.add_cli_args(parser)
    print(READY, flush=True)
    for line in sys.stdin:
        try:
            answer = measure(parser, serve, json.loads(line))
        except (Exception, SystemExit) as error:  # noqa: BLE001 - reported to the caller, which continues with the next
            answer = {"failure": f"{type(error).__name__}: {error}"}
        print(RESULT + json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
