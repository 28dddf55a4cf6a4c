"""What the engine counted between two metrics pages: work for clients, outcomes, refusals, latencies."""

import statistics
from collections.abc import Mapping
from typing import Final

from servekit.measure.figures.counters import Gains, follow, total
from servekit.measure.record import Engine, Latency, Range, Work
from servekit.measure.trace import Page, Trace

STARTED: Final = "process_start_time_seconds"
"""Of the engine's server: another value is another engine."""
TOKENS: Final = "vllm:generation_tokens_total"
_PROMPTS, _FINISHED, _CANARIES = (
    "vllm:prompt_tokens_total",
    "vllm:request_success_total",
    "servekit_canary_tokens_total",
)
_ANSWERED: Final = frozenset({"stop", "length", "repetition"})
_CANARY_REASON: Final = "length"
_NO_REFUSALS: Final = frozenset({"allowed", "own", "client_gone", "unread"})
"""Outcomes in the guard's counter that are no refusals."""
GAUGES: Final = {
    "running": "vllm:num_requests_running",
    "waiting": "vllm:num_requests_waiting",
    "kv_cache_usage": "vllm:kv_cache_usage_perc",
}
_LATENCIES: Final = {
    "time_to_first_token": "vllm:time_to_first_token_seconds",
    "inter_token": "vllm:inter_token_latency_seconds",
    "time_per_output_token": "vllm:request_time_per_output_token_seconds",
    "request": "vllm:e2e_request_latency_seconds",
    "queue": "vllm:request_queue_time_seconds",
    "prefill": "vllm:request_prefill_time_seconds",
    "decode": "vllm:request_decode_time_seconds",
}
_QUANTILES: Final = {"p50_s": 0.5, "p90_s": 0.9, "p95_s": 0.95, "p99_s": 0.99}


def why_unknown(before: Page, after: Page) -> str:
    """Return why the counters of two pages cannot be subtracted; empty if they can."""
    for page, when in ((before, "before the run"), (after, "after the run")):
        if total(page, TOKENS) is None:
            return f"the engine's counters could not be read {when}"
    if total(before, STARTED) != total(after, STARTED):
        return "the engine restarted, and its counters with it"
    return ""


def work_between(before: Page, after: Page) -> Work | None:
    """Return what the engine did for clients between two pages: a canary is one token in, one out, and a request."""
    if why_unknown(before, after):
        return None
    gains = Gains(before, after)
    canaries = gains.of(_CANARIES) or 0
    finished = gains.by(_FINISHED, "finished_reason")
    return Work(
        output_tokens=(gains.of(TOKENS) or 0) - canaries,
        prompt_tokens=(gains.of(_PROMPTS) or 0) - canaries,
        requests=sum(count for reason, count in finished.items() if reason in _ANSWERED) - canaries,
    )


def engine_between(before: Page, after: Page, ranges: Mapping[str, Range | None]) -> Engine:
    """Return all that the engine and the guard counted between two pages; `ranges` has the gauges meanwhile."""
    if why := why_unknown(before, after):
        return Engine(why=why, **ranges)
    gains = Gains(before, after)
    canaries = gains.of(_CANARIES) or 0
    requests = gains.by(_FINISHED, "finished_reason")
    requests[_CANARY_REASON] = requests.get(_CANARY_REASON, 0) - canaries
    outcomes = gains.by("servekit_guard_requests_total", "outcome")
    queries = gains.of("vllm:prefix_cache_queries_total")
    return Engine(
        why="",
        requests=requests,
        refused={outcome: count for outcome, count in outcomes.items() if count and outcome not in _NO_REFUSALS},
        preemptions=gains.of("vllm:num_preemptions_total"),
        cached_prompt_tokens=gains.of("vllm:prompt_tokens_cached_total"),
        prefix_cache_queries=None if queries is None else queries - canaries,
        prefix_cache_hits=gains.of("vllm:prefix_cache_hits_total"),
        canaries=canaries,
        latency={name: latency for name, family in _LATENCIES.items() if (latency := _latency(gains, family))},
        **ranges,
    )


def gauge_ranges(trace: Trace, start_s: float, end_s: float) -> dict[str, Range | None]:
    """Return mean and highest value of the engine's gauges over the scrapes of a window."""
    rows = [values for t, values in follow(trace, GAUGES.values()) if start_s <= t <= end_s]
    found = {name: [value for row in rows if (value := row[family]) is not None] for name, family in GAUGES.items()}
    return {
        name: Range(mean=statistics.fmean(values), highest=max(values)) if values else None
        for name, values in found.items()
    }


def _latency(gains: Gains, family: str) -> Latency | None:
    if (histogram := gains.histogram(family)) is None:
        return None
    quantiles = {name: histogram.quantile(share) for name, share in _QUANTILES.items()}
    return Latency(count=histogram.count, mean_s=histogram.sum / histogram.count, **quantiles)
