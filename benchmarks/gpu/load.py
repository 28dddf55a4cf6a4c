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
import threading
import time
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


class Meter:
    """Reads energy counter and power of GPU 0 ten times a second."""

    def __init__(self) -> None:
        self.samples: list[tuple[float, float, float]] = []
        """Seconds of time.perf_counter, joules of the counter, watts."""
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Read no more."""
        self._over.set()
        self._thread.join()

    def between(self, start_s: float, end_s: float) -> dict[str, float]:
        """Return joules and mean watts between two seconds of time.perf_counter; nothing without NVML."""
        inside = [sample for sample in self.samples if start_s <= sample[0] <= end_s]
        if len(inside) < 2:  # noqa: PLR2004 - an interval has two ends
            return {}
        (first_s, first_j, _), (last_s, last_j, _) = inside[0], inside[-1]
        counted_w = (last_j - first_j) / (last_s - first_s)
        trace_j = sum((b[2] + a[2]) / 2 * (b[0] - a[0]) for a, b in itertools.pairwise(inside))
        return {
            "energy_j": round(counted_w * (end_s - start_s), 1),
            "mean_power_w": round(counted_w, 1),
            "mean_power_of_trace_w": round(trace_j / (last_s - first_s), 1),
            "power_samples": len(inside),
        }

    def _run(self) -> None:
        try:
            pynvml: Any = importlib.import_module("pynvml")
            pynvml.nvmlInit()
            card = pynvml.nvmlDeviceGetHandleByIndex(0)
        except Exception:  # noqa: BLE001 - no library, no driver: nothing to meter
            return
        while not self._over.wait(0.1):
            joules = pynvml.nvmlDeviceGetTotalEnergyConsumption(card) / 1000
            self.samples.append((time.perf_counter(), joules, pynvml.nvmlDeviceGetPowerUsage(card) / 1000))


def measure(parser: argparse.ArgumentParser, serve: Any, order: dict[str, Any]) -> dict[str, Any]:
    """Run one `vllm bench serve` and return its figures."""
    serve.fetch_spec_decode_metrics = starter()
    os.environ["OPENAI_API_KEY"] = order.get("key") or ""
    arguments = parser.parse_args(order["arguments"])
    meter = Meter()
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
