"""Energy of one GPU between two moments: by its counter, and by the integral of its power; each with its error bound.

NVML's energy counter moves in steps, about every 100 ms, and never runs ahead of the energy used. So a reading bounds
the energy at its moment from below, and a reading one step later bounds it from above. The counter restarts at zero
when the driver is loaded again. The power trace fills that step; otherwise it only shows whether the counter is right.
"""

import bisect
import itertools
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

TOLERANCE: Final = 0.005
"""An energy whose error bound is a larger share of it is not good enough for a record."""
GAP_INTERVALS: Final = 3
"""Readings further apart than this many sampling intervals have a gap between them."""
_SHORTEST_STEP_S: Final = 0.1
_STEP_MARGIN: Final = 1.5
"""Steps of the counter are not quite regular."""
_POWER_MARGIN: Final = 1.2
"""How far the power may exceed both the limit in force and every sample."""
_SIGMAS: Final = 3


class Sample(NamedTuple):
    """One reading of a GPU: monotonic seconds, joules of the counter, watts; None where NVML did not report it."""

    t: float
    joules: float | None
    watts: float | None


@dataclass(frozen=True)
class Estimate:
    """An energy in joules with its error bound, or why there is none."""

    joules: float | None
    error_j: float = math.inf
    why: str = ""

    @property
    def good(self) -> bool:
        """Whether the error bound is at most half a percent."""
        return self.joules is not None and self.error_j <= TOLERANCE * self.joules


@dataclass(frozen=True)
class Gaps:
    """Where readings are missing: how many gaps, and their lengths in seconds."""

    count: int
    total_s: float
    longest_s: float


def find_gaps(samples: Sequence[Sample], start_s: float, end_s: float, interval_s: float) -> Gaps:
    """Return the gaps between readings of power in a window; the window's ends count as readings."""
    inside = [each.t for each in samples if start_s < each.t < end_s and each.watts is not None]
    lengths = [after - before for before, after in itertools.pairwise([start_s, *inside, end_s])]
    long = [length for length in lengths if length > GAP_INTERVALS * interval_s]
    return Gaps(len(long), sum(long), max(long, default=0.0))


def count_energy(samples: Sequence[Sample], start_s: float, end_s: float, limit_w: float | None = None) -> Estimate:
    """Return the energy between two moments by the counter; `limit_w` is the highest power limit in force."""
    readings = [(each.t, each.joules) for each in samples if each.joules is not None]
    times = [t for t, _ in readings]
    if why := _uncovered(times, start_s, end_s, "the energy counter"):
        return Estimate(None, why=why)
    highest_w = _POWER_MARGIN * max([limit_w or 0.0, *(each.watts for each in samples if each.watts is not None)])
    points = _unwrap(readings, samples, highest_w)
    first, last = (_at(points, times, moment_s, highest_w) for moment_s in (start_s, end_s))
    low, high = max(0.0, last.low - first.high), last.high - first.low
    joules = min(max(last.joules - first.joules, low), high)
    return Estimate(joules, max(high - joules, joules - low))


def integrate_power(samples: Sequence[Sample], start_s: float, end_s: float, interval_s: float) -> Estimate:
    """Return the energy between two moments by the trapezoids of power.

    The error bound covers what happens between samples, not what the GPU's sensor itself leaves out.
    """
    known = [(each.t, each.watts) for each in samples if each.watts is not None]
    times = [t for t, _ in known]
    if why := _uncovered(times, start_s, end_s, "power"):
        return Estimate(None, why=why)
    inside = [(t, watts) for t, watts in known if start_s < t < end_s]
    path = [(start_s, _between(known, times, start_s)), *inside, (end_s, _between(known, times, end_s))]
    highest = max(watts for _, watts in known)
    joules = squares = missing = 0.0
    for (t, watts), (next_t, next_watts) in itertools.pairwise(path):
        length, mean = next_t - t, (watts + next_watts) / 2
        joules += length * mean
        if length > GAP_INTERVALS * interval_s:
            missing += length * max(mean, highest - mean)
        else:
            squares += (abs(next_watts - watts) * length / 2) ** 2
    return Estimate(joules, _SIGMAS * math.sqrt(squares) + missing)


