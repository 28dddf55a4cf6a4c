"""The guard's counters and the canaries' tokens as metric families."""

from collections.abc import Iterator
from itertools import accumulate
from typing import Any

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from servekit.observe.families import family
from servekit.serve.guard import COUNTERS_PATH
from servekit.serve.watch.probe import EngineClient, ProbeError

_GAUGES = {
    "in_flight": "Generation requests in the engine.",
    "max_in_flight": "The limit of in_flight; the guard answers further requests with 429.",
    "buffered_bytes": "Bytes of request bodies in memory.",
    "max_buffered_bytes": "The limit of buffered_bytes.",
    "authentication": "1 when clients need a key.",
    "keys": "Valid keys.",
}


def guard_families(client: EngineClient, canary_tokens: int) -> Iterator[Metric]:
    """Yield the counters of the guard inside the engine's server; only the canaries' tokens while it is down.

    servekit_guard_requests_total{route="/v1/chat/completions",outcome="allowed"} 12.0
    servekit_guard_in_flight 3.0
    servekit_guard_max_in_flight 2048.0
    servekit_guard_buffered_bytes 0.0
    servekit_guard_max_buffered_bytes 1073741824.0
    servekit_guard_authentication 1.0
    servekit_guard_keys 1.0
    servekit_guard_key_file_broken 0.0
    servekit_guard_key_reloads_total{outcome="taken"} 0.0
    servekit_guard_wrong_key_requests_total{key_hash="9f86d081"} 40.0
    servekit_guard_event_loop_held_seconds_bucket{le="0.25"} 4711.0
    servekit_guard_event_loop_held_max_seconds 0.112
    servekit_pinned_host_bytes 5637144576.0
    servekit_canary_tokens_total 0.0
    """
    yield CounterMetricFamily("servekit_canary_tokens", "Tokens generated for servekit's own canaries.", canary_tokens)
    try:
        counters = client.get(COUNTERS_PATH)
    except ProbeError:
        return
    yield family(
        CounterMetricFamily,
        "servekit_guard_requests",
        "Requests by route and outcome.",
        ("route", "outcome"),
        {(row["route"], row["outcome"]): row["count"] for row in counters.get("requests", ())},
    )
    for name, text in _GAUGES.items():
        if name in counters:
            yield GaugeMetricFamily(f"servekit_guard_{name}", text, float(counters[name]))
    if (pinned := counters.get("pinned_host_bytes")) is not None:
        text = "Host memory that the engine has pinned for per-layer embeddings."
        yield GaugeMetricFamily("servekit_pinned_host_bytes", text, pinned)
    yield GaugeMetricFamily(
        "servekit_guard_key_file_broken",
        "1 while a changed key file is invalid and the old keys stay valid.",
        float(counters.get("key_file_problem") is not None),
    )
    yield family(
        CounterMetricFamily,
        "servekit_guard_key_reloads",
        "Changes of the key file, taken or refused.",
        ("outcome",),
        {("taken",): counters.get("key_reloads", 0), ("refused",): counters.get("refused_key_reloads", 0)},
    )
    yield family(
        CounterMetricFamily,
        "servekit_guard_wrong_key_requests",
        "401s by the first digits of the SHA-256 of a wrong key that was sent often; the others without digits.",
        ("key_hash",),
        {(name,): count for name, count in counters.get("wrong_keys", {}).items()},
    )
    if loop := counters.get("event_loop"):
        yield from _event_loop(loop)


def _event_loop(loop: dict[str, Any]) -> Iterator[Metric]:
    """Yield how long the server's event loop was blocked, tick by tick (`servekit_guard/stopwatch.py`)."""
    bounds = [*map(str, loop["bounds_s"]), "+Inf"]
    yield HistogramMetricFamily(
        "servekit_guard_event_loop_held_seconds",
        "Processor time that the event loop's thread used between two ticks.",
        buckets=list(zip(bounds, map(float, accumulate(loop["ticks"])), strict=True)),
        sum_value=loop["cpu_s"],
    )
    yield GaugeMetricFamily(
        "servekit_guard_event_loop_held_max_seconds",
        "The longest time that the event loop was blocked since the start; 0 if never over 0.1 s.",
        loop["longest_s"],
    )
