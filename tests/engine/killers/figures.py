"""Figures of the guard from servekit's metrics page, which reads them from the engine at each scrape."""

import re

from tests.harness.endpoint import Endpoint

_TICKS = "servekit_guard_event_loop_held_seconds_bucket"


def held(endpoint: Endpoint) -> float:
    """Return how often the server's event loop was blocked for more than 250 ms of its own processor time."""
    page = endpoint.observe("/metrics")[1]
    return _value(page, f'{_TICKS}{{le="+Inf"}}') - _value(page, f'{_TICKS}{{le="0.25"}}')


def longest_held_s(endpoint: Endpoint) -> float:
    """Return the longest block of the event loop since the start, in seconds of its own processor time."""
    return gauge(endpoint, "servekit_guard_event_loop_held_max_seconds")


def gauge(endpoint: Endpoint, name: str) -> float:
    """Return one figure."""
    return _value(endpoint.observe("/metrics")[1], name)


def _value(page: str, name: str) -> float:
    found = re.search(rf"(?m)^{re.escape(name)} (\S+)$", page)
    assert found, name
    return float(found[1])
