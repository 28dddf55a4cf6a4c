"""How long the event loop is blocked, in processor time of its own thread and not in wall-clock time.

vLLM's loop is uvloop, in C, so callbacks cannot be timed individually. A timer ticks on the loop instead: between two
ticks the loop's thread has used at least the time of the longest callback. A measured block is therefore too long by
whatever else ran in that time, at most one tick (`TICK_S`) of ordinary work, and never too short. Callbacks that became
ready together and ran in one turn of the loop count as one block, as they do for a stream that waits for them.
"""

import asyncio
import time
from bisect import bisect_left
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

TICK_S = 0.025
BOUNDS_S = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
LONG_S = 0.1
"""Shorter blocks are not recorded as the longest one."""


class Stopwatch:
    """Ticks on the running loop: 2 microseconds a tick on a busy loop, at no cost for a request."""

    def __init__(self) -> None:
        self._ticks = [0] * (len(BOUNDS_S) + 1)
        self._cpu_s = 0.0
        self._longest_s = 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        """Tick within this `with`."""
        loop = asyncio.get_running_loop()
        self._last_s = time.thread_time()
        self._timer = loop.call_later(TICK_S, self._tick, loop)
        try:
            yield
        finally:
            self._timer.cancel()

    def _tick(self, loop: asyncio.AbstractEventLoop) -> None:
        now_s = time.thread_time()
        held_s = now_s - self._last_s
        self._last_s = now_s
        self._ticks[bisect_left(BOUNDS_S, held_s)] += 1
        self._cpu_s += held_s
        if held_s > LONG_S:
            self._longest_s = max(self._longest_s, held_s)
        self._timer = loop.call_later(TICK_S, self._tick, loop)

    def read(self) -> dict[str, Any]:
        """Return what was measured since the start; several readers do not disturb each other.

        `longest_s`: the longest block, 0 when none was over `LONG_S`. `ticks`: the number of ticks with a block up to
        each of `bounds_s`, and over the last. `cpu_s`: the thread's processor time in all of them.
        """
        return {
            "longest_s": round(self._longest_s, 6),
            "bounds_s": BOUNDS_S,
            "ticks": list(self._ticks),
            "cpu_s": round(self._cpu_s, 6),
        }
