"""How far the download of a model is, from the reports of hub_program."""

import json
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from servekit.preflight.hub.hub_model import amount
from servekit.preflight.hub.hub_program import MARK

RATE_OVER_S: Final = 30.0
_NOTED_EVERY_S: Final = 10.0


@dataclass(frozen=True)
class Download:
    """One moment of a download."""

    bytes: int = 0
    """In the cache, with what was there before."""
    total: int = 0
    """0: the hub has not answered yet."""
    verified: int = 0
    """Bytes whose hash was compared with the hub's."""
    bytes_per_s: float = 0.0
    """Over the last RATE_OVER_S."""
    moved_s: float = 0.0
    """The monotonic second at which bytes arrived last."""
    problem: str = ""
    """What failed last, until bytes arrive again."""
    commit: str = ""
    """Known when every file is there and verified."""
    noted: bool = False
    """Whether the log is to have a line about this moment."""

    @property
    def seconds_left(self) -> float | None:
        """Return how long the rest takes at this rate; None if nothing arrives."""
        return (self.total - self.bytes) / self.bytes_per_s if self.bytes_per_s else None

    def __str__(self) -> str:
        """Return the moment as text for people."""
        if not self.total:
            return self.problem or "asking the hub"
        if self.verified:
            return f"comparing {amount(self.total)} with the hub's hashes, {amount(self.verified)} done"
        text = f"{amount(self.bytes)} of {amount(self.total)}"
        if self.problem:
            return f"{text}; waiting, {self.problem}"
        if self.seconds_left is None:
            return text
        return f"{text}, {amount(self.bytes_per_s)}/s, {_duration(self.seconds_left)} left"


class DownloadReader:
    """Reads the lines of hub_program, one after the other."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._now = Download(moved_s=clock())
        self._arrived: deque[tuple[float, int]] = deque()
        self._noted_s = float("-inf")

    def read(self, line: str) -> Download | None:
        """Return the download after this line; None for a line of another program."""
        _, mark, text = line.partition(MARK)  # a warning without a line end may stand before it
        if not mark:
            return None
        report, at_s, before = json.loads(text), self._clock(), self._now
        known = {name: report[name] for name in ("bytes", "total", "verified", "commit") if name in report}
        now = replace(before, noted=False, **known)
        if message := report.get("message"):
            remedy = report.get("remedy")
            now = replace(now, problem=f"{message}; {remedy}" if remedy else message)
        elif (now.bytes, now.verified) != (before.bytes, before.verified):
            now = replace(now, moved_s=at_s, problem="")
        now = replace(now, bytes_per_s=self._rate(at_s, now.bytes))
        told = now.problem != before.problem or bool(now.commit) or bool(now.verified) != bool(before.verified)
        if told or at_s - self._noted_s >= _NOTED_EVERY_S:
            self._noted_s, now = at_s, replace(now, noted=True)
        self._now = now
        return now

    def _rate(self, at_s: float, size: int) -> float:
        self._arrived.append((at_s, size))
        while at_s - self._arrived[0][0] > RATE_OVER_S:
            self._arrived.popleft()
        first_s, first = self._arrived[0]
        return max(0.0, (size - first) / (at_s - first_s)) if at_s > first_s else 0.0


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{seconds:.0f} s" if seconds < 120 else f"{minutes} min" if minutes < 120 else f"{minutes / 60:.1f} h"  # noqa: PLR2004
