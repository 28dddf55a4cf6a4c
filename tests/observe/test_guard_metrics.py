"""The guard's counters as Prometheus sees them."""

from collections.abc import Mapping
from typing import Any

from prometheus_client import generate_latest

from servekit.observe.guard_metrics import guard_families
from servekit.observe.metrics import make_registry
from servekit.serve.watch.probe import EngineClient, ProbeError


class Engine(EngineClient):
    """An engine whose guard returns these counters, or does not answer."""

    def __init__(self, counters: Mapping[str, Any] | None) -> None:
        super().__init__("http://127.0.0.1:9")
        self.counters = counters

    def get(self, path: str, *, timeout_s: float = 5) -> dict[str, Any]:  # noqa: ARG002 - it answers immediately
        """Return the guard's counters."""
        if self.counters is None:
            raise ProbeError(path)
        return dict(self.counters)


def page(counters: Mapping[str, Any] | None) -> list[str]:
    """Return the lines that Prometheus would read."""
    registry = make_registry(lambda: guard_families(Engine(counters), 7))
    lines = generate_latest(registry).decode().splitlines()
    return [line for line in lines if line.startswith(("servekit_guard", "servekit_canary", "servekit_pinned"))]


def test_every_counter_of_the_guard() -> None:
    """The families count requests by route and outcome, requests in flight, and the keys."""
    counters = {
        "requests": [
            {"route": "/v1/chat/completions", "outcome": "allowed", "count": 12},
            {"route": "other", "outcome": "not_found", "count": 3},
        ],
        "in_flight": 2,
        "max_in_flight": 2048,
        "buffered_bytes": 10,
        "max_buffered_bytes": 100,
        "authentication": True,
        "keys": 1,
        "key_reloads": 4,
        "refused_key_reloads": 1,
        "key_file_problem": "line 2: too short",
        "pinned_host_bytes": 5,
        "event_loop": {"bounds_s": [0.05, 0.25], "ticks": [40, 2, 1], "cpu_s": 1.5, "longest_s": 0.3},
    }
    assert page(counters) == [
        "servekit_canary_tokens_total 7.0",
        'servekit_guard_requests_total{outcome="allowed",route="/v1/chat/completions"} 12.0',
        'servekit_guard_requests_total{outcome="not_found",route="other"} 3.0',
        "servekit_guard_in_flight 2.0",
        "servekit_guard_max_in_flight 2048.0",
        "servekit_guard_buffered_bytes 10.0",
        "servekit_guard_max_buffered_bytes 100.0",
        "servekit_guard_authentication 1.0",
        "servekit_guard_keys 1.0",
        "servekit_pinned_host_bytes 5.0",
        "servekit_guard_key_file_broken 1.0",
        'servekit_guard_key_reloads_total{outcome="taken"} 4.0',
        'servekit_guard_key_reloads_total{outcome="refused"} 1.0',
        'servekit_guard_event_loop_held_seconds_bucket{le="0.05"} 40.0',
        'servekit_guard_event_loop_held_seconds_bucket{le="0.25"} 42.0',
        'servekit_guard_event_loop_held_seconds_bucket{le="+Inf"} 43.0',
        "servekit_guard_event_loop_held_seconds_count 43.0",
        "servekit_guard_event_loop_held_seconds_sum 1.5",
        "servekit_guard_event_loop_held_max_seconds 0.3",
    ]


def test_nothing_is_made_up_without_an_engine() -> None:
    """While no engine answers, only servekit's own metric remains."""
    assert page(None) == ["servekit_canary_tokens_total 7.0"]
