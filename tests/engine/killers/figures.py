"""Figures of the guard, as servekit's own metrics page gives them."""

import re

from tests.engine.conftest import Endpoint, get


def held(endpoint: Endpoint) -> float:
    """Return how often the server's event loop was held for more than 250 ms of its own processor time."""
    ticks = "servekit_guard_event_loop_held_seconds_bucket"
    return gauge(endpoint, f'{ticks}{{le="+Inf"}}') - gauge(endpoint, f'{ticks}{{le="0.25"}}')


def longest_held_s(endpoint: Endpoint) -> float:
    """Return the longest that the event loop was held since the start, in seconds of its own processor time."""
    return gauge(endpoint, "servekit_guard_event_loop_held_max_seconds")


def gauge(endpoint: Endpoint, name: str) -> float:
    """Return a figure of servekit's own metrics, which reads them from the engine when it is asked."""
    found = re.search(rf"(?m)^{re.escape(name)} (\S+)$", get(f"{endpoint.observe_url}/metrics")[1])
    assert found, name
    return float(found[1])
