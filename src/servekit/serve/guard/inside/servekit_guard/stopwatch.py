"""How long the event loop is held: by the processor time of its own thread, not by the clock on the wall.

vLLM's loop is uvloop, in C, so a callback cannot be timed from within. A timer ticks on the loop instead: between two
ticks the loop's thread has used at least what the longest callback used. So a hold is told too long by what else ran in
that time, at most one tick (`TICK_S`) of ordinary work, never too short; what became ready at once and ran in one turn
of the loop is one hold, as it is for a stream that waits for it.
"""

import asyncio
import time
from bisect import bisect_left
from collections import deque
from types import TracebackType
from typing import Any, Self

TICK_S = 0.025
BOUNDS_S = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
LONG_S = 0.1
KEPT = 64
"""How many holds over `LONG_S` are kept one by one."""


class Stopwatch:
    """Ticks on the running loop within a `with`: 2 microseconds a tick on a busy loop, nothing for a request."""

    def __init__(self) -> None:
        self._ticks = [0] * (len(BOUNDS_S) + 1)
        self._cpu_s = 0.0
        self._longest_s = 0.0
        self._long: deque[tuple[float, float]] = deque(maxlen=KEPT)
        self._last_s = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def __enter__(self) -> Self:
        """Begin to tick."""
        self._last_s = time.thread_time()
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(TICK_S, self._tick, loop)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _tick(self, loop: asyncio.AbstractEventLoop) -> None:
        now_s = time.thread_time()
        held_s = now_s - self._last_s
        self._last_s = now_s
        self._ticks[bisect_left(BOUNDS_S, held_s)] += 1
        self._cpu_s += held_s
        if held_s > LONG_S:
            self._longest_s = max(self._longest_s, held_s)
            self._long.append((time.monotonic(), held_s))
        self._timer = loop.call_later(TICK_S, self._tick, loop)

    def read(self) -> dict[str, Any]:
        """Return what was seen since the start; several readers do not disturb each other.

        `longest_s`: the longest hold, 0 for none over `LONG_S`. `long`: the last holds over `LONG_S` as pairs of the
        monotonic second they ended at and their length. `ticks`: how many ticks there were with a hold up to each of
        `bounds_s`, and over the last. `cpu_s`: the thread's processor time in all of them.
        """
        return {
            "tick_s": TICK_S,
            "longest_s": round(self._longest_s, 6),
            "long": [[round(at_s, 3), round(held_s, 6)] for at_s, held_s in self._long],
            "bounds_s": BOUNDS_S,
            "ticks": list(self._ticks),
            "cpu_s": round(self._cpu_s, 6),
        }
