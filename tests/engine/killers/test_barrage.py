"""Thousands of requests drawn from the guard's table of fields, on the real engine."""

import psutil
import pytest

from tests.engine.conftest import Endpoint
from tests.engine.killers.barrage import bombard
from tests.engine.killers.case import Target
from tests.engine.killers.figures import gauge, held

REQUESTS = 2_500
"""For each of the two models; `python -m benchmarks.fuzz_engine` sends 20,000."""
GROWTH_BYTES = 400 * 1024**2
"""vLLM's image cache and its arenas; a body that is kept would be more."""

pytestmark = pytest.mark.timeout(1200)


def test_drawn_requests_do_no_harm(attacked: Endpoint, target: Target) -> None:
    """Each is answered or refused in words; the engine lives, the event loop runs, no slot and no byte is kept."""
    processes = attacked.processes()
    server = psutil.Process(processes["server"])
    warm = bombard(target, 7, range(200))
    before, held_before = server.memory_info().rss, held(attacked)
    seen = bombard(target, 1, range(REQUESTS))
    assert not warm.wrong + seen.wrong, "\n".join(warm.wrong + seen.wrong)
    assert seen.statuses[200] > REQUESTS // 10, seen.statuses
    assert seen.statuses[400] > REQUESTS // 10, seen.statuses
    assert attacked.processes()["core"] == processes["core"]
    assert server.memory_info().rss - before < GROWTH_BYTES
    attacked.until(lambda: gauge(attacked, "servekit_guard_in_flight") == 0, "end of the requests", 30)
    assert gauge(attacked, "servekit_guard_buffered_bytes") == 0
    assert held(attacked) == held_before, "the event loop was held for more than 250 ms of its processor time"
