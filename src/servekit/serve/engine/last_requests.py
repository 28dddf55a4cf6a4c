"""Log lines about the requests in flight when the engine died: names and sizes, never content."""

from collections.abc import Sequence

from servekit.serve.guard import InFlight

_NEWEST = 8
_OLDEST = 4
"""The lines list this many of each end: the latest request often killed the engine, the oldest often hung it."""


def in_flight_lines(flights: Sequence[InFlight], now_s: float) -> list[str]:
    """Return the lines about `flights`, which are ordered from the latest on, at the monotonic second `now_s`."""
    if not flights:
        return ["no client request was in flight"]
    lines = [_line(flight, now_s) for flight in flights]
    more = len(lines) - _NEWEST - _OLDEST
    if more > 0:
        lines[_NEWEST:-_OLDEST] = [f"  ... {more} more"]
    return [f"in flight: {len(flights)} request{'' if len(flights) == 1 else 's'}, the latest first:", *lines]


def _line(flight: InFlight, now_s: float) -> str:
    fields = f": {flight.fields}" if flight.fields else ""
    age_s = now_s - flight.began_s
    return f"  {flight.request_id} {flight.route}, {flight.body_bytes:,} bytes, for {age_s:.1f} s{fields}"
