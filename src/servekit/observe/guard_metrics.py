"""The guard's counters and the canaries' tokens as metric families."""

from collections.abc import Iterator
from itertools import accumulate
from typing import Any, Protocol

from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from servekit.serve.guard import COUNTERS_PATH
from servekit.serve.watch.probe import EngineClient, ProbeError


class CountsCanaries(Protocol):
    """Whoever sends canaries and knows how many tokens they made."""

    @property
    def canary_tokens(self) -> int:
        """Tokens so far."""
        ...


class GuardCollector(Collector):
    """What the guard inside the engine's server counts, read at each scrape; absent while the engine is not up.

    servekit_guard_requests_total{route="/v1/chat/completions",outcome="allowed"} 12.0
    servekit_guard_in_flight 3.0
    servekit_guard_max_in_flight 2048.0
    servekit_guard_buffered_bytes 0.0
    servekit_guard_max_buffered_bytes 1073741824.0
    servekit_guard_authentication 1.0
    servekit_guard_keys 1.0
    servekit_guard_key_file_broken 0.0
    servekit_guard_key_reloads_total{outcome="taken"} 0.0
    servekit_guard_event_loop_held_seconds_bucket{le="0.25"} 4711.0
    servekit_guard_event_loop_held_max_seconds 0.112
    servekit_canary_tokens_total 0.0
    """

    def __init__(self, client: EngineClient, canaries: CountsCanaries) -> None:
        self._client = client
        self._canaries = canaries

    def collect(self) -> Iterator[Metric]:
        """Yield the families of this moment."""
        yield CounterMetricFamily(
            "servekit_canary_tokens", "Tokens made for servekit's own canaries.", self._canaries.canary_tokens
        )
        try:
            counters = self._client.get(COUNTERS_PATH)
        except ProbeError:
            return
        requests = CounterMetricFamily(
            "servekit_guard_requests", "Requests by route and by what became of them.", labels=["route", "outcome"]
        )
        for row in counters.get("requests", ()):
            requests.add_metric([row["route"], row["outcome"]], row["count"])
        yield requests
        for name, text in _GAUGES.items():
            if name in counters:
                yield GaugeMetricFamily(f"servekit_guard_{name}", text, float(counters[name]))
        yield GaugeMetricFamily(
            "servekit_guard_key_file_broken",
            "1 while a changed key file cannot be used and the old keys stay.",
            float(counters.get("key_file_problem") is not None),
        )
        reloads = CounterMetricFamily(
            "servekit_guard_key_reloads", "Changes of the key file, taken up or refused.", labels=["outcome"]
        )
        reloads.add_metric(["taken"], counters.get("key_reloads", 0))
        reloads.add_metric(["refused"], counters.get("refused_key_reloads", 0))
        yield reloads
        if loop := counters.get("event_loop"):
            yield from _event_loop(loop)


def _event_loop(loop: dict[str, Any]) -> Iterator[Metric]:
    """Yield how long the server's event loop was held, tick by tick (`servekit_guard/stopwatch.py`)."""
    bounds = [*map(str, loop["bounds_s"]), "+Inf"]
    yield HistogramMetricFamily(
        "servekit_guard_event_loop_held_seconds",
        "Processor time that the event loop's thread used between two ticks.",
        buckets=list(zip(bounds, map(float, accumulate(loop["ticks"])), strict=True)),
        sum_value=loop["cpu_s"],
    )
    yield GaugeMetricFamily(
        "servekit_guard_event_loop_held_max_seconds",
        "The longest that the event loop was held since the start; 0 for never over a tenth of a second.",
        loop["longest_s"],
    )


_GAUGES = {
    "in_flight": "Requests for text in the engine now.",
    "max_in_flight": "How many there may be; more are answered 429.",
    "buffered_bytes": "Bytes of request bodies held now.",
    "max_buffered_bytes": "How many there may be.",
    "authentication": "1 when clients need a key.",
    "keys": "Valid keys.",
}
