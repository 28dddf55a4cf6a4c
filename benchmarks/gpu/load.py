"""`vllm bench serve`, many times in one process: importing vLLM once and not for every measurement.

Runs under the engine's Python. Reads one JSON object a line, {"arguments": [...], "key": "..."}, with the
arguments of `vllm bench serve`. Writes `WARM` once the requests that do not count are over and goes on at the next line
it reads, so that several of these can begin together; then one line `RESULT {...}`: the figures, the energy the GPU
spent meanwhile, and when the tokens came (`flow`).
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

from benchmarks.gpu.reading import read_energy
from servekit.measure.energy import EnergyMeter

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
    meter = EnergyMeter(read_energy)
    try:
        result = asyncio.run(serve.main_async(arguments))
    finally:
        meter.stop()
    figures = {name: result[name] for name in KEPT if name in result}
    if starts := result.get("start_times"):
        figures |= meter.between(min(starts), min(starts) + figures["duration"])
    figures["flow"] = flow(result)
    if errors := sorted({error for error in result.get("errors", ()) if error}):
        figures["errors"] = errors[:3]
    return figures


def flow(result: dict[str, Any]) -> dict[str, Any]:
    """Say when the answered requests were sent and when their tokens came.

    `sent_s` and `ttfts_s` are in the order of sending, in seconds of time.perf_counter, a clock that all processes of a
    Linux host share, and from there to the first token. `tokens` counts the tokens of each BIN_S seconds from the bin
    `first_bin` on; where the server sent several in one piece, the pieces of a request count alike.
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
    """Return what stands in for the question a benchmark asks the server between its warm-up and its start.

    It asks again at its end, which is answered at once. The answer None is that of a server that has no drafts to tell.
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
        except (Exception, SystemExit) as error:  # noqa: BLE001 - told to the caller, who goes on with the next
            answer = {"failure": f"{type(error).__name__}: {error}"}
        print(RESULT + json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
