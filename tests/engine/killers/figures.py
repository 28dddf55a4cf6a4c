"""Figures of the guard from servekit's metrics page, which reads them from the engine at each scrape."""

import re

from tests.harness.endpoint import Endpoint

_TICKS = "servekit_guard_event_loop_held_seconds_bucket"
HELD_S = 2.5
"""What no request may hold the event loop for on whatever machine tests run on; `python -m benchmarks.killers` and
`benchmarks.fuzz_engine` hold it to 0.25 s on a known one."""


def held(endpoint: Endpoint, above_s: float = 0.25) -> float:
    """Return how often the server's event loop was blocked for more than `above_s` of its own processor time.

    `above_s` is a bound of the histogram. Benchmarks take 250 ms; a test on an unknown machine takes ten times that.
    """
    page = endpoint.observe("/metrics")[1]
    return _value(page, f'{_TICKS}{{le="+Inf"}}') - _value(page, f'{_TICKS}{{le="{above_s}"}}')


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