class _Point(NamedTuple):
    """The energy since the first reading, with its bounds: they differ from it after a restart of the counter."""

    t: float
    joules: float
    low: float
    high: float


def _unwrap(readings: Sequence[tuple[float, float]], samples: Sequence[Sample], highest_w: float) -> list[_Point]:
    """Return the energy since the first reading, across restarts of the counter."""
    points = [_Point(readings[0][0], 0.0, 0.0, 0.0)]
    for (before_s, before_j), (t, now_j) in itertools.pairwise(readings):
        delta = now_j - before_j
        low = high = delta
        most = highest_w * (t - before_s)
        # After a restart the counter holds no more than the GPU can have used meanwhile.
        if delta < 0 or now_j <= most:
            low = min(each for each in (delta, now_j) if each >= 0)
            high = max(delta, most, now_j)
            delta = min(max(_mean_power(samples, before_s, t) * (t - before_s), low), high) if delta < 0 else delta
        last = points[-1]
        points.append(_Point(t, last.joules + delta, last.low + low, last.high + high))
    return points


def _mean_power(samples: Sequence[Sample], start_s: float, end_s: float) -> float:
    """Return the mean of the samples in an interval, its ends included; 0 without any."""
    return statistics.fmean(
        [each.watts for each in samples if start_s <= each.t <= end_s and each.watts is not None] or [0.0]
    )


def _step_s(points: Sequence[_Point]) -> float:
    """Return the longest that the counter usually stands still."""
    moved = [now.t for before, now in itertools.pairwise(points) if now.joules != before.joules]
    spacings = [after - before for before, after in itertools.pairwise(moved)]
    usual_s = _STEP_MARGIN * statistics.median(spacings) if spacings else points[-1].t - points[0].t
    return max(_SHORTEST_STEP_S, usual_s)


def _at(points: Sequence[_Point], times: Sequence[float], moment_s: float, highest_w: float) -> _Point:
    """Return the energy at a moment: between the moments at which the counter moved, and within its bounds."""
    before, after = bisect.bisect_right(times, moment_s) - 1, bisect.bisect_left(times, moment_s)
    left, right = _moved(points, before, -1), _moved(points, after, 1)
    share = (moment_s - left.t) / (right.t - left.t) if right.t > left.t else 0.0
    later_s = moment_s + _step_s(points)
    bound = points[min(bisect.bisect_left(times, later_s), len(points) - 1)]
    high = bound.high + highest_w * max(0.0, later_s - bound.t)
    return _Point(moment_s, left.joules + share * (right.joules - left.joules), points[before].low, high)


def _moved(points: Sequence[_Point], index: int, direction: int) -> _Point:
    """Return the nearest point in a direction at which the counter had just moved; the outermost without one."""
    while 0 < index < len(points) - 1 and points[index].joules == points[index - 1].joules:
        index += direction
    return points[index]


def _between(known: Sequence[tuple[float, float]], times: Sequence[float], moment_s: float) -> float:
    """Return the power at a moment, on the line between the samples around it."""
    index = min(max(bisect.bisect_right(times, moment_s), 1), len(times) - 1)
    (t, watts), (next_t, next_watts) = known[index - 1], known[index]
    return watts + (next_watts - watts) * (moment_s - t) / (next_t - t)


def _uncovered(times: Sequence[float], start_s: float, end_s: float, what: str) -> str:
    """Return why readings do not cover a window; empty if they do."""
    if not times:
        return f"NVML reported no reading of {what}"
    if times[0] > start_s:
        return f"the first reading of {what} came {times[0] - start_s:.1f} s after the beginning"
    if times[-1] < end_s:
        return f"the last reading of {what} came {end_s - times[-1]:.1f} s before the end"
    return ""
