"""Energy of a GPU during a measurement: from its energy counter, and from its power to show a counter that is wrong."""

import itertools
import threading
import time
from collections.abc import Callable

_INTERVAL_S = 0.1

Reading = tuple[float, float]
"""Joules since some moment, and watts now."""


class EnergyMeter:
    """Reads a GPU ten times a second on a thread until it is stopped."""

    def __init__(self, read: Callable[[], Reading | None], interval_s: float = _INTERVAL_S) -> None:
        """Read with `read`, which returns None where there is nothing to read."""
        self.samples: list[tuple[float, float, float]] = []
        """Seconds of time.perf_counter, joules of the counter, watts."""
        self._read, self._interval_s = read, interval_s
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Read no more."""
        self._over.set()
        self._thread.join()

    def between(self, start_s: float, end_s: float) -> dict[str, float]:
        """Return joules and mean watts between two seconds of time.perf_counter; nothing without readings."""
        inside = [sample for sample in self.samples if start_s <= sample[0] <= end_s]
        if len(inside) < 2:  # noqa: PLR2004 - an interval has two ends
            return {}
        (first_s, first_j, _), (last_s, last_j, _) = inside[0], inside[-1]
        counted_w = (last_j - first_j) / (last_s - first_s)
        trace_j = sum((b[2] + a[2]) / 2 * (b[0] - a[0]) for a, b in itertools.pairwise(inside))
        return {
            "energy_j": round(counted_w * (end_s - start_s), 1),
            "mean_power_w": round(counted_w, 1),
            "mean_power_of_trace_w": round(trace_j / (last_s - first_s), 1),
            "power_samples": len(inside),
        }

    def _run(self) -> None:
        while not self._over.wait(self._interval_s):
            reading = self._read()
            if reading is None:
                return
            self.samples.append((time.perf_counter(), *reading))
