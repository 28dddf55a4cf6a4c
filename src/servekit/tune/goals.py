"""What `tune` can look for: the figure that it takes from each record, and which way is better."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from servekit.measure.record import Record, Window


@dataclass(frozen=True)
class Goal:
    """A figure to improve."""

    figure: str
    """What it is, with its unit."""
    pick: Callable[[Record], float | None]
    sign: int
    """1 where more is better, -1 where less is."""
    streams: int
    """Requests at once, unless the operator says otherwise."""


def _window(record: Record) -> Window:
    """Return the steady window: the load generator's own start belongs to the whole run, but not to this."""
    return record.steady or record.run


def _request_s(record: Record) -> float | None:
    latency = record.engine.latency.get("request")
    return latency.mean_s if latency else None


GOALS: Final[Mapping[str, Goal]] = {
    "throughput": Goal("output tokens/s", lambda record: _window(record).output_tokens_per_s, 1, 128),
    "energy": Goal("J per output token", lambda record: _window(record).efficiency.j_per_output_token, -1, 128),
    "latency": Goal("seconds per request", _request_s, -1, 8),
}
