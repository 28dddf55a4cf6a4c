"""Thousands of random requests from the guard's table of fields, on the real engine."""

import psutil

from tests.engine.killers.barrage import bombard
from tests.engine.killers.case import Target
from tests.engine.killers.figures import HELD_S, gauge, held
from tests.harness.endpoint import Endpoint

REQUESTS = {"demo": 4_000, "wide": 1_000}
"""A vocabulary of 262,144 takes six times as long on a CPU; `python -m benchmarks.fuzz_engine` sends 20,000 to each."""
GROWTH_BYTES = 400 * 1024**2
"""Room for vLLM's image cache and its arenas; retained bodies would exceed it."""


def test_drawn_requests_do_no_harm(which: str, attacked: Endpoint, target: Target) -> None:
    """Each request is answered or refused with a reason; engine and event loop go on, and no slot or memory leaks."""
    processes = attacked.roles()
    server = psutil.Process(processes["server"])
    warm = bombard(target, 7, range(200))
    before, held_before = server.memory_info().rss, held(attacked, HELD_S)
    seen = bombard(target, 1, range(REQUESTS[which]))
    assert not warm.wrong + seen.wrong, "\n".join(warm.wrong + seen.wrong)
    assert seen.statuses[200] > REQUESTS[which] // 10, seen.statuses
    assert seen.statuses[400] > REQUESTS[which] // 10, seen.statuses
    assert attacked.roles()["core"] == processes["core"]
    assert server.memory_info().rss - before < GROWTH_BYTES
    attacked.until(lambda: gauge(attacked, "servekit_guard_in_flight") == 0, "end of the requests", 120)
    assert gauge(attacked, "servekit_guard_buffered_bytes") == 0
    assert held(attacked, HELD_S) == held_before, f"the event loop was held for more than {HELD_S} s"
