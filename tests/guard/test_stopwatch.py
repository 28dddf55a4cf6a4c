"""The stopwatch of the event loop: CPU time, not wall-clock time."""

import asyncio
import time
from typing import Any

from servekit.serve.guard.inside.servekit_guard.stopwatch import TICK_S, Stopwatch


def hold(seconds: float) -> None:
    """Use this much of the thread's CPU time without a pause."""
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


def watched(seconds: float, *, asleep: bool = False) -> dict[str, Any]:
    """Block a loop once, or let it idle, and return what the stopwatch measured."""

    async def main() -> dict[str, Any]:
        stopwatch = Stopwatch()
        with stopwatch.running():
            await asyncio.sleep(3 * TICK_S)
            if asleep:
                time.sleep(seconds)  # noqa: ASYNC251 - the test blocks the loop on purpose
            else:
                hold(seconds)
            await asyncio.sleep(3 * TICK_S)
        return stopwatch.read()

    return asyncio.run(main())


def test_a_block_is_measured_in_full() -> None:
    """A callback that uses 0.3 s of the thread is measured as at least that, and at most a tick more."""
    seen = watched(0.3)
    assert 0.3 <= seen["longest_s"] < 0.3 + TICK_S
    assert seen["ticks"][seen["bounds_s"].index(0.5)] == 1


def test_an_idle_loop_is_not_blocked() -> None:
    """A loop that waits for a core, or sleeps, does not count as blocked."""
    seen = watched(0.4, asleep=True)
    assert seen["longest_s"] == 0
    assert sum(seen["ticks"]) == seen["ticks"][0] > 0


def test_it_ends_with_the_server() -> None:
    """After the `with` the stopwatch no longer ticks."""

    async def main() -> None:
        stopwatch = Stopwatch()
        with stopwatch.running():
            await asyncio.sleep(2 * TICK_S)
        ticks = sum(stopwatch.read()["ticks"])
        await asyncio.sleep(3 * TICK_S)
        assert sum(stopwatch.read()["ticks"]) == ticks

    asyncio.run(main())
